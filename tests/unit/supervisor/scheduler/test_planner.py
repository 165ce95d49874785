"""supervisor.scheduler.planner, through the pool: whose turn it is, and who makes room."""

from __future__ import annotations

import logging

import pytest

from supervisor.scheduler.effects import Grant, LogLine, Refuse, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pressure import Level
from tests.helpers.pools import GB, HOLD, ask, done, loaded, said, serve, small_machine, states


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


def test_a_large_one_takes_the_place_of_two_small_ones_and_they_take_its() -> None:
    small = [Spec(name, estimate_bytes=4 * GB) for name in ("b", "c")]
    pool = small_machine("a", *small)
    loaded(pool, "b", "c", size=4 * GB)
    large, effects = pool.acquire("r", "a", HOLD, 10.0)
    assert done(effects) == [Stop("b", 1, kill=False), Stop("c", 1, kill=False)]
    pool.exited("b", 1, "exit status 0", 11.0)
    assert pool.exited("c", 1, "exit status 0", 11.0) == [Spawn("a", 1)]
    pool.ready("a", 1, 8 * GB, 4096, 12.0)
    ask(pool, "b", 13.0)
    ask(pool, "c", 13.0)
    assert done(pool.release(large, 14.0)) == [Stop("a", 1, kill=False)]
    assert pool.exited("a", 1, "exit status 0", 15.0) == [Spawn("b", 2), Spawn("c", 2)]


def test_a_load_does_not_count_twice() -> None:
    pool = small_machine("a", "b", size=5 * GB)
    ask(pool, "a", 0.0)
    assert pool.acquire("r", "b", HOLD, 1.0)[1] == [Spawn("b", 1)]


def test_the_next_load_of_a_model_on_its_way_out_is_reckoned_with() -> None:
    """`c` has to go for `b` at once: what `a` leaves is for `a` again."""
    sizes = {"a": 5, "b": 6, "c": 2}
    specs = [Spec(name, estimate_bytes=size * GB) for name, size in sizes.items()]
    pool = small_machine(*specs, budget=12 * GB)
    loaded(pool, "c", size=2 * GB)
    loaded(pool, "a", size=5 * GB)
    assert done(pool.unload("a", 10.0)) == [Stop("a", 1, kill=False)]
    assert pool.acquire("r", "a", HOLD, 11.0)[1] == []
    assert done(pool.acquire("r", "b", HOLD, 12.0)[1]) == [Stop("c", 1, kill=False)]


def test_a_place_that_becomes_free_anyway_costs_nobody_else_his() -> None:
    rules = Rules(policy="lru", max_loaded=3, min_residency=0.0)
    pool = small_machine("a", "b", "c", "d", budget=100 * GB, rules=rules)
    loaded(pool, "a", "b", "c")
    pool.unload("a", 10.0)
    assert done(pool.acquire("r", "d", HOLD, 11.0)[1]) == []
    assert pool.exited("a", 1, "exit status 0", 12.0) == [Spawn("d", 1)]


def test_who_is_left_behind_by_a_drain_queues_from_then_on() -> None:
    """Before who came after it, though nothing else has happened in between."""
    rules = Rules(min_residency=0.0, max_wait=5.0)
    pool = small_machine("c", Spec("a", estimate_bytes=8 * GB, concurrency=1), "b", rules=rules)
    first = serve(pool, "a", 0.0)
    ask(pool, "a", 1.0)
    served = ask(pool, "b", 2.0)
    pool.tick(7.0)
    assert states(pool)["a"] is State.DRAINING
    ask(pool, "c", 8.0)
    pool.release(first, 9.0)
    assert pool.exited("a", 1, "exit status 0", 10.0) == [Spawn("b", 1)]
    pool.ready("b", 1, 8 * GB, 4096, 11.0)
    pool.release(served, 12.0)
    pool.tick(60.0)
    assert Spawn("a", 2) in pool.exited("b", 1, "exit status 0", 61.0)


def test_a_model_that_drains_keeps_no_others_grants_back() -> None:
    pool = small_machine("a", "b", budget=20 * GB)
    loaded(pool, "a")
    serve(pool, "b", 3.0)
    assert done(pool.unload("b", 5.0)) == []
    lease, effects = pool.acquire("r", "a", HOLD, 6.0)
    assert effects == [Grant(lease, "a", "a#1", 1, until=1)]


