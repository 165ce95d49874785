"""supervisor.scheduler.planner, through the pool: whose turn it is, and who makes room."""

from __future__ import annotations

import pytest

from supervisor.scheduler.effects import Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Rules, Spec
from tests.helpers.pools import GB, ask, done, loaded, said, serve, small_machine, states


def test_a_hundred_waiters_of_one_model_are_one_turn() -> None:
    pool = small_machine("a", "b", "c", rules=Rules(min_residency=0.0, max_wait=5.0))
    first = serve(pool, "a", 0.0)
    for _ in range(100):
        ask(pool, "b", 2.0)
    ask(pool, "c", 3.0)
    pool.release(first, 4.0)
    assert done(pool.exited("a", 1, "exit status 0", 5.0)) == [Spawn("b", 1)]
    pool.ready("b", 1, 8 * GB, 1, 6.0)
    for _ in range(10):
        ask(pool, "b", 7.0)  # more of them do not keep c out
    assert states(pool)["b"] is State.READY
    pool.tick(8.0)
    assert states(pool)["b"] is State.DRAINING


def test_who_has_had_a_turn_queues_behind_those_who_have_not() -> None:
    """`a` is drained for `b` with requests left that are older than `b`'s."""
    pool = small_machine(
        Spec("a", estimate_bytes=8 * GB, concurrency=1),
        "b",
        rules=Rules(min_residency=0.0, max_wait=5.0),
    )
    first, left = ask(pool, "a", 0.0), ask(pool, "a", 0.1)
    pool.ready("a", 1, 8 * GB, 1, 1.0)
    waiter = ask(pool, "b", 2.0)
    assert done(pool.tick(7.0)) == []
    assert done(pool.release(first, 8.0)) == [Stop("a", 1, kill=False)]
    assert done(pool.exited("a", 1, "exit status 0", 9.0)) == [Spawn("b", 1)]
    pool.ready("b", 1, 8 * GB, 1, 10.0)
    assert left in pool.models["a"].waiting
    pool.tick(13.0)
    assert states(pool)["b"] is State.DRAINING
    assert done(pool.release(waiter, 14.0)) == [Stop("b", 1, kill=False)]
    assert pool.exited("b", 1, "exit status 0", 15.0) == [Spawn("a", 2)]


def test_room_that_somebody_else_makes_goes_to_the_first_in_the_queue_at_once() -> None:
    """`quick` is sooner out of patience with `busy` than `large`, which has waited for longer."""
    sizes = {"large": 9, "quick": 7, "idle": 2, "busy": 4}
    pool = small_machine(*(Spec(name, estimate_bytes=size * GB) for name, size in sizes.items()))
    pool.recall("quick", use_count=0, load_seconds=0.1, memory_bytes=None)
    loaded(pool, "idle", size=2 * GB)
    serve(pool, "busy", 3.0, size=4 * GB)
    ask(pool, "large", 10.0)
    ask(pool, "quick", 11.0)
    assert pool.next_deadline() == pytest.approx(11.0 + 3 * (0.1 + 1.0))
    assert done(pool.tick(14.4)) == [Stop("idle", 1, kill=False)]
    assert states(pool)["busy"] is State.DRAINING


def test_room_that_max_loaded_wants_is_told_as_such() -> None:
    pool = small_machine("a", "b", rules=Rules(min_residency=0.0, max_loaded=1), size=GB)
    loaded(pool, "a", size=GB)
    log = said(pool.acquire("r", "b", 240.0, 10.0)[1])
    assert "a#1 (1.0 GB) is unloaded to make room: for b, memory.max_loaded is 1" in log
