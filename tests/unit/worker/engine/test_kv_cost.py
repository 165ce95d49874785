"""worker.engine.kv_cost: what caches take, beside what mlx-lm's really take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest

from tests.helpers.architectures import config_of, make_bare
from worker.engine.batch import BatchEngine
from worker.engine.kv_cost import (
    LEAST_PART,
    LEAST_SLICE,
    PART_BYTES,
    Corrections,
    KvCost,
    Part,
    StepCost,
    grown,
    measure,
    rounded,
)
from worker.engine.mlx_lm_compat import make_prompt_cache

ARCHITECTURES = (
    "llama",
    "gemma3_text",  # windows of 24 tokens
    "gpt_oss",
    "deepseek_v3",  # MLA
    "deepseek_v32",  # two caches a layer
    "qwen3_next",  # recurrent layers between
    "falcon_h1",  # and beside attention in each layer
    "mamba2",
    "llama4",  # chunks of 256 tokens
)


@pytest.fixture(scope="module", autouse=True)
def _mlx_lm() -> None:
    BatchEngine().warm_up()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("kv") / request.param
    return make_bare(folder, config_of(request.param))


def cost_of(model: Any) -> KvCost:
    caches = make_prompt_cache(model)
    model(mx.array([[0]]), cache=caches)
    return measure(caches)


def go_on(model: Any, caches: Sequence[Any], rows: int, tokens: int) -> int:
    """Bytes of all caches behind so many tokens more."""
    mx.eval(model(mx.array([[1] * tokens] * rows), cache=caches), [c.state for c in caches])
    return int(sum(cache.nbytes for cache in caches))


def test_caches_are_measured_without_computing_them(model: Any) -> None:
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    cost = cost_of(model)
    assert mx.get_peak_memory() - before < cost.held(1, 256) / 4


@pytest.mark.parametrize("rows", [1, 3])
def test_no_cache_is_larger_than_reckoned_and_few_are_much_smaller(model: Any, rows: int) -> None:
    cost, caches = cost_of(model), make_prompt_cache(model)
    done = 0
    for chunk in (256, 60, 40, 1, 1):
        held = go_on(model, caches, rows, chunk)
        done += chunk
        layers = [cache.nbytes for cache in caches]
        behind = chunk if chunk > 1 else 0
        assert held <= cost.held(rows, grown(done), behind)
        assert max(layers) <= cost.largest(rows, grown(done), behind)
        assert held > 0.6 * cost.held(rows, done, behind)
    if {"ChunkedKVCache"}.isdisjoint(type(cache).__name__ for cache in caches):
        # Where the arrays' room is known nothing is left to guess.
        assert held == cost.held(rows, _room(caches) or done)


def _room(caches: Sequence[Any]) -> int | None:
    """Tokens that the arrays of a growing cache have room for."""
    for cache in caches:
        if type(cache).__name__ == "CacheList":
            room = _room(cache.caches)
        else:
            room = cache.keys.shape[2] if type(cache).__name__ == "KVCache" else None
        if room is not None:
            return room
    return None


def test_a_cache_of_an_unknown_kind_counts_as_it_is() -> None:
    class Odd:
        state = (mx.zeros((2, 5)), [None, 3, mx.zeros((4,), dtype=mx.int8)])

    assert measure([Odd()]) == KvCost(((Part(fixed=2 * 5 * 4 + 4),),))


def test_quantized_caches_count_all_their_arrays() -> None:
    from mlx_lm.models.cache import QuantizedKVCache

    cache = QuantizedKVCache(group_size=32, bits=4)
    cache.update_and_fetch(mx.zeros((1, 2, 1, 64)), mx.zeros((1, 2, 1, 64)))  # type: ignore[no-untyped-call]
    assert measure([cache]).held(1, 256) == cache.nbytes


def test_room_is_taken_in_steps_from_where_it_is() -> None:
    assert [rounded(n) for n in (1, 256, 257)] == [256, 256, 512]
    assert grown(300) == 555


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


def test_a_slice_is_as_large_as_memory_takes() -> None:
    steps = StepCost(prompt_token=1000, score=1)
    assert steps.prefill(100, 300) == 100 * (1000 + 512)
    size = steps.slice_within(200_000, 300)
    assert steps.prefill(size, 300) <= 200_000 < steps.prefill(size + 1, 300)
    assert steps.slice_within(-5, 300) == LEAST_SLICE
    assert StepCost().slice_within(0, 300) >= 10**6


@pytest.mark.parametrize("room", [10**5, 10**8, 2 * 10**8, 10**9])
def test_a_slice_whose_logits_are_looked_at_is_smaller(room: int) -> None:
    steps = StepCost(prompt_token=1000, score=1, logits=4 * 128_000)
    size = steps.slice_within(room, 300, scored=True)
    assert size <= steps.slice_within(room, 300)
    assert size == LEAST_PART or steps.prefill(size, 300, scored=True) <= room
    assert steps.prefill(size + 1, 300, scored=True) > room


def test_of_the_logits_only_a_part_is_there_at_once() -> None:
    steps = StepCost(logits=4 * 128_000)
    assert steps.prefill(2048, 300) == 0
    assert steps.prefill(4, 300, scored=True) == 4 * 4 * steps.logits
    assert steps.prefill(2048, 300, scored=True) == 4 * PART_BYTES
    assert StepCost(logits=PART_BYTES).prefill(99, 300, scored=True) == 4 * LEAST_PART * PART_BYTES


def test_what_steps_were_seen_to_take_is_only_corrected_upwards() -> None:
    corrections = Corrections()
    corrections.observe("scored", 100, 100)
    assert corrections.of("scored") == 1
    corrections.observe("scored", 100, 200)
    assert corrections.of("scored") == pytest.approx(2.2)
    corrections.observe("scored", 100, 210)
    corrections.observe("scored", 0, 210)
    assert corrections.of("scored") == pytest.approx(2.2)
    assert corrections.of("prefill") == 1
