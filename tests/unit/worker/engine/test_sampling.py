"""worker.engine.sampling: parameters are resolved totally; filters are mlx-lm's, row by row."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import InvalidValue
from supervisor.wire.frames import Sampling
from worker.engine import mlx_lm_compat, sampling
from worker.engine.sampling import COIN, TOKEN, Defaults, Parameters, check, key, resolve

ROWS, VOCABULARY = 6, 301


@pytest.fixture(scope="module")
def theirs() -> Any:
    """mlx-lm's own functions."""
    mlx_lm_compat.import_mlx_lm()
    from mlx_lm import sample_utils

    return sample_utils


def make_logits(seed: int, rows: int = ROWS, vocabulary: int = VOCABULARY) -> mx.array:
    """Log probabilities, which is what mlx-lm's functions take."""
    scales = 0.5 + mx.arange(rows)[:, None]
    logits = mx.random.normal((rows, vocabulary), key=mx.random.key(seed)) * scales
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def column(*values: float) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]


def same(ours: mx.array, expected: list[mx.array]) -> bool:
    return bool(mx.array_equal(ours, mx.concatenate(expected)))


# ── parameters ───────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_said_comes_from_the_model() -> None:
    defaults = Defaults(0.6, 0.9, 30, 0.05, 1.2)
    found = resolve(Sampling(seed=7), defaults)
    assert (found.temperature, found.top_p, found.top_k, found.min_p) == (0.6, 0.9, 30, 0.05)
    assert (found.repetition_penalty, found.repetition_context, found.seed) == (1.2, 20, 7)


def test_what_is_said_goes_before_the_model() -> None:
    defaults = Defaults(0.6, 0.9, 30, 0.05, 1.2)
    said = Sampling(temperature=1.5, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
    assert resolve(said, defaults) == Parameters(temperature=1.5)


@pytest.mark.parametrize(
    "greedy",
    [{"temperature": 0.0}, {"temperature": 9e-5}, {"top_p": 0.0}, {"temperature": math.nan}],
    ids=str,
)
def test_what_is_as_good_as_greedy_is_greedy(greedy: dict[str, float]) -> None:
    said = Sampling(top_k=5, min_p=0.1, xtc_probability=0.5)
    said = Sampling(**{**{n: getattr(said, n) for n in said.__struct_fields__}, **greedy})
    assert resolve(said, Defaults()) == Parameters()


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"xtc_probability": 0.5, "xtc_threshold": 0.51}, {}),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.5}, {"xtc_threshold": 0.5}),
        ({"top_k": -3}, {}),
        ({"min_p": 2.0}, {"min_p": 1.0}),
        ({"top_p": 3.0}, {}),
        ({"temperature": math.inf}, {"temperature": 1e4}),
        ({"repetition_penalty": 0.0}, {}),
        ({"repetition_penalty": 2.0, "repetition_context": 0}, {}),
        ({"presence_penalty": math.nan}, {}),
        ({"logit_bias": ((3, 1.0), (3, math.inf))}, {"logit_bias": ((3, 1e6),)}),
    ],
    ids=str,
)
def test_what_makes_no_sense_becomes_what_does(said: dict[str, Any], found: dict[str, Any]) -> None:
    if "xtc_threshold" in found:
        found = {"xtc_probability": 0.5, **found}
    assert resolve(Sampling(**said), Defaults()) == replace(
        Parameters(), **{"temperature": 1.0, **found}
    )


anything = st.floats() | st.sampled_from([0.0, -1.0, 1e-320, 1e300])


@given(
    st.builds(
        Sampling,
        **{
            name: anything
            for name in Sampling.__struct_fields__
            if name not in ("seed", "top_k", "repetition_context", "logit_bias")
        },
        top_k=st.integers(),
        repetition_context=st.integers(),
        logit_bias=st.tuples(st.tuples(st.integers(0, 9), anything)),
    )
)
@settings(max_examples=150, deadline=None)
def test_every_number_that_comes_out_is_finite(said: Sampling) -> None:
    found = resolve(said, Defaults())
    for name in (field.name for field in fields(found) if field.name != "logit_bias"):
        assert math.isfinite(getattr(found, name)), name
    assert all(math.isfinite(bias) for _, bias in found.logit_bias)
    assert found.temperature == 0 or found.temperature >= 1e-4
    assert 0 < found.top_p <= 1


@pytest.mark.parametrize("token", [-1, 300, 2**40])
def test_a_bias_outside_the_vocabulary_is_refused(token: int) -> None:
    check(Sampling(logit_bias=((0, 1.0), (299, 1.0))), 300)
    with pytest.raises(InvalidValue) as caught:
        check(Sampling(logit_bias=((0, 1.0), (token, 1.0))), 300)
    assert caught.value.param == "logit_bias"


# ── randomness ───────────────────────────────────────────────────────────────────────────────────


def test_keys_differ_in_everything_that_they_derive_from() -> None:
    seeds = [0, 1, 2, 2**63 - 1, -1]
    keys = {key(seed, at, use) for seed in seeds for at in range(500) for use in (TOKEN, COIN)}
    assert len(keys) == len(seeds) * 500 * 2
    assert all(0 <= word < 2**32 for words in keys for word in words)
    assert key(1, 2, TOKEN) == key(1, 2, TOKEN)


