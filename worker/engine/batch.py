"""The real engine: continuous batching with mlx-lm's `BatchGenerator`."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx

from supervisor.errors import InternalError
from supervisor.wire.frames import (
    Embed,
    End,
    FromEngine,
    Generate,
    Load,
    LoanFrame,
    Progress,
    Recall,
    Repaid,
)
from worker.engine import loading, mlx_lm_compat, mlx_lm_generator, sampling
from worker.engine.active_job import ActiveJob, replay_emitted
from worker.engine.decoding import BatchDecoder
from worker.engine.embedding import Embedder
from worker.engine.load_faults import told_of
from worker.engine.mlx_lm_generator import NextToken
from worker.engine.prompt_scores import PromptScores
from worker.engine.rows import BatchRow
from worker.engine.thread import FINAL_FRAMES, Job, LoadResult, Output, Prepared
from worker.output.token_bytes import TokenBytes
from worker.output.transcript import TranscriptFactory
from worker.prompt.template import PromptBuilder

log = logging.getLogger("bulkhead.worker")

PREFILL_BATCH = 8
"""Prompts prefilled together, mlx-lm's own figure."""
PREFILL_STEP = 512
"""Prompt tokens of one sequence in one step. A step is what a neighbour's next token and a cancel
wait for, and larger ones gain little."""


@dataclass(frozen=True, slots=True)
class _PausedJob:
    """A job outside the generator, with its place in the output."""

    active: ActiveJob
    last: NextToken
    """The last token that was told, which is not in the cache yet."""
    cache: Any
    known: list[int]
    """Tokens in the cache."""


