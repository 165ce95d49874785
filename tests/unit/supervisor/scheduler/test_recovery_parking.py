"""supervisor.scheduler.recovery, through the pool: what has to stop goes on later; other models,
loads and the breaker beside recoveries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from supervisor.scheduler.blame import PROBATION_TOKENS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect, Grant, Loaded, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import ReleaseRule
from supervisor.scheduler.pressure import Level
from tests.helpers.driven_pool import (
    HOLD,
    LIMITS,
    DrivenPool,
    awaited,
    ended,
    granted,
    interrupted,
    quarantined,
)

# ── parking ───────────────────────────────────────────────────────────────────────────────────────


def drained(driven: DrivenPool, why: str) -> list[Effect]:
    """What follows when the worker has to go though requests run."""
    if why == "by hand":
        driven.pool.unload("m", driven.now)
    elif why == "shutdown":
        driven.pool.shutdown(driven.now)
    elif why == "emergency":
        driven.pool.memory.pressure(Level.CRITICAL, "figures", driven.now)
    else:
        driven.pool.planner.evict(driven.entry, driven.pool.models["other"], driven.now)
    return driven.after(LIMITS.emergency_drain if why == "emergency" else LIMITS.drain)


@pytest.mark.parametrize("why", ["eviction", "emergency"])
def test_what_has_to_stop_is_parked_and_goes_on_later(why: str) -> None:
    driven = DrivenPool(2, max_recoveries=0, max_restarts=1)
    effects = drained(driven, why)
    assert interrupted(effects) == [1, 2]
    assert Stop("m", 1, kill=False) in effects
    driven.pool.memory.pressure(Level.NORMAL, "figures", driven.now)
    driven.returned(1, 7)
    driven.returned(2, 8)
    assert Spawn("m", 2) in driven.pool.exited("m", 1, "exit status 0", driven.now)
    assert granted(driven.ready()) == [1, 2]
    assert driven.entry.deaths == 0


def test_what_is_parked_is_no_stalled_loads_fault() -> None:
    driven = DrivenPool(1)
    drained(driven, "eviction")
    driven.returned(1, 7)
    driven.pool.exited("m", 1, "exit status 0", driven.now)
    late = driven.acquire()
    assert ended(driven.after(LIMITS.load_stall)) == [(late, "model_loading")]
    assert sorted(driven.entry.waiting) == [1]


def test_what_is_parked_learns_why_if_it_cannot_go_on() -> None:
    driven = DrivenPool(1)
    drained(driven, "emergency")
    driven.returned(1)
    driven.exits()
    assert ended(driven.after(HOLD)) == [(1, "memory_pressure")]


@pytest.mark.parametrize(
    ("why", "code"), [("by hand", "model_loading"), ("shutdown", "shutting_down")]
)
def test_what_a_person_wants_gone_ends(why: str, code: str) -> None:
    driven = DrivenPool(2)
    effects = drained(driven, why)
    assert ended(effects) == [(1, code), (2, code)]
    assert not interrupted(effects)


def suspects_of(requests: int) -> DrivenPool:
    """A crowd that has died twice in the same place, and may be as large as it was."""
    driven = DrivenPool(requests)
    driven.dies()
    driven.exits()
    for lease in driven.leases:
        driven.returned(lease)
    driven.entry.learned_limit = driven.entry.presumption = None
    driven.ready()
    return driven


def test_a_probation_that_is_parked_is_held_again() -> None:
    driven = suspects_of(2)
    driven.passed(1)
    assert driven.on_trial() == [2]
    assert interrupted(drained(driven, "eviction")) == [1, 2]
    driven.returned(1, PROBATION_TOKENS + 1)
    driven.returned(2, 2)
    driven.exits()
    assert granted(driven.ready()) == [1, 2]
    assert driven.on_trial() == [2]


def test_a_drain_lets_the_probation_go_on_and_the_others_have_theirs_elsewhere() -> None:
    driven = suspects_of(3)
    driven.passed(1)
    driven.pool.planner.evict(driven.entry, driven.pool.models["other"], driven.now)
    assert granted(driven.passed(2)) == []
    driven.release(1)
    assert Stop("m", 3, kill=False) in driven.release(2)
    driven.exits()
    assert awaited(driven.ready()) == [(3, PROBATION_TOKENS)]


def test_a_shutdown_waits_for_nobody_to_return() -> None:
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1)
    effects = driven.pool.shutdown(driven.now)
    assert sorted(ended(effects)) == [(1, "shutting_down"), (2, "shutting_down")]
    assert driven.returned(2) == []


# ── beside other models ───────────────────────────────────────────────────────────────────────────


def test_suspects_wait_at_the_gate_like_anybody() -> None:
    driven = suspects_of(2)
    driven.pool.state.rules = replace(
        driven.pool.state.rules, load_gate="exclusive", load_gate_timeout=5.0
    )
    assert driven.on_trial() == [1]
    other = driven.acquire(model="other")
    assert granted(driven.passed(1)) == []
    assert Spawn("other", 1) in driven.after(5.0)
    effects = driven.pool.ready("other", 1, 0, 1, driven.now)
    assert granted(effects) == [2, other]
    assert driven.on_trial() == [2]


# ── loads and the breaker ─────────────────────────────────────────────────────────────────────────


def test_a_death_while_it_loads_keeps_who_waits_but_no_person() -> None:
    driven = DrivenPool(0)
    lease = driven.acquire()
    by_hand, _ = driven.pool.load("p", "m", HOLD, driven.now)
    effects = driven.exits()
    assert ended(effects) == [(by_hand, "worker_crashed")]
    assert Spawn("m", 2) in effects
    assert granted(driven.ready()) == [lease]


def crash_loop(driven: DrivenPool) -> list[Effect]:
    """Three deaths without a token."""
    effects: list[Effect] = []
    for _ in range(3):
        if driven.state() is State.COLD:
            driven.acquire()
        effects = driven.exits()
    return effects


def test_a_model_that_keeps_dying_is_left_alone_for_a_while() -> None:
    driven = DrivenPool(0, max_restarts=3)
    lease = driven.acquire()
    effects = crash_loop(driven)
    assert ended(effects) == [(lease, "model_unavailable")]
    assert driven.state() is State.CRASHED
    driven.acquire()
    assert driven.refusal() == "model_unavailable"
    assert driven.pool.preload("m", driven.now) == []
    assert driven.pool.next_deadline() == 5.0
    driven.after(4.9)
    assert driven.state() is State.CRASHED
    driven.after(0.1)
    driven.acquire()  # the probe
    assert driven.state() is State.LOADING
    driven.exits()
    assert driven.pool.next_deadline() == 15.0
    driven.after(10.0)
    probe = driven.acquire()
    assert granted(driven.ready()) == [probe]
    driven.passed(probe)
    assert granted(driven.dies()) == [probe]


def test_who_leaves_before_its_first_token_proves_nothing() -> None:
    driven = DrivenPool(0, max_restarts=3)
    for _ in range(2):
        lease = driven.acquire()
        driven.ready()
        driven.release(lease)
        driven.exits()
    driven.acquire()
    driven.exits()
    assert driven.state() is State.CRASHED
    assert not driven.entry.proven


def test_tokens_are_asked_for_while_they_are_news() -> None:
    def untils(effects: Iterable[Effect]) -> list[int]:
        return [effect.until for effect in effects if isinstance(effect, Grant)]

    driven = DrivenPool(0)
    first, second = driven.acquire(), driven.acquire()
    assert untils(driven.ready()) == [1, 1]
    driven.passed(first)
    assert untils(driven.pool.acquire("r", "m", HOLD, driven.now)[1]) == [0]
    assert untils(driven.dies(Fault.OUTSIDE)) == [1, 1, 1]
    driven.passed(second)
    assert untils(driven.dies(Fault.OUTSIDE, r1=7)) == [0, 0, 0]  # a token of the last worker's


@pytest.mark.parametrize("when", ["crashed", "half-open", "releasing"])
def test_a_person_may_try_at_once(when: str) -> None:
    driven = DrivenPool(0, max_restarts=3, release=ReleaseRule.WHEN_SEEN)
    driven.acquire()
    for number in range(3):
        driven.exits()
        if when != "releasing" or number < 2:
            driven.pool.memory.memory_seen(0, driven.now)
    if when == "half-open":
        driven.after(5.0)
    by_hand, _ = driven.pool.load("p", "m", HOLD, driven.now)
    driven.pool.memory.memory_seen(0, driven.now)
    assert driven.state() is State.LOADING
    assert by_hand in driven.entry.waiting
    driven.exits()
    driven.pool.memory.memory_seen(0, driven.now)
    assert driven.state() is not State.CRASHED  # the first death of three


def test_who_returns_to_a_model_that_is_left_alone_or_failed_is_told_so() -> None:
    driven = DrivenPool(1, max_restarts=1)
    driven.exits()
    assert driven.state() is State.CRASHED
    assert ended(driven.returned(1)) == [(1, "model_unavailable")]
    driven.after(5.0)  # half-open; the second has given up
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1)
    driven.pool.load_failed("m", 2, "no such file", driven.now)
    driven.exits()
    assert driven.state() is State.FAILED
    assert ended(driven.returned(2)) == [(2, "model_load_failed")]


def test_a_death_that_quarantines_does_not_count_against_the_model() -> None:
    driven = DrivenPool(1, max_restarts=3)
    driven.dies()
    driven.dies()
    driven.exits()
    assert driven.state() is State.COLD
    assert quarantined(driven.returned(1)) == ["r1"]


def test_a_model_that_worked_once_is_left_alone_before_it_quarantines_everybody() -> None:
    driven = DrivenPool(1, max_restarts=3)
    driven.dies()
    driven.dies()
    driven.exits()
    assert quarantined(driven.returned(1)) == ["r1"]
    driven.acquire()
    driven.ready()
    driven.exits()
    assert driven.entry.state is State.CRASHED


def test_one_of_a_crowd_is_found_before_the_model_is_left_alone() -> None:
    driven = DrivenPool(3, max_restarts=3, proven=False)
    for _ in range(4):
        driven.dies()
    assert driven.on_trial() == [2]  # the first one has died alone, twice
    driven.passed(2)
    assert driven.state() is State.READY


def test_a_model_that_kills_a_whole_crowd_is_left_alone() -> None:
    driven = DrivenPool(3, max_restarts=3, proven=False)
    for _ in range(4):
        driven.dies()
    driven.exits()
    assert driven.state() is State.CRASHED


def test_tokens_that_were_told_of_are_no_news_after_the_next_death() -> None:
    driven = DrivenPool(1, max_restarts=2)
    driven.dies()
    driven.passed(1)
    driven.dies(r1=PROBATION_TOKENS)
    driven.exits()
    assert driven.entry.state is State.CRASHED


def test_deaths_from_outside_count_against_the_model_whoever_is_on_probation() -> None:
    driven = DrivenPool(1, max_restarts=3)
    driven.dies()
    driven.dies()
    driven.exits(Fault.OUTSIDE)
    assert driven.state() is State.CRASHED


def test_nothing_is_due_after_a_shutdown_whatever_died_last() -> None:
    driven = DrivenPool(1, max_restarts=1, release=ReleaseRule.WHEN_SEEN)
    driven.exits()
    driven.pool.shutdown(driven.now)
    driven.pool.memory.memory_seen(0, driven.now)
    assert driven.state() is State.COLD
    assert driven.pool.next_deadline() is None


def test_a_load_by_hand_is_answered_while_a_probation_runs() -> None:
    driven = DrivenPool(1)
    driven.dies()
    lease, effects = driven.pool.load("p", "m", HOLD, driven.now)
    assert effects == [Loaded(lease, "m", "m#2")]


def test_what_is_evicted_ends_where_a_person_wants_it_gone_meanwhile() -> None:
    driven = DrivenPool(1)
    driven.pool.planner.evict(driven.entry, driven.pool.models["other"], driven.now)
    driven.pool.unload("m", driven.now)
    assert ended(driven.after(LIMITS.drain)) == [(1, "model_loading")]


def test_a_person_does_not_change_why_a_server_that_shuts_down_drains() -> None:
    driven = DrivenPool(1)
    driven.pool.shutdown(driven.now)
    driven.pool.unload("m", driven.now)
    assert ended(driven.after(LIMITS.drain)) == [(1, "shutting_down")]
