"""One decode step for rows of every kind in one batch: plain, seeded, penalised, constrained.

`Batch` is mlx-lm's `GenerationBatch` with a step of its own. What a request wants of its tokens is
a `Row`, which travels through mlx-lm where a sampler would: filtered, extended and split with the
batch. What all rows share is the `Decoder`, in the place of the generator's fallback sampler.

A step is queued before the previous one's tokens are read, as in mlx-lm, unless rows depend on the
tokens themselves (grammars, penalties). Then the model's work is started first, and what those
tokens mean is found out on this thread beside it.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from worker.engine import loading
from worker.engine.sampling import (
    COIN,
    TOKEN,
    Parameters,
    apply_min_p,
    apply_top_k,
    apply_top_p,
    apply_xtc,
    draw,
    flip,
    key,
)
from worker.engine.thread import Constraint

loading.import_mlx_lm()  # without its side effect on the file limit
mlx_generate: Any = importlib.import_module("mlx_lm.generate")
"""The module: the package has a function of the same name."""
_GenerationBatch: Any = mlx_generate.GenerationBatch
_async_eval: Any = mx.async_eval

Ints = npt.NDArray[np.int32]

_NEVER = -1e30
"""A logit that loses against every other but those a grammar forbids: if the end of sequence is all
that a grammar allows, it beats `min_tokens`. Finite after division by any temperature."""
MOST_LOGPROBS = 20
"""Alternatives that can be told with a token."""


class MaskFiller(Protocol):
    """Which tokens may come next, of several constraints at once."""

    def __call__(self, constraints: Sequence[Any], words: int) -> Ints:
        """Packed masks, int32 [constraints, `words`]: bit i of word i // 32, least significant
        first, is set when token i is allowed."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """What all rows of a generator share. `xtc_kept` are tokens that XTC never removes.

    A row whose grammar allows nothing gets an end of sequence, or token 0 where there is none.
    """

    fill: MaskFiller | None = None
    eos: tuple[int, ...] = ()
    xtc_kept: tuple[int, ...] = ()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """mlx-lm's idea of a sampler; `Batch` never calls it."""
        return mx.argmax(logprobs, axis=-1)


