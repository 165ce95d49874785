"""How a token is chosen: parameters, and filters over many rows at once.

The filters and their order are mlx-lm's (`make_sampler`), but each row brings its own parameters,
nothing is compiled (on the CPU that runs a C++ compiler, anew for every value), and randomness
comes from a key per row that derives from (seed, position in the output) alone. Logits are float32
of shape [rows, vocabulary]; parameters of shape [rows, 1] broadcast against them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from supervisor.errors import InvalidValue
from supervisor.wire.frames import Sampling

_COLDEST = 1e-4
"""Below it sampling is greedy in all but rounding, and its inverse would overflow."""
_HOTTEST = 1e4
"""Above it all tokens are equally likely in all but rounding; infinity times a mask is NaN."""
_STRONGEST = 1e6
"""Bound of additive biases and penalties, far from where float32 overflows."""
_XTC_USELESS = 0.5
"""Two tokens can't both be likelier than this, and XTC never removes the only one."""
_SMALL = 1024
"""Values that are sorted; more than these are halved first where that is cheaper."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a model's makers recommend in generation_config.json; these are for who says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Parameters:
    """Resolved: every number is finite, and what has no effect has its neutral value."""

    seed: int = 0
    temperature: float = 0.0
    """0 = greedy, in which case the filters are neutral."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context: int = 0
    """Tokens; 0 without a repetition penalty."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """No id twice."""

    @property
    def counts(self) -> bool:
        """Whether the penalties need to know how often each token was in the output."""
        return bool(self.presence_penalty or self.frequency_penalty)


def resolve(sampling: Sampling, defaults: Defaults) -> Parameters:
    """The request's parameters with the model's defaults for what it leaves open. Total: numbers
    out of range, infinities and NaN are taken for the nearest thing that makes sense."""
    wanted = {name: getattr(sampling, name) for name in Defaults.__dataclass_fields__}
    temperature, top_p, top_k, min_p, repetition = (
        getattr(defaults, name) if value is None else value for name, value in wanted.items()
    )
    # To mlx_lm.server 0 means no penalty as well; a division by it would be infinite.
    repetition = _within(repetition, 0.01, 100.0, 1.0) if repetition > 0 else 1.0
    context = max(0, sampling.repetition_context) if repetition != 1.0 else 0
    greedy = Parameters(
        seed=sampling.seed,
        presence_penalty=_within(sampling.presence_penalty, -_STRONGEST, _STRONGEST, 0.0),
        frequency_penalty=_within(sampling.frequency_penalty, -_STRONGEST, _STRONGEST, 0.0),
        repetition_penalty=repetition if context else 1.0,
        repetition_context=context,
        logit_bias=tuple(
            (token, _within(bias, -_STRONGEST, _STRONGEST, 0.0))
            for token, bias in dict(sampling.logit_bias).items()
        ),
    )
    if not temperature >= _COLDEST or top_p <= 0:
        return greedy
    has_xtc = 0.0 <= sampling.xtc_threshold <= _XTC_USELESS
    return replace(
        greedy,
        temperature=min(temperature, _HOTTEST),
        top_p=_within(top_p, 0.0, 1.0, 1.0),
        top_k=max(0, top_k),
        min_p=_within(min_p, 0.0, 1.0, 0.0),
        xtc_probability=_within(sampling.xtc_probability, 0.0, 1.0, 0.0) if has_xtc else 0.0,
        xtc_threshold=sampling.xtc_threshold if has_xtc else 0.1,
    )


def check(sampling: Sampling, vocabulary: int) -> None:
    """Raises InvalidValue for a bias on a token that is not one of the `vocabulary`'s ids: MLX
    would write out of bounds."""
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise InvalidValue(
                f"Token {token} of 'logit_bias' is not in this model's vocabulary of {vocabulary}.",
                param="logit_bias",
            )


def _within(value: float, low: float, high: float, default: float) -> float:
    return default if math.isnan(value) else min(max(value, low), high)


# ── randomness ───────────────────────────────────────────────────────────────────────────────────

TOKEN, COIN = 1, 2
"""What a key is for: choosing the token, XTC's coin."""


def key(seed: int, position: int, use: int) -> tuple[int, int]:
    """Two 32-bit words of an MLX key, unlike those of any other seed, position or use."""
    mixed = _mix(_mix(_mix(seed) ^ position) ^ use)
    return mixed >> 32, mixed & 0xFFFFFFFF