class BatchEngine:
    """An `Engine` over one mlx-lm model."""

    def __init__(self) -> None:
        self._import_failure = ""
        """What made mlx-lm's import fail, as `warm_up` met it."""
        self._queue: deque[Job] = deque()
        """Accepted, not yet given to the generator; see `_admit`."""
        self._queued_tokens = 0
        """Of their prompts."""
        self._active: dict[int, ActiveJob] = {}
        self._uids: dict[Job, int] = {}
        self._prefilling: dict[int, int] = {}
        """Prompt tokens still to be prefilled, of those in the generator without a first token."""
        self._paused: dict[Job, _PausedJob] = {}
        self._news: list[LoanFrame] = []
        self._pausing: set[Job] = set()
        """Those to pause that have no token yet: queued ones are passed over, the others pause with
        their first."""

    def warm_up(self) -> None:
        self._import_failure = mlx_lm_compat.import_mlx_lm()
        if not self._import_failure:
            # A tenth of a second more, which is twice what a small model's load takes. It imports
            # transformers, which must not come before mlx-lm.
            import worker.grammar.compile  # noqa: F401

    def load(self, load: Load, progress: Callable[[int, int], None]) -> LoadResult:
        if self._import_failure:
            raise mlx_lm_compat.unfit(f"its import failed with {self._import_failure}")
        folder = Path(load.path)
        self._model = loading.load(folder, load.context, progress)
        with told_of(folder):
            self._prepare_to_serve(load)
        return LoadResult(mx.get_active_memory(), self._model.context)

    def _prepare_to_serve(self, load: Load) -> None:
        """What is made of the loaded model, which may fail for want of something in its files."""
        # Not before: they import transformers, and that it can be imported is checked there.
        from worker.grammar.compile import ConstraintCompiler
        from worker.grammar.vocabulary import fill_masks

        model, tokenizer, context = self._model.model, self._model.tokenizer, self._model.context
        # Of a lazy array the shape is known without computing it.
        self._width = int(model(mx.array([[0]])).shape[-1])
        self._prompts = PromptBuilder(tokenizer, context, self._width)
        self._token_bytes = TokenBytes(tokenizer)
        self._transcripts = TranscriptFactory(tokenizer)
        self._constraints = ConstraintCompiler(tokenizer, self._width, self._transcripts.formats)
        self._embedder = Embedder(model, tokenizer, Path(load.path), context)
        # Ids without a logit: writing to them would be writing out of bounds.
        self._eos = tuple(sorted(id for id in tokenizer.eos_token_ids if 0 <= id < self._width))
        self._generator: Any = mlx_lm_generator.make_generator(
            model,
            BatchDecoder(fill_masks, self._eos),
            stop_tokens=[[token] for token in self._eos],
            completion_batch_size=load.max_concurrency,
            prefill_batch_size=min(PREFILL_BATCH, load.max_concurrency),
            prefill_step_size=PREFILL_STEP,
        )
        self._concurrency = load.max_concurrency
        self._never_stop = mlx_lm_generator.never_stop()

    def prepare(self, request: Generate | Embed) -> Prepared:
        if isinstance(request, Embed):
            return Prepared(inputs=self._embedder.prepare(request))
        sampling.check(request.sampling, self._width)
        if not all(0 <= token < self._width for token in request.emitted):
            # They are another worker's, which is not trusted, and MLX would read out of bounds.
            raise InternalError("The request can't be resumed: its tokens are not this model's.")
        prompt = self._prompts.tokens(request)
        echo = self._prompts.text_of(request, prompt) if request.echo else ""
        constraint = self._constraints.compile(request, prompt)
        text = self._transcripts.make(
            request,
            prompt,
            calls_held=lambda: constraint is not None and constraint.holds_calls,
        )
        end = None
        if request.max_tokens == 0 and not _scores_prompt(request, prompt):
            end = End("length", len(prompt), 0)
        elif request.emitted:
            endless = request.ignore_eos and (constraint is None or constraint.endless)
            most = self._most(request, prompt)
            end = replay_emitted(request, text, () if endless else self._eos, most, len(prompt))
        if constraint is not None and end is None:
            for token in request.emitted:
                constraint.push(token)
        return Prepared(prompt, echo, constraint, text, end)

    def _most(self, request: Generate, prompt: Sequence[int]) -> int:
        """Tokens that the output may have."""
        room = self._model.context - len(prompt)
        limits = (request.max_tokens, self._model.answer_limit)
        return min([room, *(each for each in limits if each is not None)])

    def insert(self, job: Job) -> None:
        if isinstance(job.request, Embed):
            self._embedder.insert(job)
        else:
            self._queue.append(job)
            self._queued_tokens += _prompt_size(job)

    def _admit(self) -> None:
        """Give queued jobs to the generator, a whole group at a time.

        Handed over one by one, as they arrive, the prompts of a burst would go through in groups
        of 1, 7, 1, 7, for the generator fills its prompt batch before it takes the finished ones
        out of it; and each group's first tokens would wait for the next group's prefill, which is
        in the same step. So a prompt waits until those before it have their first token, but not
        while one of them has chunks to go.
        """
        left = self._prefilling.values()
        if left and max(left) <= PREFILL_STEP:
            return
        room = min(PREFILL_BATCH - len(left), self._concurrency - len(self._active))
        for job in list(islice(self._waiting(), max(room, 0))):
            self._dequeue(job)
            self._start(job)

    def _dequeue(self, job: Job) -> None:
        self._queue.remove(job)
        self._queued_tokens -= _prompt_size(job)

    def _waiting(self) -> Iterator[Job]:
        """Queued jobs that are not to pause, in order."""
        return (job for job in self._queue if job not in self._pausing)

    def _start(self, job: Job) -> None:
        request = job.request
        assert isinstance(request, Generate)
        constraint, emitted = job.prepared.constraint, request.emitted
        scores = None
        if request.prompt_logprobs is not None and _scores_prompt(request, job.prompt):
            scores = PromptScores(
                job.prompt, request.prompt_logprobs, vocabulary=self._width, told=request.scored
            )
        row = BatchRow(
            sampling.resolve(request.sampling, self._model.defaults),
            emitted=emitted,
            min_tokens=request.min_tokens,
            logprobs=request.logprobs,
            constraint=constraint,
            prompt_scores=scores,
        )
        # Of what a grammar has completed, the end is all that can follow.
        endless = request.ignore_eos and (constraint is None or constraint.endless)
        (uid,) = self._generator.insert(
            [[*job.prompt, *emitted]],
            # The generator knows no sequence without output; `_decode` takes those out in time.
            max_tokens=[max(1, self._most(request, job.prompt) - len(emitted))],
            samplers=[row],
            stop_sequences=[self._never_stop] if endless else None,
        )
        self._active[uid] = ActiveJob(job, self._token_bytes, len(emitted), scores)
        self._uids[job] = uid
        self._prefilling[uid] = _prompt_size(job)

    def remove(self, job: Job) -> None:
        if isinstance(job.request, Embed):
            self._embedder.remove(job)
            return
        self._pausing.discard(job)
        uid = self._uids.pop(job, None)
        if uid is not None:
            del self._active[uid]
            self._prefilling.pop(uid, None)
            self._generator.remove([uid])
        elif job in self._queue:
            self._dequeue(job)
        else:
            self._paused.pop(job, None)

    def pause(self, job: Job) -> Sequence[FromEngine]:
        uid = self._uids.get(job)
        if uid in self._prefilling or job in self._queue:
            self._pausing.add(job)
            return ()
        if uid is None:
            return ()
        active = self._active[uid]
        state = mlx_lm_generator.next_tokens(self._generator, [uid])[uid]
        ends = state.token in self._eos and state.stops is not self._never_stop
        if state.left < 1 or ends:
            return ()  # the next step is its last
        frames: Sequence[FromEngine] = ()
        if not active.told_ahead:
            # The generator is a token ahead, and would keep it to itself.
            frames = active.frames(state.token, None, state.logprobs)
            if isinstance(frames[-1], FINAL_FRAMES):
                self._forget_ended(uid, frames, ended=False)
                return frames
        active.told_ahead = False
        state.row.restart(state.token)
        cache, known = self._generator.remove([uid], return_prompt_caches=True)[uid]
        for layer in cache:
            mx.eval(layer.state)  # one by one: the batch's rows are copied
        del self._active[uid], self._uids[job]
        self._paused[job] = _PausedJob(active, state, cache, known)
        return frames

    def unpause(self, job: Job) -> None:
        self._pausing.discard(job)
        paused = self._paused.pop(job, None)
        if paused is None:
            return
        (uid,) = self._generator.insert(
            [[paused.last.token]],
            max_tokens=[paused.last.left],
            caches=[paused.cache],
            all_tokens=[paused.known],
            samplers=[paused.last.row],
            stop_sequences=[paused.last.stops],
        )
        self._active[uid], self._uids[job], self._prefilling[uid] = paused.active, uid, 1

    def step(self) -> Sequence[Output]:
        decoded = self._decode() if self._decodes else []
        return [*decoded, *self._embedder.step()]

    def _decode(self) -> list[Output]:
        self._admit()
        mlx_lm_generator.set_prefill_step(self._generator, self._prefill_step())
        prefills, generated = self._generator.next()
        outputs: list[Output] = []
        for prefill in prefills:
            done, total = prefill.progress
            self._prefilling[prefill.uid] = total - done
            active = self._active[prefill.uid]
            if told := active.prompt_frames():
                outputs.append((active.job, told))
            if 0 < done < total - 1:  # the last token is the first decode step's
                log.info(
                    "request %s: prefilled %d of %d", active.job.request.request_id, done, total
                )
                outputs.append((active.job, [Progress(done, total)]))
            elif (end := active.prompt_end()) is not None:
                del self._prefilling[prefill.uid]
                self._pausing.discard(active.job)
                outputs.append((active.job, [end]))
                self._forget_ended(prefill.uid, [end], ended=False)
        for response in generated:
            active = self._active[response.uid]
            if active.told_ahead:
                active.told_ahead = False
                continue
            frames = active.frames(response.token, response.finish_reason, response.logprobs)
            # Of a stop string the generator knows nothing.
            self._forget_ended(response.uid, frames, ended=response.finish_reason is not None)
            outputs.append((active.job, frames))
        ready = [p.uid for p in prefills if p.end_of_prompt and p.uid in self._active]
        return outputs + self._first_tokens(ready)

    def _prefill_step(self) -> int:
        """Tokens of each prompt in the next step. Where one is scored, as many of all together as
        else of one: each goes through the vocabulary's weights as well, as no other prompt's."""
        if any(self._active[uid].scores_prompt for uid in self._prefilling):
            return PREFILL_STEP // len(self._prefilling)
        return PREFILL_STEP

    def _first_tokens(self, uids: Sequence[int]) -> list[Output]:
        """The first tokens of sequences whose prompts are done.

        The generator would tell them after it has built the step that follows, which takes as long
        as a step of a small model. A token that might end its sequence is left to it. Those that
        are to pause do so now.
        """
        outputs: list[Output] = []
        if not uids:
            return outputs
        jobs = [self._active[uid].job for uid in uids]
        # Of all at once, for a sequence that ends here leaves the batch.
        states = mlx_lm_generator.next_tokens(self._generator, uids)
        for uid in uids:
            del self._prefilling[uid]
            state, active = states[uid], self._active[uid]
            if state.token in self._eos or state.left < 1:
                continue
            active.told_ahead = True
            frames = active.frames(state.token, None, state.logprobs)
            self._forget_ended(uid, frames, ended=False)
            outputs.append((active.job, frames))
        for job in jobs:
            if job in self._pausing:
                self._pausing.remove(job)
                if made := self.pause(job):
                    outputs.append((job, made))
        return outputs

    def _forget_ended(self, uid: int, frames: Sequence[FromEngine], *, ended: bool) -> None:
        """Forget a sequence whose last frame is among `frames`; `ended`: the generator has."""
        if isinstance(frames[-1], FINAL_FRAMES):
            if not ended:
                self._generator.remove([uid])
            del self._uids[self._active.pop(uid).job]

    @property
    def _decodes(self) -> bool:
        return bool(self._active) or any(self._waiting())

    @property
    def busy(self) -> bool:
        # Asked before there is a model, too.
        embedder = getattr(self, "_embedder", None)
        return self._decodes or (embedder is not None and embedder.busy)

    @property
    def prefill(self) -> tuple[int, int]:
        if not self._prefilling:
            return (0, self._queued_tokens)
        begun = sum(_prompt_size(self._active[uid].job) for uid in self._prefilling)
        return (begun - sum(self._prefilling.values()), begun + self._queued_tokens)

    def shrink(self) -> None:
        mx.clear_cache()

    def lend(self, size: int) -> None:
        pass

    def recall(self, recall: Recall) -> None:
        self._news.append(Repaid(0, recall.number))

    def limit(self, sequences: int) -> None:
        pass

    def allow_prefill(self, allowed: bool) -> None:
        pass

    def news(self) -> Sequence[LoanFrame]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        self._queue.clear()
        self._queued_tokens = 0
        self._paused.clear()
        self._pausing.clear()
        self._active.clear()
        self._uids.clear()
        for held in (
            "_generator",
            "_embedder",
            "_model",
            "_prompts",
            "_transcripts",
            "_constraints",
        ):
            if hasattr(self, held):
                delattr(self, held)
        gc.collect()
        mx.clear_cache()


def _prompt_size(job: Job) -> int:
    """Tokens that are prefilled for it: its prompt, and what another worker has emitted."""
    assert isinstance(job.request, Generate)
    return len(job.prompt) + len(job.request.emitted)


def _scores_prompt(request: Generate, prompt: Sequence[int]) -> bool:
    """Whether some of the prompt's tokens are still to be scored. Those that have output have been
    told before it."""
    wanted = request.prompt_logprobs is not None and not request.emitted
    return wanted and request.scored < len(prompt)
