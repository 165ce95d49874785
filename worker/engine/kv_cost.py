"""What a model's caches take, measured from the shapes of its own, and what work on them takes.

mlx-lm's caches hold a batch's rows in one array a layer, padded to the longest, and make it longer
by `STEP` tokens at a time. Whatever changes such an array (a step that needs room, a row that joins
or leaves) copies it. The engine evaluates these copies layer by layer, so that a change takes what
its largest layer takes, once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

STEP = 256
"""Tokens by which mlx-lm's caches grow."""
LEAST_SLICE = 32
"""Prompt tokens that a prefill goes on by however short memory is."""
PART_BYTES = 2**25
"""Logits in float32 that are computed at once where prompts are scored."""
LEAST_PART = 8
"""But of each prompt at least so many tokens': below, the model's work is lost in its own overhead.
There is then also a size for every step of up to 512 tokens that leaves no remainder of a single
one."""
_SCORED_COPIES = 4
"""As the model has made them, in float32, and of one prompt two more copies for a moment.
`supervisor/models/estimate/` charges the sum."""


@dataclass(frozen=True, slots=True)
class Part:
    """One cache of one sequence, in bytes: `per_token` of each token that it keeps, which are the
    last `window` ones, None = all; `fixed` whatever its length. One that is `chunked` cuts off what
    has left its window before a step, and then grows as others do."""

    per_token: int = 0
    window: int | None = None
    fixed: int = 0
    chunked: bool = False

    def bytes_at(self, tokens: int, chunk: int) -> int:
        """With arrays for `tokens`, behind a step of `chunk` tokens, which a window keeps as well
        until the next step; 0 = it has been decoded from."""
        if self.window is None:
            return self.per_token * tokens + self.fixed
        beyond = rounded(max(chunk, 1)) if self.chunked else max(chunk - 1, 0)
        return self.per_token * min(tokens, self.window + beyond) + self.fixed


@dataclass(frozen=True, slots=True)
class KvCost:
    """`layers` are what each layer keeps, some of them in several parts."""

    layers: tuple[tuple[Part, ...], ...]
    _kinds: tuple[tuple[tuple[Part, ...], int], ...] = field(init=False, repr=False, compare=False)
    """Layers that are alike, and how many there are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kinds", tuple(Counter(self.layers).items()))

    def held(self, rows: int, tokens: int, chunk: int = 0) -> int:
        """Bytes of a batch whose arrays have room for `tokens`; see `Part.bytes_at`."""
        return rows * sum(
            count * part.bytes_at(tokens, chunk) for parts, count in self._kinds for part in parts
        )

    def largest(self, rows: int, tokens: int, chunk: int = 0) -> int:
        """Bytes of its largest layer: what a change that is made layer by layer takes besides."""
        layers = (sum(part.bytes_at(tokens, chunk) for part in parts) for parts, _ in self._kinds)
        return rows * max(layers, default=0)


def rounded(tokens: int) -> int:
    """Room for `tokens`, allocated from the start."""
    return -(-tokens // STEP) * STEP


def grown(tokens: int) -> int:
    """The most room that arrays have when a step has made them hold `tokens`: they grow from where
    they are, which need not be a multiple of `STEP`."""
    return tokens + STEP - 1


def measure(caches: Sequence[Any]) -> KvCost:
    """The cost of `caches`, one a layer, through which one token has gone. Nothing is computed: of
    a lazy array shape and type are known."""
    return KvCost(tuple(tuple(_parts(cache)) for cache in caches))


def _parts(cache: Any) -> Iterator[Part]:
    if isinstance(several := getattr(cache, "caches", None), Sequence):
        for each in several:
            yield from _parts(each)
        return
    if hasattr(cache, "keys") and hasattr(cache, "values"):
        chunk = getattr(cache, "chunk_size", None)
        window = getattr(cache, "max_size", None) or chunk
        arrays = [*arrays_in(cache.keys), *arrays_in(cache.values)]
        # Quantized ones have several arrays; of all the tokens are the axis before the last.
        each = sum(_bytes(array) // max(1, array.shape[-2]) for array in arrays)
        yield Part(each, window, chunked=chunk is not None)
        return
    yield Part(fixed=sum(map(_bytes, arrays_in(getattr(cache, "state", None)))))


def arrays_in(value: Any) -> Iterator[Any]:
    """The arrays in lists and tuples of them; other values hold nothing to speak of."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from arrays_in(each)
    elif hasattr(value, "nbytes") and hasattr(value, "shape"):
        yield value


def _bytes(array: Any) -> int:
    return int(array.nbytes)


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step takes besides caches, in bytes, and gives back: see `wire.frames.Allowance`."""

    prompt_token: int = 0
    score: int = 0
    row: int = 0
    logits: int = 0
    """Of one token, in float32."""

    def prefill(self, tokens: int, context: int, *, scored: bool = False) -> int:
        """A prefill step of `tokens`, all prompts together, of which the longest has `context`
        behind it in the end; `scored`: their logits are looked at, a part of them at a time."""
        read = min(_SCORED_COPIES * self.logits * tokens, self._scored_most) if scored else 0
        return tokens * (self.prompt_token + self.score * rounded(context)) + read

    @property
    def _scored_most(self) -> int:
        return _SCORED_COPIES * max(PART_BYTES, LEAST_PART * self.logits)

    def decode(self, rows: int) -> int:
        return rows * self.row

    def slice_within(self, size: int, context: int, *, scored: bool = False) -> int:
        """Tokens of the largest prefill step that takes `size` bytes at most."""
        each = self.prompt_token + self.score * rounded(context)
        if scored:
            whole = size - self._scored_most
            few = size // max(1, each + _SCORED_COPIES * self.logits)
            return max(LEAST_PART, few, whole // max(1, each) if whole > 0 else 0)
        return max(LEAST_SLICE, size // each) if each else 2**31


@dataclass(slots=True)
class Corrections:
    """By kind of step, how much more it took than was reckoned: a step's cost is what the files of
    a model say, which is a guess. Only ever upwards."""

    _factors: dict[str, float] = field(default_factory=dict)

    def of(self, kind: str, unknown: float = 1.0) -> float:
        """`unknown` where no such step has been seen."""
        return self._factors.get(kind, unknown)

    def observe(self, kind: str, reckoned: int, measured: int) -> None:
        """A step that was `reckoned` to take so much, without any correction, took `measured`."""
        if reckoned <= 0:
            return
        known = self._factors.setdefault(kind, 1.0)
        if measured > reckoned * known:
            # A little more, so that steps that differ by little do not each change it.
            self._factors[kind] = 1.1 * measured / reckoned
