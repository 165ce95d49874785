"""mlx-lm's batches in classes of our own: how prompts are processed and tokens decoded.

`Batches` makes them and looks at what results; whatever is missing raises `Unloadable`.
`docs/upgrading-mlx-lm.md` says what each check guards, and what none can. Which sequences are in
which batch is `worker.engine.sequences`' business; mlx-lm's own owner of batches, `BatchGenerator`,
knows but one of each kind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import mlx.core as mx

from worker.engine.decoding import BatchDecoder
from worker.engine.kv_cost import arrays_in
from worker.engine.mlx_lm_compat import demand, find, make_prompt_cache, unfit
from worker.engine.mlx_lm_expected import GENERATION_BATCH, PER_PROMPT, PROMPT_BATCH
from worker.engine.prompt_scores import PromptScores, ScoringModel, parts
from worker.engine.thread import Unloadable

_eval: Any = mx.eval

_BOUNDED = ("ArraysCache", "RotatingKVCache")
"""Kinds of cache that hold a state or a window."""


class NextToken(NamedTuple):
    """A token that a batch has computed and not returned yet, with its sequence's state."""

    token: int
    logprobs: Any
    row: Any
    left: int
    """Tokens that may follow it."""
    stops: Any


@dataclass(slots=True, eq=False)
class Pending:
    """One sequence outside a batch, with all that it needs to go on. `row` is its `BatchRow`."""

    uid: int
    rest: list[int]
    """Tokens that are to follow those in the cache before it decodes: never none, for the last one
    is the first decode step's input."""
    row: Any
    most: int
    """Tokens it may still generate."""
    stops: Any
    cache: Any = None
    """Of one sequence, an entry a layer; None = empty."""
    known: list[int] = field(default_factory=list)
    """Tokens in the cache."""

    def drop(self) -> None:
        """Keep no cache: all tokens are to be processed again."""
        self.rest, self.known, self.cache = [*self.known, *self.rest], [], None
        if self.row.prompt_scores is not None:
            self.row.prompt_scores.restart()

    @property
    def length(self) -> int:
        """Tokens that its cache has when it begins to decode."""
        return len(self.known) + len(self.rest)


class Batches:
    """Makes batches of one model that decode with one `BatchDecoder`."""

    def __init__(
        self, model: Any, decoder: BatchDecoder, *, eos: Sequence[int] = (), step: int = 512
    ) -> None:
        """`eos` are tokens that end a sequence, `step` how many tokens of each prompt go through
        the model at once. Raises Unloadable when the batches would not decode with `decoder`."""
        self._model, self._decoder = model, decoder
        self.step = step
        self._prompts = _prefill_batch(find("mlx_lm.generate", "PromptProcessingBatch"))
        self._decoding = _decoding_batch(find("mlx_lm.generate", "GenerationBatch"))
        stops = find("mlx_lm.generate", "StopSequences")
        self.stops = stops([[token] for token in eos] or None)
        """Stop sequences of one that the `eos` end."""
        self.never_stop = stops()
        """Stop sequences of one that no token ends."""
        if kinds := _unmergeable(make_prompt_cache(model)):
            raise Unloadable(
                "Requests for this model can't be served together: mlx-lm's "
                f"{', '.join(sorted(kinds))} has no `merge`."
            )
        prompts = self._prompts.empty(model, decoder)
        decoding = self._decoding.empty(model, decoder)
        demand(decoding, GENERATION_BATCH, "GenerationBatch")
        demand(prompts, PROMPT_BATCH, "PromptProcessingBatch")
        if others := sorted(vars(prompts).keys() - PROMPT_BATCH):
            raise unfit(f"a PromptProcessingBatch has {', '.join(others)} besides")
        for batch in (decoding, prompts):
            if batch.fallback_sampler is not decoder:
                raise unfit("a batch does not keep the sampler that it is given")

    @property
    def grows(self) -> bool:
        """Whether a sequence's cache grows with its length, without a bound."""
        return any(map(_grows, make_prompt_cache(self._model)))

    def prompts(self, sequences: Sequence[Pending]) -> Any:
        """A batch of prompts, which takes over the caches of the `sequences`. Those that hold
        something are copied layer by layer."""
        caches = [each.cache or make_prompt_cache(self._model) for each in sequences]
        merged = any(each.cache for each in sequences)
        for each in sequences:
            each.cache = None
        batch = self._prompts(
            model=self._model,
            uids=[each.uid for each in sequences],
            caches=caches,
            tokens=[each.known for each in sequences],
            prefill_step_size=self.step,
            samplers=[each.row for each in sequences],
            fallback_sampler=self._decoder,
            logits_processors=[() for _ in sequences],
            stop_sequences=[each.stops for each in sequences],
            max_tokens=[each.most for each in sequences],
        )
        if merged:
            del caches
            settle(batch.prompt_cache)
        return batch

    def decoding(self, prompts: Any, last: Sequence[int]) -> Any:
        """The batch that decodes the sequences of `prompts`, whose tokens are in their caches but
        for the `last` ones. Queues the first step. `prompts` is used up."""
        batch = self._decoding(
            model=prompts.model,
            uids=prompts.uids,
            inputs=mx.array(list(last)),
            prompt_cache=prompts.prompt_cache,
            tokens=prompts.tokens,
            samplers=prompts.samplers,
            fallback_sampler=prompts.fallback_sampler,
            logits_processors=prompts.logits_processors,
            stop_sequences=prompts.stop_sequences,
            max_tokens=prompts.max_tokens,
        )
        for name in PER_PROMPT:
            setattr(prompts, name, [])
        return batch