def test_who_has_to_wait_for_a_person_holds_nobody_up() -> None:
    """`b` has no room while `a` is pinned, however long it waits."""
    small = Spec("small", estimate_bytes=GB)
    pool = small_machine("a", "b", small, rules=Rules(min_residency=0.0, max_wait=5.0))
    loaded(pool, "a")
    pool.pin("a", 3.0)
    ask(pool, "b", 10.0)
    assert pool.acquire("r", "small", HOLD, 60.0)[1] == [Spawn("small", 1)]


def test_who_waits_while_memory_is_short_is_told_so() -> None:
    pool = small_machine("a")
    pool.memory.pressure(Level.HIGH, "61.0 of 64.0 GB", 1.0)
    ask(pool, "a", 2.0, hold=3.0)
    (refusal,) = pool.tick(5.0)
    assert isinstance(refusal, Refuse)
    assert refusal.error.code == "memory_pressure"
    assert "61.0 of 64.0 GB" in refusal.error.message


def test_a_load_that_took_more_costs_nobody_his_place_when_enough_is_on_its_way_back() -> None:
    sizes = {"leaves": 2, "idle": 2, "new": 5}
    pool = small_machine(*(Spec(name, estimate_bytes=size * GB) for name, size in sizes.items()))
    loaded(pool, "leaves", "idle", size=2 * GB)
    lease = ask(pool, "new", 5.0)
    pool.unload("leaves", 6.0)
    assert pool.ready("new", 1, 8 * GB, 4096, 7.0) == [Grant(lease, "new", "new#1", 1, until=1)]
    assert pool.state.ledger.free == -2 * GB


@pytest.mark.parametrize(
    ("level", "serious"), [(Level.WARN, logging.INFO), (Level.HIGH, logging.WARNING)]
)
def test_a_new_level_is_logged_whatever_follows_from_it(level: Level, serious: int) -> None:
    pool = small_machine("a")
    effects = pool.memory.pressure(level, "61.0 of 64.0 GB", 1.0)
    assert effects == [
        LogLine(f"memory pressure is {level.name.lower()}: 61.0 of 64.0 GB", serious)
    ]


def test_an_emergency_unloads_all_in_whatever_state_they_are() -> None:
    pool = small_machine("idle", "loads", budget=20 * GB)
    loaded(pool, "idle")
    ask(pool, "loads", 5.0)
    stops = done(pool.memory.pressure(Level.CRITICAL, "", 6.0))
    assert stops == [Stop("loads", 1, kill=False), Stop("idle", 1, kill=False)]


@pytest.mark.parametrize(
    ("state", "gone"),
    [("idle", ["b"]), ("busy", []), ("cold", [])],
)
def test_a_pinned_model_that_is_idle_is_one_of_those_that_a_cleanup_keeps(
    state: str, gone: list[str]
) -> None:
    rules = Rules(keep=1, min_residency=0.0)
    pool = small_machine(Spec("a", estimate_bytes=GB, pin=True), "b", rules=rules)
    if state != "cold":
        lease = serve(pool, "a", 0.0, size=GB)
        if state == "idle":
            pool.release(lease, 2.0)
    loaded(pool, "b", now=3.0)
    stops = done(pool.memory.pressure(Level.WARN, "", 10.0))
    assert stops == [Stop(name, 1, kill=False) for name in gone]


def test_a_cleanup_under_high_pressure_spares_nobody_for_its_youth() -> None:
    pool = small_machine("a", rules=Rules(keep=0, min_residency=60.0))
    loaded(pool, "a")
    assert Stop("a", 1, kill=False) in pool.memory.pressure(Level.HIGH, "", 10.0)


def test_the_periodic_cleanup_is_due_while_there_are_too_many_and_counts_those_who_stay() -> None:
    pool = small_machine("a", "b", "c", budget=100 * GB)
    loaded(pool, "a", "b")
    serve(pool, "c", 0.0)
    pool.state.rules = Rules(policy="lru", max_loaded=3, cleanup_interval=600.0)
    pool.tick(50.0)
    assert pool.next_deadline() is None  # as many as may be
    pool.state.rules = Rules(policy="lru", max_loaded=2, cleanup_interval=100.0)
    pool.tick(60.0)
    assert pool.next_deadline() == 160.0
    pool.unload("c", 100.0)
    assert states(pool)["c"] is State.DRAINING
    assert done(pool.tick(160.0)) == []


def test_a_model_that_loads_in_no_time_has_no_time_in_which_it_is_safe() -> None:
    pool = small_machine("a", "b", rules=Rules())
    lease = ask(pool, "a", 0.0)
    pool.ready("a", 1, 8 * GB, 4096, 0.0)
    pool.release(lease, 0.0)
    assert done(pool.acquire("r", "b", HOLD, 0.5)[1]) == [Stop("a", 1, kill=False)]
