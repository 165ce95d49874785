"""supervisor.models.allowance: what a worker may hold, and the context that fits in it."""

from __future__ import annotations

from typing import Any

from supervisor.models.allowance import allowance, context
from supervisor.models.estimate import Estimate
from supervisor.models.estimate.model import Cache
from supervisor.scheduler.model import NextCharge

MB = 10**6
FOUND = Estimate(
    weights=1000 * MB,
    caches=(Cache(per_token=10_000, window=None, fixed=0),) * 10,
    activations=100_000,
    scores=0,
    logits=1 * MB,
    vocabulary=50_000,
    context=131_072,
)
"""100 kB of KV cache a token."""


def charge(size: int = 3000, untouched: int = 1000, most: int | None = 10_000) -> NextCharge:
    """In megabytes."""
    return NextCharge(size * MB, untouched * MB, None if most is None else most * MB)


def test_the_room_is_what_is_left_of_the_charge_once_the_process_has_grown() -> None:
    told = allowance(FOUND, charge(untouched=1000), kv_budget=None)
    assert told.room == 1000 * MB - FOUND.growth
    assert FOUND.growth > 0
    assert allowance(FOUND, charge(untouched=10), kv_budget=None).room == 0


def test_room_and_loans_together_are_what_the_charge_may_grow_to() -> None:
    told = allowance(FOUND, charge(3000, 1000, 10_000), kv_budget=None)
    assert told.limit - told.room == 7000 * MB
    # Where it may not grow at all, the room is all.
    told = allowance(FOUND, charge(3000, 1000, 3000), kv_budget=None)
    assert told.limit == told.room


def test_no_budget_is_no_limit_and_nothing_left_is_one() -> None:
    assert allowance(FOUND, charge(most=None), kv_budget=None).limit == 0
    assert allowance(FOUND, charge(3000, 0, 3000), kv_budget=None).limit == 1


def test_a_kv_budget_limits_the_cache_and_leaves_a_step_its_own() -> None:
    step = FOUND.transient(2048)
    for most in (10_000, None):
        assert allowance(FOUND, charge(most=most), kv_budget=500 * MB).limit == 500 * MB + step
    # A smaller budget is the smaller limit;
    tight = charge(3000, 1000, 3010)
    assert allowance(FOUND, tight, kv_budget=5000 * MB) == allowance(FOUND, tight, kv_budget=None)
    # and no room is larger than the limit.
    told = allowance(FOUND, charge(untouched=2000), kv_budget=20 * MB)
    assert told.room == told.limit == 20 * MB + step


def test_the_context_is_the_least_of_what_is_known() -> None:
    assert context(FOUND, 0, 0) == 131_072
    assert context(FOUND, 0, 5000) == 5000
    assert context(FOUND, 10**12, 500_000) == 131_072
    limited = context(FOUND, 3000 * MB, 0)
    assert limited == FOUND.longest(3000 * MB)
    assert 20_000 < limited < 30_000
    assert context(FOUND, 3000 * MB, 5000) == 5000


def test_a_context_is_never_nothing_because_of_memory() -> None:
    assert context(FOUND, 1, 0) == 256


def test_an_unknown_context_is_what_fits() -> None:
    unknown: Any = {name: getattr(FOUND, name) for name in FOUND.__slots__} | {"context": 0}
    assert context(Estimate(**unknown), 0, 0) == 0
    assert context(Estimate(**unknown), 3000 * MB, 0) == FOUND.longest(3000 * MB)