class Row:
    """What one request wants, and how far it is. Belongs to one insertion into a generator.

    `emitted` are output tokens that are part of this insertion's prompt, because another worker has
    generated them: randomness, penalties and `min_tokens` go on from there. `constraint` must have
    been told of them. `logprobs` is how many alternatives are told, None = no log probabilities.
    """

    __slots__ = (
        "_counts",
        "constraint",
        "logprobs",
        "min_tokens",
        "parameters",
        "position",
        "steps",
    )

    def __init__(
        self,
        parameters: Parameters,
        *,
        emitted: Sequence[int] = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.parameters = parameters
        self.min_tokens = min_tokens
        self.logprobs = None if logprobs is None else min(logprobs, MOST_LOGPROBS)
        self.constraint = constraint
        self.position = len(emitted)
        """Index in the whole output of the token that the next step samples."""
        self.steps = 0
        """Steps so far; the first one's input is the prompt's last token, not an output."""
        self._counts = Counter(emitted) if parameters.counts else None

    @property
    def reads(self) -> bool:
        """Whether a step depends on what the tokens are that came before it."""
        wanted = self.parameters
        return self.constraint is not None or wanted.counts or bool(wanted.repetition_context)

    def push(self, token: int) -> None:
        """The step's input; only rows that read need to be told."""
        if self.steps == 0:
            return
        if self.constraint is not None:
            self.constraint.push(token)
        if self._counts is not None:
            self._counts[token] += 1

    def restart(self, token: int) -> None:
        """The row leaves its batch with `token` as the last of the output, and will be inserted
        again with it as its prompt's last token."""
        self.push(token)
        self.steps = 0

    def advance(self) -> None:
        """A step has been queued."""
        self.steps += 1
        self.position += 1

    def penalties(self) -> tuple[list[int], list[float]]:
        """Tokens of the output and what OpenAI's formula subtracts from their logits."""
        presence, frequency = self.parameters.presence_penalty, self.parameters.frequency_penalty
        counts: dict[int, int] = self._counts or {}
        return list(counts), [presence + frequency * count for count in counts.values()]


@dataclass(slots=True)
class _Told:
    """The log probabilities of some rows of one step: of the tokens sampled [rows], and of the
    likeliest ones, likeliest first [rows, at most 20]."""

    sampled: mx.array
    ids: mx.array
    values: mx.array
    _read: Any = None

    def read(self) -> tuple[list[float], list[list[int]], list[list[float]]]:
        """The three as lists."""
        if self._read is None:
            self._read = self.sampled.tolist(), self.ids.tolist(), self.values.tolist()
        sampled, ids, values = self._read
        return sampled, ids, values


@dataclass(frozen=True, slots=True)
class Logprobs:
    """One token's natural log probabilities: of the model's distribution with biases, penalties
    and grammar, before temperature and filters. What a `Response.logprobs` holds for rows that
    asked. Reading them blocks until their step is computed, which that of the token was too."""

    _told: _Told
    _index: int
    _count: int

    @property
    def sampled(self) -> float:
        return self._told.read()[0][self._index]

    @property
    def top(self) -> list[tuple[int, float]]:
        """(id, value) of as many tokens as were asked for, likeliest first; of fewer where biases
        and grammar allow fewer, so that every value is finite."""
        _, ids, values = self._told.read()
        pairs = zip(ids[self._index], values[self._index], strict=True)
        return [(token, value) for token, value in pairs if value > _NEVER / 2][: self._count]


@dataclass(slots=True)
class _Group:
    """Rows that go through the same filters, and their parameters, [rows, 1] each."""

    indices: list[int]
    rows: list[Row]
    is_all: bool
    is_constrained: bool
    places: mx.array = field(init=False)
    asking: list[int] = field(init=False)
    """Which of the group's rows want log probabilities."""

    def __post_init__(self) -> None:
        self.places = mx.array(self.indices)
        self.asking = [i for i, row in enumerate(self.rows) if row.logprobs is not None]
        self._columns = {}

    _columns: dict[str, mx.array] = field(init=False)

    def column(self, name: str) -> mx.array:
        """The rows' values of a parameter."""
        if name not in self._columns:
            values = [getattr(row.parameters, name) for row in self.rows]
            self._columns[name] = mx.array(values, dtype=mx.float32)[:, None]
        return self._columns[name]

    def keys(self, use: int) -> mx.array:
        words = [key(row.parameters.seed, row.position, use) for row in self.rows]
        return mx.array(np.array(words, dtype=np.uint32))


class _Plan:
    """How the rows of one composition of the batch are decoded; made when it changes."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.reads = [i for i, row in enumerate(rows) if row.reads]
        self.constrained = [i for i, row in enumerate(rows) if row.constraint is not None]
        self.biased = [i for i, row in enumerate(rows) if row.parameters.logit_bias]
        self.counting = [i for i, row in enumerate(rows) if row.parameters.counts]
        self.repeating = [i for i, row in enumerate(rows) if row.parameters.repetition_context]
        self.waiting = [i for i, row in enumerate(rows) if row.min_tokens]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_way(row), []).append(i)
        self.groups = [
            _Group(indices, [rows[i] for i in indices], len(groups) == 1, bool(way[0]))
            for way, indices in groups.items()
        ]
        order = [i for group in self.groups for i in group.indices]
        self.back = mx.array([order.index(i) for i in range(len(order))])
        """Where each row's token is among those of the groups, one after the other."""
        self.bias = _pad([zip(*rows[i].parameters.logit_bias, strict=True) for i in self.biased])
        self.is_plain = (
            not (self.biased or self.counting or self.repeating or self.waiting)
            and len(self.groups) == 1
            and not any(_way(rows[0]))
            and not self.groups[0].asking
        )


def _way(row: Row) -> tuple[Any, ...]:
    """What must be equal for rows to be filtered together; all false for a greedy plain row."""
    wanted = row.parameters
    return (
        row.constraint is not None,
        wanted.temperature > 0,
        wanted.top_p < 1,
        wanted.min_p > 0,
        wanted.xtc_probability > 0,
        wanted.top_k,
    )


class Batch(_GenerationBatch):  # type: ignore[misc]
    """mlx-lm's batch of sequences that decode together; see `make_generator`."""

    _plan: _Plan | None = None
    _next_tokens: mx.array
    _next_logprobs: list[Logprobs | None]

    def _step(self) -> tuple[list[int], list[Logprobs | None]]:
        """Queue the next token of every row; return the tokens of the step before and what is told
        about them. A row's first step has the prompt's last token as its input."""
        decoder = self.fallback_sampler
        if not isinstance(decoder, Decoder):
            stepped: tuple[list[int], list[Any]] = super()._step()
            return stepped
        inputs, told = self._next_tokens, self._next_logprobs
        self._current_tokens, self._current_logprobs = inputs, told
        plan = self._plan
        if plan is None or plan.rows != self.samplers:
            plan = self._plan = _Plan(self.samplers)

        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        tokens: list[int] = []
        masks = None
        if plan.reads:
            _async_eval(logits)
            tokens = _read(inputs)
            for i in plan.reads:
                plan.rows[i].push(tokens[i])
            if plan.constrained:
                masks = _allowed(decoder, plan, logits.shape[-1])

        extras: list[mx.array] = []
        if plan.is_plain:
            self._next_tokens = mx.argmax(logits, axis=-1)
            self._next_logprobs = [None] * len(plan.rows)
        else:
            logits = logits.astype(mx.float32)
            logits = _edit(logits, decoder, plan, tokens, self.tokens)
            self._next_tokens, self._next_logprobs, extras = _choose(logits, decoder, plan, masks)
        _async_eval(self._next_tokens, extras)
        for row in plan.rows:
            row.advance()

        tokens = tokens or _read(inputs)
        # What is in the KV cache now.
        for known, token in zip(self.tokens, tokens, strict=True):
            known.append(token)
        return tokens, told


def make_generator(model: Any, decoder: Decoder, **options: Any) -> Any:
    """A `BatchGenerator` that decodes with `Batch`; `options` are its constructor's. Every sequence
    must be inserted with a `Row` of its own as its sampler, and without logits processors.

    mlx-lm offers no way to choose the class of its generation batches, but looks the name up when
    it makes one. The replacement steps as mlx-lm does for generators that have no Decoder.
    """
    mlx_generate.GenerationBatch = Batch
    return mlx_generate.BatchGenerator(model, sampler=decoder, **options)


# ── the parts of a step ──────────────────────────────────────────────────────────────────────────


def _read(tokens: mx.array) -> list[int]:
    """Waits until they are computed."""
    read: Any = tokens.tolist()
    return list(read)


def _allowed(decoder: Decoder, plan: _Plan, vocabulary: int) -> mx.array:
    """Which tokens the constrained rows may have, bool [constrained rows, vocabulary]."""
    assert decoder.fill is not None, "constrained rows need a decoder that can fill masks"
    constraints = [plan.rows[i].constraint for i in plan.constrained]
    packed = np.ascontiguousarray(decoder.fill(constraints, -(-vocabulary // 32)))
    bits = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")[:, :vocabulary]
    if bits.shape[1] < vocabulary:
        bits = np.pad(bits, [(0, 0), (0, vocabulary - bits.shape[1])])
    stuck = ~packed.any(axis=1)
    if stuck.any():
        for token in decoder.eos or (0,):
            bits[stuck, token] = 1
    return mx.array(np.ascontiguousarray(bits).view(np.bool_))


def _edit(
    logits: mx.array,
    decoder: Decoder,
    plan: _Plan,
    inputs: Sequence[int],
    known: Sequence[Sequence[int]],
) -> mx.array:
    """Biases, penalties and `min_tokens`: few logits of the rows that have them. `known` are each
    row's tokens, prompt included, without its input; `inputs` are only there if a row reads."""
    if plan.biased:
        logits = _add(logits, plan.biased, *plan.bias)
    if plan.repeating:
        windows = []
        for i in plan.repeating:
            size = plan.rows[i].parameters.repetition_context
            window = list(dict.fromkeys([inputs[i], *(known[i][1 - size :] if size > 1 else ())]))
            windows.append((window, [plan.rows[i].parameters.repetition_penalty] * len(window)))
        logits = _punish(logits, plan.repeating, *_pad(windows))
    if plan.counting:
        ids, amounts = _pad([plan.rows[i].penalties() for i in plan.counting])
        if ids.shape[1]:
            logits = _add(logits, plan.counting, ids, -amounts)
    waiting = [i for i in plan.waiting if plan.rows[i].position < plan.rows[i].min_tokens]
    if waiting and decoder.eos:
        places = mx.array(waiting)[:, None], mx.array(decoder.eos)[None]
        logits[places] = _NEVER
    return logits


def _add(logits: mx.array, rows: list[int], ids: mx.array, amounts: mx.array) -> mx.array:
    places = mx.array(rows)[:, None], ids
    logits[places] = logits[places] + amounts
    return logits


def _punish(logits: mx.array, rows: list[int], ids: mx.array, factors: mx.array) -> mx.array:
    """mlx-lm's repetition penalty."""
    places = mx.array(rows)[:, None], ids
    old = logits[places]
    logits[places] = mx.where(old < 0, old * factors, old / factors)
    return logits


def _pad(rows: Sequence[Any]) -> tuple[mx.array, mx.array]:
    """(ids, numbers) of each row as two arrays. Shorter rows repeat their first pair: writing the
    same value to the same place twice changes nothing."""
    pairs = [tuple(map(list, row)) for row in rows]
    width = max((len(ids) for ids, _ in pairs), default=0)
    all_ids = np.zeros((len(pairs), width), dtype=np.int32)
    all_numbers = np.zeros((len(pairs), width), dtype=np.float32)
    for place, (ids, numbers) in enumerate(pairs):
        if ids:
            all_ids[place] = ids[0]
            all_numbers[place] = numbers[0]
            all_ids[place, : len(ids)] = ids
            all_numbers[place, : len(ids)] = numbers
    return mx.array(all_ids), mx.array(all_numbers)


def _choose(
    logits: mx.array, decoder: Decoder, plan: _Plan, masks: mx.array | None
) -> tuple[mx.array, list[Logprobs | None], list[mx.array]]:
    """The rows' next tokens, what is told about each, and the arrays that this needs."""
    told: list[Logprobs | None] = [None] * len(plan.rows)
    chosen, extras = [], []
    for group in plan.groups:
        own = logits if group.is_all else logits[group.places]
        if group.is_constrained:
            assert masks is not None
            own_masks = masks
            if len(group.rows) < len(plan.constrained):
                own_masks = masks[mx.array([plan.constrained.index(i) for i in group.indices])]
            own = mx.where(own_masks, own, -math.inf)
        tokens = _sample(own, decoder, group)
        chosen.append(tokens)
        if group.asking:
            tell = _tell(own, tokens, group)
            extras += [tell.sampled, tell.ids, tell.values]
            for place, i in enumerate(group.asking):
                count = group.rows[i].logprobs
                assert count is not None
                told[group.indices[i]] = Logprobs(tell, place, count)
    if len(chosen) == 1:
        return chosen[0], told, extras
    return mx.concatenate(chosen)[plan.back], told, extras


def _sample(logits: mx.array, decoder: Decoder, group: _Group) -> mx.array:
    """One token for each of the group's rows: mlx-lm's filters in mlx-lm's order."""
    wanted = group.rows[0].parameters
    if not wanted.temperature:
        return mx.argmax(logits, axis=-1)
    if wanted.top_p < 1:
        logits = apply_top_p(logits, group.column("top_p"))
    if wanted.min_p:
        logits = apply_min_p(logits, group.column("min_p"))
    if wanted.xtc_probability:
        probability, threshold = group.column("xtc_probability"), group.column("xtc_threshold")
        coins = flip(group.keys(COIN))
        logits = apply_xtc(logits, probability, threshold, coins, decoder.xtc_kept)
    if wanted.top_k:
        logits = apply_top_k(logits, wanted.top_k)
    return draw(logits, group.column("temperature"), group.keys(TOKEN))


def _tell(logits: mx.array, tokens: mx.array, group: _Group) -> _Told:
    places = mx.array(group.asking)
    own = logits[places]
    logprobs = own - mx.logsumexp(own, axis=-1, keepdims=True)
    sampled = mx.take_along_axis(logprobs, tokens[places][:, None], axis=-1)[:, 0]
    most = min(MOST_LOGPROBS, own.shape[-1])
    # The same number for all rows, so that ties are settled as for a row alone.
    ids = mx.argpartition(-logprobs, kth=most - 1, axis=-1)[:, :most]
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    ids, values = (mx.take_along_axis(array, order, axis=-1) for array in (ids, values))
    return _Told(sampled, ids, values)