def _mix(value: int) -> int:
    """splitmix64's step: every bit of the result depends on every bit of `value`."""
    mask = 0xFFFFFFFFFFFFFFFF
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def draw(logits: mx.array, temperature: mx.array, keys: mx.array) -> mx.array:
    """One token id a row, [rows]; `keys` is uint32 [rows, 2]. A row alone gets the same."""
    return _draw_rows(logits * (1.0 / temperature), keys)


def flip(keys: mx.array) -> mx.array:
    """A number in [0, 1) for each key, [rows, 1]."""
    return _flip_rows(keys)[:, None]


# `categorical` over [1, V] uses its key otherwise than over [V]; vmap of the latter is
# bit-identical to a row alone.
_draw_rows = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
_flip_rows = mx.vmap(lambda key: mx.random.uniform(key=key))


# ── filters ──────────────────────────────────────────────────────────────────────────────────────


def apply_top_p(logits: mx.array, top_p: mx.array) -> mx.array:
    """Keep the likeliest tokens, up to and including the one that brings their mass to `top_p`."""
    probabilities = mx.softmax(logits, axis=-1)
    # Halving is made of partitions, which are linear on the CPU and whole sorts on a GPU.
    cheap = mx.default_device().type == mx.DeviceType.cpu
    floor = nucleus_floor(probabilities, top_p, halve=cheap)
    return mx.where(probabilities < floor, -math.inf, logits)


def nucleus_floor(probabilities: mx.array, top_p: mx.array, *, halve: bool) -> mx.array:
    """The least probability in the nucleus, [rows, 1].

    With `halve` the half that holds it is looked for until few values are left, which are sorted:
    exact too, and about a quarter of the time of MLX's sort of a whole vocabulary on the CPU.
    """
    rows, width = probabilities.shape
    goal = top_p * mx.sum(probabilities, axis=-1, keepdims=True)
    above = mx.zeros((rows, 1))
    # As integers non-negative floats keep their order, and compare faster: no NaN to look for.
    bits = probabilities.view(mx.int32)
    if halve and width > _SMALL:
        levels = math.ceil(math.log2(width / _SMALL))
        bits = mx.pad(bits, [(0, 0), (0, -width % 2**levels)])
        for _ in range(levels):
            half = bits.shape[1] // 2
            bits = mx.partition(bits, half, axis=-1)
            upper = mx.sum(bits.view(mx.float32)[:, half:], axis=-1, keepdims=True)
            is_below = above + upper < goal
            above = mx.where(is_below, above + upper, above)
            halves = bits.reshape(rows, 2, half)
            bits = halves[mx.arange(rows), mx.where(is_below[:, 0], 0, 1)]
    ranked = mx.sort(bits, axis=-1).view(mx.float32)
    mass_above = above + mx.cumsum(ranked, axis=-1, reverse=True, inclusive=False)
    dropped = mx.sum(mass_above >= goal, axis=-1, keepdims=True)
    return mx.take_along_axis(ranked, mx.minimum(dropped, ranked.shape[1] - 1), axis=-1)


def apply_min_p(logits: mx.array, min_p: mx.array) -> mx.array:
    """Keep tokens of at least `min_p` (above 0) of the likeliest one's probability."""
    floor = mx.max(logits, axis=-1, keepdims=True) + mx.log(min_p)
    return mx.where(logits < floor, -math.inf, logits)


def apply_xtc(
    logits: mx.array,
    probability: mx.array,
    threshold: mx.array,
    coins: mx.array,
    kept: Sequence[int] = (),
) -> mx.array:
    """With `probability` (`coins` decide) remove every token above `threshold` but the least likely
    of them, never those in `kept`."""
    probabilities = mx.softmax(logits, axis=-1)
    likely = mx.where(probabilities > threshold, probabilities, math.inf)
    mask = probabilities > mx.min(likely, axis=-1, keepdims=True)
    if kept:
        mask[:, mx.array(list(kept))] = False
    return mx.where(mx.logical_and(mask, coins <= probability), -math.inf, logits)


def apply_top_k(logits: mx.array, top_k: int) -> mx.array:
    """Keep the `top_k` (above 0) likeliest tokens; no limit when there are not more."""
    if top_k >= logits.shape[-1]:
        return logits
    others = mx.argpartition(-logits, kth=top_k - 1, axis=-1)[:, top_k:]
    return mx.put_along_axis(logits, others, mx.array(-math.inf, logits.dtype), axis=-1)