def test_keys_are_the_same_in_every_release() -> None:
    """A seed's output would change otherwise."""
    assert key(42, 0, TOKEN) == (3062033957, 3458470046)


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    logits = make_logits(1, rows=32)
    keys = mx.array(np.array([key(row, 5, TOKEN) for row in range(32)], dtype=np.uint32))
    temperatures = column(*[0.5 + row / 10 for row in range(32)])
    together = sampling.draw(logits, temperatures, keys)
    for row in range(32):
        one = slice(row, row + 1)
        assert sampling.draw(logits[one], temperatures[one], keys[one]).item() == together[row]
        scaled = logits[row] * (1.0 / temperatures[row])
        assert mx.random.categorical(scaled, key=keys[row]).item() == together[row]


def test_draws_follow_the_distribution() -> None:
    count = 20000
    wanted = mx.array([0.5, 0.3, 0.2, 0.0])
    keys = mx.array(np.array([key(9, at, TOKEN) for at in range(count)], dtype=np.uint32))
    drawn = sampling.draw(mx.broadcast_to(mx.log(wanted), (count, 4)), column(1.0), keys)
    shares = np.bincount(np.array(drawn), minlength=4) / count
    assert np.abs(shares - np.array(wanted)).max() < 0.015
    assert shares[3] == 0


def test_coins_are_fair_and_a_key_s_own() -> None:
    keys = mx.array(np.array([key(9, at, COIN) for at in range(4000)], dtype=np.uint32))
    coins = sampling.flip(keys)
    assert coins.shape == (4000, 1)
    assert abs(mx.mean(coins).item() - 0.5) < 0.03
    assert sampling.flip(keys[7:8]).item() == coins[7].item()


# ── filters ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(20))
def test_top_p_is_mlx_lms(theirs: Any, seed: int) -> None:
    logits, limits = make_logits(seed), (0.01, 0.3, 0.5, 0.9, 0.95, 0.999)
    expected = [theirs.apply_top_p(logits[i : i + 1], p) for i, p in enumerate(limits)]
    assert same(sampling.apply_top_p(logits, column(*limits)), expected)
    kept = [int((row > -math.inf).sum().item()) for row in expected]
    assert min(kept) < 10 < max(kept) < VOCABULARY


@pytest.mark.parametrize("vocabulary", [5, 1024, 1025, 4097, 32000])
@pytest.mark.parametrize("seed", range(3))
def test_halving_finds_what_sorting_finds(vocabulary: int, seed: int) -> None:
    probabilities = mx.exp(make_logits(seed, 6, vocabulary))
    limits = column(0.01, 0.3, 0.5, 0.9, 0.99, 0.6)
    halved, sorted_ = (
        sampling.nucleus_floor(probabilities, limits, halve=halve) for halve in (True, False)
    )
    assert mx.array_equal(halved, sorted_)


def test_halving_copes_with_ties_and_with_forbidden_tokens() -> None:
    even = mx.zeros((2, 5000))
    even[1, 100:] = -math.inf
    kept = (sampling.apply_top_p(even, column(0.5, 0.5)) > -math.inf).sum(axis=-1)
    assert kept.tolist() == [5000, 100]  # equals are kept, as by mlx-lm


@pytest.mark.parametrize("seed", range(5))
def test_min_p_is_mlx_lms(theirs: Any, seed: int) -> None:
    logits, limits = make_logits(seed), (1.0, 0.5, 0.1, 0.05, 0.01, 1e-6)
    expected = [theirs.apply_min_p(logits[i : i + 1], p) for i, p in enumerate(limits)]
    assert same(sampling.apply_min_p(logits, column(*limits)), expected)


@pytest.mark.parametrize("top_k", [1, 2, 40, VOCABULARY - 1])
def test_top_k_is_mlx_lms(theirs: Any, top_k: int) -> None:
    logits = make_logits(top_k)
    assert same(sampling.apply_top_k(logits, top_k), [theirs.apply_top_k(logits, top_k)])


@pytest.mark.parametrize("top_k", [VOCABULARY, VOCABULARY + 1, 10**9])
def test_a_top_k_beyond_the_vocabulary_is_no_limit(top_k: int) -> None:
    logits = make_logits(0)
    assert same(sampling.apply_top_k(logits, top_k), [logits])


@pytest.mark.parametrize("kept", [(), (7, 200)])
def test_xtc_is_mlx_lms(theirs: Any, kept: tuple[int, ...]) -> None:
    logits, thresholds = make_logits(3), (0.001, 0.005, 0.0, 0.01, 0.02, 0.0001)
    expected = [
        theirs.apply_xtc(logits[i : i + 1], 1.0, threshold, list(kept))
        for i, threshold in enumerate(thresholds)
    ]
    always, coins = column(*[1.0] * ROWS), column(*[0.5] * ROWS)
    found = sampling.apply_xtc(logits, always, column(*thresholds), coins, kept)
    assert same(found, expected)
    assert not same(found, [logits])
    assert all(math.isfinite(found[0, token].item()) for token in kept)  # type: ignore[arg-type]


def test_xtc_s_coin_decides() -> None:
    logits = make_logits(3)
    coins = column(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    found = sampling.apply_xtc(logits, column(*[0.35] * 6), column(*[1e-3] * 6), coins)
    changed = mx.any(found != logits, axis=-1).tolist()
    assert changed == [True] * 3 + [False] * 3
