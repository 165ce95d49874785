"""mlx-lm's generator with batches of our own: how prompts are processed and tokens decoded.

`make_generator` puts our classes in the place of mlx-lm's and looks at the objects that result.
Whatever is missing raises `Unloadable`. `docs/upgrading-mlx-lm.md` says what each check guards, and
what none can.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from worker.engine.decoding import BatchDecoder
from worker.engine.mlx_lm_compat import demand, find, theirs, unfit
from worker.engine.mlx_lm_expected import (
    BATCH_GENERATOR,
    GENERATION_BATCH,
    PER_PROMPT,
    PROMPT_BATCH,
)
from worker.engine.prompt_scores import PromptScores, ScoringModel, parts


class NextToken(NamedTuple):
    """A token that a generator has computed and not returned yet, with its sequence's state."""

    token: int
    logprobs: Any
    row: Any
    left: int
    """Tokens that may follow it."""
    stops: Any


def make_generator(model: Any, decoder: BatchDecoder, **options: Any) -> Any:
    """A `BatchGenerator` that decodes with `decoder`; `options` are its constructor's. Raises
    Unloadable when it would not.

    mlx-lm offers no way to choose the classes of its batches, but looks their names up when it
    makes one. Generators that have another sampler step as mlx-lm does.
    """
    module: Any = importlib.import_module("mlx_lm.generate")
    decoding = _decoding_batch(theirs(module.GenerationBatch))
    prefill = _prefill_batch(theirs(module.PromptProcessingBatch))
    module.GenerationBatch, module.PromptProcessingBatch = decoding, prefill
    wired = mx.set_wired_limit(0)  # the only way to read it
    mx.set_wired_limit(wired)
    generator = module.BatchGenerator(model, sampler=decoder, **options)
    # The constructor wires the whole recommended working set, which is wrong when several workers
    # share the machine; closing does nothing but undo that. That a closed generator still generates
    # can't be seen before it has a prompt: the tests of this module and `make greedy` show it.
    generator.close()
    if mx.set_wired_limit(wired) != wired:
        raise unfit("a closed BatchGenerator leaves memory wired")
    demand(generator, BATCH_GENERATOR, "BatchGenerator")
    for batch, kind in (
        (generator._generation_batch, decoding),
        (generator._prompt_batch, prefill),
    ):
        if type(batch) is not kind:
            raise unfit(f"a BatchGenerator makes its own {type(batch).__name__}")
    demand(generator._generation_batch, GENERATION_BATCH, "GenerationBatch")
    demand(generator._prompt_batch, PROMPT_BATCH, "PromptProcessingBatch")
    if others := sorted(vars(generator._prompt_batch).keys() - PROMPT_BATCH):
        raise unfit(f"a PromptProcessingBatch has {', '.join(others)} besides")
    if generator._generation_batch.fallback_sampler is not decoder:
        raise unfit("a GenerationBatch does not get its generator's sampler")
    return generator


def set_prefill_step(generator: Any, tokens: int) -> None:
    """How many tokens of each prompt its next steps process, no more than it was made with."""
    generator.prefill_step_size = tokens


def never_stop() -> Any:
    """Stop sequences for a sequence that no token ends."""
    return find("mlx_lm.generate", "StopSequences")()


def next_tokens(generator: Any, uids: Sequence[int]) -> dict[int, NextToken]:
    """By uid, the token that each of these decoding sequences has next. Waits until the batch's are
    computed."""
    batch = generator._generation_batch
    tokens = batch._next_tokens.tolist()
    places = {uid: batch.uids.index(uid) for uid in uids}
    return {
        uid: NextToken(
            token=tokens[at],
            logprobs=batch._next_logprobs[at],
            row=batch.samplers[at],
            left=batch.max_tokens[at] - batch._num_tokens[at] - 1,
            stops=batch.stop_sequences[at],
        )
        for uid, at in places.items()
    }


def _decoding_batch(base: Any) -> Any:
    class DecodingBatch(base):  # type: ignore[misc]
        """Sequences that decode together, by the generator's `BatchDecoder`."""

        _plan: Any = None
        _next_tokens: Any
        _next_logprobs: Any

        def _step(self) -> Any:
            """Queue the next token of every sequence; return the tokens of the step before and what
            is told about them. A sequence's first step has its prompt's last token as its input."""
            decoder = self.fallback_sampler
            if not isinstance(decoder, BatchDecoder):
                return super()._step()
            inputs, told = self._next_tokens, self._next_logprobs
            self._current_tokens, self._current_logprobs = inputs, told
            self._plan, self._next_tokens, self._next_logprobs, tokens = decoder.step(
                self._plan, self.samplers, inputs, self.model, self.prompt_cache, self.tokens
            )
            # What is in the KV cache now.
            for known, token in zip(self.tokens, tokens, strict=True):
                known.append(token)
            return tokens, told

    return DecodingBatch


def _prefill_batch(base: Any) -> Any:
    class PrefillBatch(base):  # type: ignore[misc]
        """Prompts that are processed together, less a copy before every first token.

        Where all prompts are done at once, which is the rule, their caches are handed over to the
        decoding batch; mlx-lm copies them and cuts both copies down. And prompts whose rows want
        it are scored as they pass.
        """

        model: Any
        prefill_step_size: int

        def prompt(self, tokens: list[list[int]]) -> None:
            """Process the next `tokens` of every prompt."""
            rows = [_wanting(sampler) for sampler in self.samplers]
            if not any(rows):
                super().prompt(tokens)
                return
            model = self.model
            try:
                # Each part is a step of its own, not one of mlx-lm's loop: that tells the caches
                # the lengths of all parts at once, which state space models (`ssm_attn`) would
                # read beyond the end of the first.
                for part in parts(tokens, rows, self.prefill_step_size):
                    self.model = ScoringModel(model, rows, list(map(len, part)))
                    super().prompt(part)
            finally:
                self.model = model

        def split(self, indices: Sequence[int]) -> Any:
            """Take the sequences `indices` out into a batch of their own."""
            if len(indices) < len(self.uids):
                return super().split(indices)
            whole = self.__class__.__new__(self.__class__)
            whole.__dict__.update(self.__dict__)
            for name in PER_PROMPT:
                setattr(self, name, [])
            return whole

    return PrefillBatch


def _wanting(sampler: Any) -> PromptScores | None:
    """The scores of a row that lacks some."""
    scores: PromptScores | None = getattr(sampler, "prompt_scores", None)
    return scores if scores is not None and scores.wanting else None
