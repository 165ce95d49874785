"""One decode step for rows of every kind in one batch: plain, seeded, penalised, constrained.

What a request wants of its tokens is a `BatchRow`. What all rows share is the `BatchDecoder`, which
stands in the place of a batch's sampler; `mlx_lm_generator` calls its `step` instead of mlx-lm's
own.

A step is queued before the previous one's tokens are read, as in mlx-lm, unless rows depend on the
tokens themselves (grammars, penalties). Then the model's work is started first, and what those
tokens mean is found out on this thread beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from worker.engine.rows import (
    MOST_LOGPROBS,
    NEVER,
    BatchPlan,
    BatchRow,
    GroupLogprobs,
    RowGroup,
    TokenLogprobs,
    pad,
)
from worker.engine.sampling import (
    COIN,
    TOKEN,
    apply_min_p,
    apply_top_k,
    apply_top_p,
    apply_xtc,
    draw,
    flip,
)

_async_eval: Any = mx.async_eval

Ints = npt.NDArray[np.int32]


MaskFiller = Callable[[Sequence[Any], int], Ints]
"""(constraints, words) → which tokens may come next, as packed masks, int32 [constraints, words]:
bit i of word i // 32, least significant first, is set when token i is allowed."""


@dataclass(frozen=True, slots=True)
class BatchDecoder:
    """What all rows of a generator share. `eos` are the ends of sequence, which XTC never removes.

    A row whose grammar allows nothing gets an end of sequence, or token 0 where there is none.
    """

    fill: MaskFiller | None = None
    eos: tuple[int, ...] = ()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """mlx-lm's idea of a sampler; never called."""
        return mx.argmax(logprobs, axis=-1)

    def step(
        self,
        plan: BatchPlan | None,
        rows: Sequence[BatchRow],
        inputs: mx.array,
        model: Any,
        cache: Any,
        known: Sequence[Sequence[int]],
    ) -> tuple[BatchPlan, mx.array, list[TokenLogprobs | None], list[int]]:
        """Queue the next token of every sequence.

        `rows` are the sequences' samplers, `inputs` their last tokens [rows], `known` the tokens in
        each one's `cache`. `plan` is what the last step returned first, None at first; then come
        the next tokens [rows], what is told about each, and the `inputs` as a list.
        """
        if plan is None or plan.rows != rows:
            plan = BatchPlan(rows)
        logits = model(inputs[:, None], cache=cache)[:, -1, :]
        tokens: list[int] = []
        bound: list[int] = []
        packed: Ints | None = None
        if plan.reads:
            _async_eval(logits)
            tokens = _read(inputs)
            plan.push(tokens)
            bound = plan.bound()
            packed, bound = _masks(self, plan, bound, logits.shape[-1])

        told: list[TokenLogprobs | None]
        extras: list[mx.array] = []
        if plan.is_plain and not bound:
            following = mx.argmax(logits, axis=-1)
            told = [None] * len(plan.rows)
        else:
            logits = logits.astype(mx.float32)
            logits = _edit(logits, self, plan, tokens, known)
            if bound:
                logits = _mask(logits, _allowed(self, packed, logits.shape[-1]), bound)
            following, told, extras = _choose(logits, self, plan)
        _async_eval(following, extras)
        for row in plan.rows:
            row.advance()
        return plan, following, told, tokens or _read(inputs)


# ── the parts of a step ──────────────────────────────────────────────────────────────────────────


def _read(tokens: mx.array) -> list[int]:
    """Waits until they are computed."""
    read: Any = tokens.tolist()
    return list(read)


def _masks(
    decoder: BatchDecoder, plan: BatchPlan, bound: list[int], vocabulary: int
) -> tuple[Ints | None, list[int]]:
    """(packed masks of the rows `bound`, those rows less the ones whose grammar fails)."""
    if not bound:
        return None, bound
    assert decoder.fill is not None, "constrained rows need a decoder that can fill masks"
    words = -(-vocabulary // 32)
    try:
        return decoder.fill([plan.rows[i].constraint for i in bound], words), bound
    except Exception:  # noqa: BLE001
        return _masks_of_each(decoder.fill, plan, bound, words)


def _masks_of_each(
    fill: MaskFiller, plan: BatchPlan, bound: list[int], words: int
) -> tuple[Ints | None, list[int]]:
    """The same one by one, to find the row that fails."""
    packed, sound = [], []
    for i in bound:
        try:
            packed.append(fill([plan.rows[i].constraint], words))
            sound.append(i)
        except Exception as error:  # noqa: BLE001
            plan.rows[i].fault = error
    return (np.concatenate(packed) if packed else None), sound


def _allowed(decoder: BatchDecoder, packed: Ints | None, vocabulary: int) -> mx.array:
    """Which tokens the rows with these masks may have, bool [rows, vocabulary]."""
    assert packed is not None
    packed = np.ascontiguousarray(packed)
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
    decoder: BatchDecoder,
    plan: BatchPlan,
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
        logits = _punish(logits, plan.repeating, *pad(windows))
    if plan.counting:
        ids, amounts = pad([plan.rows[i].penalties() for i in plan.counting])
        if ids.shape[1]:
            logits = _add(logits, plan.counting, ids, -amounts)
    waiting = [i for i in plan.waiting if plan.rows[i].position < plan.rows[i].min_tokens]
    if waiting and decoder.eos:
        places = mx.array(waiting)[:, None], mx.array(decoder.eos)[None]
        logits[places] = NEVER
    return logits


def _mask(logits: mx.array, allowed: mx.array, rows: list[int]) -> mx.array:
    if len(rows) == logits.shape[0]:
        return mx.where(allowed, logits, -math.inf)
    places = mx.array(rows)
    logits[places] = mx.where(allowed, logits[places], -math.inf)
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


def _choose(
    logits: mx.array, decoder: BatchDecoder, plan: BatchPlan
) -> tuple[mx.array, list[TokenLogprobs | None], list[mx.array]]:
    """The rows' next tokens, what is told about each, and the arrays that this needs."""
    told: list[TokenLogprobs | None] = [None] * len(plan.rows)
    chosen, extras = [], []
    for group in plan.groups:
        own = logits if group.is_all else logits[group.places]
        tokens = _sample(own, decoder, group)
        chosen.append(tokens)
        if group.asking:
            tell = _logprobs_of(own, tokens, group)
            extras += [tell.sampled, tell.ids, tell.values]
            for place, i in enumerate(group.asking):
                count = group.rows[i].logprobs
                assert count is not None
                told[group.indices[i]] = TokenLogprobs(tell, place, count)
    if len(chosen) == 1:
        return chosen[0], told, extras
    return mx.concatenate(chosen)[plan.back], told, extras


def _sample(logits: mx.array, decoder: BatchDecoder, group: RowGroup) -> mx.array:
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
        logits = apply_xtc(logits, probability, threshold, coins, decoder.eos)
    if wanted.top_k:
        logits = apply_top_k(logits, wanted.top_k)
    return draw(logits, group.column("temperature"), group.keys(TOKEN))


def _logprobs_of(logits: mx.array, tokens: mx.array, group: RowGroup) -> GroupLogprobs:
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
    return GroupLogprobs(sampled, ids, values)
