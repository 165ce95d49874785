"""A loaded model's side of requests: what is made of one before its turn, and when it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from supervisor.errors import InternalError, QueueFull
from supervisor.wire.frames import Embed, End, Generate
from worker.engine import sampling
from worker.engine.active_job import ActiveJob, replay_emitted
from worker.engine.embedding import Embedder
from worker.engine.loading import LoadedModel
from worker.engine.native_heap import NativeHeap, Trimmer
from worker.engine.prompt_scores import PromptScores
from worker.engine.rows import BatchRow
from worker.engine.thread import Job, NoRoom, Prepared
from worker.output.token_bytes import TokenBytes
from worker.output.transcript import TranscriptFactory
from worker.prompt.template import PromptBuilder


@dataclass(frozen=True, slots=True)
class Begun:
    """What a job needs among the sequences."""

    active: ActiveJob
    row: BatchRow
    tokens: list[int]
    most: int
    """Tokens that it may generate, at least 1: `max_tokens` = 0 ends with its prompt."""
    endless: bool
    """Whether it goes on behind an end of sequence."""


class Serving:
    """Of one loaded model. `prepare` may be called beside all else, from one thread at a time."""

    def __init__(self, loaded: LoadedModel, folder: Path, context: int, heap: NativeHeap) -> None:
        """`context`: tokens that a sequence can have on this machine, at most the model's own.
        `heap` is told to give back what grammars have taken."""
        # Not before: it imports transformers, and that it can be imported is checked in the load.
        from worker.grammar.compile import ConstraintCompiler
        from worker.grammar.grammar_cache import GrammarCache

        self.loaded, self._context = loaded, context
        model, tokenizer = loaded.model, loaded.tokenizer
        self.width = width(model)
        """Logits, and so token ids that there are."""
        self._prompts = PromptBuilder(tokenizer, loaded.context, self.width, fitting=context)
        self._token_bytes = TokenBytes(tokenizer)
        self._transcripts = TranscriptFactory(tokenizer)
        self._constraints = ConstraintCompiler(
            tokenizer,
            self.width,
            self._transcripts.formats,
            GrammarCache(freed=Trimmer(heap).freed),
        )
        self.embedder = Embedder(model, tokenizer, folder, loaded.context, fitting=context)
        # Ids without a logit: writing to them would be writing out of bounds.
        self.eos = tuple(sorted(id for id in tokenizer.eos_token_ids if 0 <= id < self.width))
        """Tokens that end a sequence."""

    def prepare(self, request: Generate | Embed) -> Prepared:
        if isinstance(request, Embed):
            return Prepared(inputs=self.embedder.prepare(request))
        sampling.check(request.sampling, self.width)
        if not all(0 <= token < self.width for token in request.emitted):
            # They are another worker's, which is not trusted, and MLX would read out of bounds.
            raise InternalError("The request can't be resumed: its tokens are not this model's.")
        prompt = self._prompts.tokens(request)
        echo = self._prompts.text_of(request, prompt) if request.echo else ""
        return self._with_grammar(request, prompt, echo, self._constraints.claim())

    def _with_grammar(
        self, request: Generate, prompt: Sequence[int], echo: str, claim: Any
    ) -> Prepared:
        """Raises BulkheadError, or NoRoom."""
        try:
            constraint = self._constraints.compile(request, prompt, claim)
        except QueueFull as error:
            # What it holds of other grammars is let go now, with its stack.
            full = error.with_traceback(None)
        else:
            return self._constrained(request, prompt, echo, constraint)
        raise NoRoom(full, claim, partial(self._with_grammar, request, prompt, echo, claim))

    def _constrained(
        self, request: Generate, prompt: Sequence[int], echo: str, constraint: Any
    ) -> Prepared:
        text = self._transcripts.make(
            request,
            prompt,
            calls_held=lambda: constraint is not None and constraint.holds_calls,
        )
        end = None
        if request.max_tokens == 0 and not scores_prompt(request, prompt):
            end = End("length", len(prompt), 0)
        elif request.emitted:
            eos = () if _endless(request, constraint) else self.eos
            end = replay_emitted(request, text, eos, self._most(request, prompt), len(prompt))
        if constraint is not None and end is None:
            for token in request.emitted:
                constraint.push(token)
        return Prepared(prompt, echo, constraint, text, end)

    def _most(self, request: Generate, prompt: Sequence[int]) -> int:
        """Tokens that the output may have."""
        room = self._context - len(prompt)
        limits = (request.max_tokens, self.loaded.answer_limit)
        return min([room, *(each for each in limits if each is not None)])

    def begin(self, job: Job) -> Begun:
        """The job's turn has come. Computes nothing."""
        request = job.request
        assert isinstance(request, Generate)
        constraint, emitted = job.prepared.constraint, request.emitted
        scores = None
        if request.prompt_logprobs is not None and scores_prompt(request, job.prompt):
            scores = PromptScores(
                job.prompt, request.prompt_logprobs, vocabulary=self.width, told=request.scored
            )
        row = BatchRow(
            sampling.resolve(request.sampling, self.loaded.defaults),
            emitted=emitted,
            min_tokens=request.min_tokens,
            logprobs=request.logprobs,
            constraint=constraint,
            prompt_scores=scores,
        )
        return Begun(
            ActiveJob(job, self._token_bytes, len(emitted), scores),
            row,
            [*job.prompt, *emitted],
            max(1, self._most(request, job.prompt) - len(emitted)),
            _endless(request, constraint),
        )

    def scores(self, job: Job) -> bool:
        """Whether tokens of the job's prompt are to be scored."""
        assert isinstance(job.request, Generate)
        return scores_prompt(job.request, job.prompt)


def width(model: Any) -> int:
    """The logits of a loaded model. Of a lazy array the shape is known without computing it."""
    return int(model(mx.array([[0]])).shape[-1])


def _endless(request: Generate, constraint: Any) -> bool:
    """Of what a grammar has completed, the end is all that can follow."""
    return request.ignore_eos and (constraint is None or constraint.endless)


def prompt_size(job: Job) -> int:
    """Tokens that are prefilled for it: its prompt, and what another worker has emitted."""
    assert isinstance(job.request, Generate)
    return len(job.prompt) + len(job.request.emitted)


def scores_prompt(request: Generate, prompt: Sequence[int]) -> bool:
    """Whether some of the prompt's tokens are still to be scored. Those that have output have been
    told before it."""
    wanted = request.prompt_logprobs is not None and not request.emitted
    return wanted and request.scored < len(prompt)