def _unmergeable(cache: Sequence[Any]) -> set[str]:
    """The kinds of a model's caches that mlx-lm can make no batch of."""
    found: set[str] = set()
    for layer in cache:
        if (inner := getattr(layer, "caches", None)) is not None:
            found |= _unmergeable(inner)
        elif not hasattr(layer, "merge"):
            found.add(type(layer).__name__)
    return found


def room(cache: Sequence[Any]) -> int | None:
    """Tokens that the arrays of a batch's cache have room for before they grow; None = none of them
    grows. Computes nothing."""
    for layer in cache:
        inner = getattr(layer, "caches", None)
        if inner is not None:
            found = room(inner)
        else:
            keys = getattr(layer, "keys", None)
            window = hasattr(layer, "max_size") or hasattr(layer, "chunk_size")
            found = keys.shape[-2] if isinstance(keys, mx.array) and not window else None
        if found is not None:
            return found
    return None


def _compact(cache: Sequence[Any]) -> None:
    """Let go of what has been cut off: to MLX a slice is a view, which keeps the whole."""
    for layer in cache:
        if (inner := getattr(layer, "caches", None)) is not None:
            _compact(inner)
        elif isinstance(getattr(layer, "keys", None), mx.array):
            layer.keys, layer.values = mx.contiguous(layer.keys), mx.contiguous(layer.values)
        elif isinstance(states := getattr(layer, "cache", None), list):
            layer.cache = [None if state is None else mx.contiguous(state) for state in states]


def settle(*caches: Sequence[Any]) -> None:
    """Compute what caches have been cut down, copied or padded to. Blocks.

    One array after the other, those of a layer next to each other: at once, the old and the new of
    every layer would be there, and each operation's result on the way from one to the other.
    `caches` that come from one are settled together: what they come from goes when the last of them
    is done.
    """
    for layers in zip_longest(*caches):
        found = [layer for layer in layers if layer is not None]
        for arrays in zip_longest(*map(_arrays, found)):
            for array in arrays:
                _eval(array)
        _eval([layer.state for layer in found])


def _arrays(layer: Any) -> Iterator[mx.array]:
    """Those of a layer's arrays that grow with rows and tokens."""
    if (inner := getattr(layer, "caches", None)) is not None:
        yield from chain.from_iterable(map(_arrays, inner))
    elif hasattr(layer, "keys"):
        yield from arrays_in([layer.keys, layer.values])
    else:
        yield from arrays_in(layer.state)


def take_out(batch: Any, at: int, *, keep: bool) -> Any:
    """Take a row out of a batch, with a cache of its own if `keep`, else None. The batch may have
    no rows then. Blocks until both are computed."""
    cache = batch.extract_cache(at) if keep else None
    _compact(cache or ())
    batch.filter([row for row in range(len(batch.uids)) if row != at])
    settle(cache or (), batch.prompt_cache)
    return cache


def _grows(layer: Any) -> bool:
    inner = getattr(layer, "caches", None)
    if inner is not None:
        return any(map(_grows, inner))
    return not any(each.__name__ in _BOUNDED for each in type(layer).__mro__)


def _decoding_batch(base: Any) -> Any:
    class DecodingBatch(base):  # type: ignore[misc]
        """Sequences that decode together, by a `BatchDecoder`."""

        _plan: Any = None
        _next_tokens: Any
        _next_logprobs: Any
        _unsettled = False
        """Whether rows have come or gone since the last step."""

        def _step(self) -> Any:
            """Queue the next token of every sequence; return the tokens of the step before and what
            is told about them. A sequence's first step has its prompt's last token as its input."""
            self.settle()
            inputs, told = self._next_tokens, self._next_logprobs
            self._current_tokens, self._current_logprobs = inputs, told
            self._plan, self._next_tokens, self._next_logprobs, tokens = self.fallback_sampler.step(
                self._plan, self.samplers, inputs, self.model, self.prompt_cache, self.tokens
            )
            # What is in the KV cache now.
            for known, token in zip(self.tokens, tokens, strict=True):
                known.append(token)
            return tokens, told

        def settle(self) -> None:
            """Compute what the cache has become by rows that have come or gone. Blocks."""
            if self._unsettled:
                self._unsettled = False
                settle(self.prompt_cache)

        def filter(self, keep: list[int]) -> None:
            super().filter(keep)
            _compact(self.prompt_cache)
            self._unsettled = True

        def extend(self, batch: Any) -> None:
            super().extend(batch)
            self._unsettled = True

        def split(self, indices: Sequence[int]) -> Any:
            """Take the sequences `indices`, not all there are, out into a batch of their own."""
            taken = self.__class__.__new__(self.__class__)
            taken.__dict__.update(self.__dict__)
            taken.prompt_cache = copy.deepcopy(self.prompt_cache)  # arrays are shared
            rest = set(range(len(self.uids))) - set(indices)
            taken.filter(sorted(indices))
            self.filter(sorted(rest))
            settle(taken.prompt_cache, self.prompt_cache)
            self._unsettled = taken._unsettled = False
            # Not filtered by mlx-lm, and read by nobody before the next step replaces them.
            taken._current_tokens, taken._current_logprobs = None, []
            self._current_tokens, self._current_logprobs = None, []
            return taken

        def next_tokens(self, uids: Sequence[int]) -> dict[int, NextToken]:
            """By uid, the token that each of these sequences has next. Waits until the batch's are
            computed."""
            tokens = self._next_tokens.tolist()
            places = {uid: self.uids.index(uid) for uid in uids}
            return {
                uid: NextToken(
                    token=tokens[at],
                    logprobs=self._next_logprobs[at],
                    row=self.samplers[at],
                    left=self.max_tokens[at] - self._num_tokens[at] - 1,
                    stops=self.stop_sequences[at],
                )
                for uid, at in places.items()
            }

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
                self._process(tokens)
                return
            model = self.model
            try:
                # Each part is a step of its own, not one of mlx-lm's loop: that tells the caches
                # the lengths of all parts at once, which state space models (`ssm_attn`) would
                # read beyond the end of the first.
                for part in parts(tokens, rows, self.prefill_step_size):
                    self.model = ScoringModel(model, rows, list(map(len, part)))
                    self._process(part)
            finally:
                self.model = model

        def _process(self, tokens: list[list[int]]) -> None:
            """Parts of different length are padded on the right, and moved there in the caches
            behind the step: by mlx-lm in all layers at once."""
            lengths = [len(part) for part in tokens]
            padding = [max(lengths) - length for length in lengths]
            if not any(padding):
                super().prompt(tokens)
                return
            for layer in self.prompt_cache:
                layer.prepare(lengths=lengths, right_padding=padding)
            super().prompt([part + [0] * pad for part, pad in zip(tokens, padding, strict=True)])
            for known, pad in zip(self.tokens, padding, strict=True):
                del known[len(known) - pad :]
            for layer in self.prompt_cache:
                layer.finalize()
            settle(self.prompt_cache)
            mx.clear_cache()

        def filter(self, keep: list[int]) -> None:
            super().filter(keep)
            _compact(self.prompt_cache)

        def split(self, indices: Sequence[int]) -> Any:
            """Take the sequences `indices` out into a batch of their own."""
            if len(indices) < len(self.uids):
                taken = super().split(indices)
                settle(taken.prompt_cache, self.prompt_cache)
                return taken
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
