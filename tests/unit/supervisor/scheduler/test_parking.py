"""supervisor.scheduler.requests, through the pool: what has to stop goes on later; other models, loads and the
breaker beside recoveries."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from supervisor.scheduler.blame import PROBATION_TOKENS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect, Grant, Loaded, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import ReleaseRule
from supervisor.scheduler.pressure import Level
from tests.helpers.ward import (
    HOLD,
    LIMITS,
    Ward,
    convicted,
    ended,
    granted,
    interrupted,
    proceeding,
    trials,
    tried,
)

# ── parking ──────────────────────────────────────────────────────────────────────────────────────


def drained(ward: Ward, why: str) -> list[Effect]:
    """What follows when the worker has to go though requests run."""
    if why == "by hand":
        ward.pool.unload("m", ward.now)
    elif why == "shutdown":
        ward.pool.shutdown(ward.now)
    elif why == "emergency":
        ward.pool.pressure(Level.CRITICAL, "figures", ward.now)
    else:
        ward.pool.planner.evict(ward.entry, ward.pool.models["other"], ward.now)
    return ward.after(LIMITS.emergency_drain if why == "emergency" else LIMITS.drain)


@pytest.mark.parametrize("why", ["eviction", "emergency"])
def test_what_has_to_stop_is_parked_and_goes_on_later(why: str) -> None:
    ward = Ward(2, max_recoveries=0, max_restarts=1)
    effects = drained(ward, why)
    assert interrupted(effects) == [1, 2]
    assert Stop("m", 1, kill=False) in effects
    ward.pool.pressure(Level.NORMAL, "figures", ward.now)
    ward.returned(1, 7)
    ward.returned(2, 8)
    assert Spawn("m", 2) in ward.pool.exited("m", 1, "exit status 0", ward.now)
    assert granted(ward.ready()) == [1, 2]
    assert ward.entry.deaths == 0


def test_what_is_parked_is_no_stalled_loads_fault() -> None:
    ward = Ward(1)
    drained(ward, "eviction")
    ward.returned(1, 7)
    ward.pool.exited("m", 1, "exit status 0", ward.now)
    late = ward.acquire()
    assert ended(ward.after(LIMITS.load_stall)) == [(late, "model_loading")]
    assert sorted(ward.entry.waiting) == [1]


def test_what_is_parked_learns_why_if_it_cannot_go_on() -> None:
    ward = Ward(1)
    drained(ward, "emergency")
    ward.returned(1)
    ward.exits()
    assert ended(ward.after(HOLD)) == [(1, "memory_pressure")]


@pytest.mark.parametrize(
    ("why", "code"), [("by hand", "model_loading"), ("shutdown", "shutting_down")]
)
def test_what_a_person_wants_gone_ends(why: str, code: str) -> None:
    ward = Ward(2)
    effects = drained(ward, why)
    assert ended(effects) == [(1, code), (2, code)]
    assert not interrupted(effects)


def test_a_trial_that_is_parked_is_held_again() -> None:
    ward = Ward(2)
    assert tried(ward.dies()) == [1]
    ward.passed(1)
    assert interrupted(drained(ward, "eviction")) == [1, 2]
    ward.returned(1, PROBATION_TOKENS + 1)
    ward.returned(2, 3)
    ward.exits()
    effects = ward.ready()
    assert trials(effects) == [(2, 3 + PROBATION_TOKENS, False)]
    assert granted(ward.passed(2)) == [1]


def test_a_drain_lets_the_trial_go_on_and_the_others_stand_theirs_elsewhere() -> None:
    ward = Ward(3)
    ward.dies()
    ward.passed(1)
    ward.pool.planner.evict(ward.entry, ward.pool.models["other"], ward.now)
    effects = ward.passed(2)
    assert proceeding(effects) == [1, 2]
    ward.release(1)
    assert Stop("m", 2, kill=False) in ward.release(2)
    ward.exits()
    assert trials(ward.ready()) == [(3, PROBATION_TOKENS, False)]


def test_a_shutdown_waits_for_nobody_to_return() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    effects = ward.pool.shutdown(ward.now)
    assert sorted(ended(effects)) == [(1, "shutting_down"), (2, "shutting_down")]
    assert ward.returned(2) == []


# ── beside other models ──────────────────────────────────────────────────────────────────────────


def test_a_load_that_waits_at_the_gate_stops_no_trial_that_others_wait_for() -> None:
    ward = Ward(3, load_gate="exclusive")
    ward.dies()
    ward.passed(1)
    ward.acquire(model="other")
    assert ward.pool.models["other"].state is State.COLD
    assert tried(ward.passed(2)) == [3]
    assert proceeding(ward.passed(3)) == [1, 2]
    late = ward.acquire()
    for lease in (1, 2, 3):
        effects = ward.release(lease)
    assert Spawn("other", 1) in effects
    assert late in ward.entry.waiting


def test_suspects_wait_at_the_gate_like_anybody_when_none_is_paused() -> None:
    ward = Ward(2, load_gate="exclusive", load_gate_timeout=5.0)
    assert tried(ward.dies()) == [1]
    other = ward.acquire(model="other")
    assert Spawn("other", 1) in ward.after(5.0)
    assert not tried(ward.release(1))
    effects = ward.pool.ready("other", 1, 0, 1, ward.now)
    assert granted(effects) == [other]
    assert tried(effects) == [2]


# ── loads and the breaker ────────────────────────────────────────────────────────────────────────


def test_a_death_while_it_loads_keeps_who_waits_but_no_person() -> None:
    ward = Ward(0)
    lease = ward.acquire()
    by_hand, _ = ward.pool.load("p", "m", HOLD, ward.now)
    effects = ward.exits()
    assert ended(effects) == [(by_hand, "worker_crashed")]
    assert Spawn("m", 2) in effects
    assert granted(ward.ready()) == [lease]


def crash_loop(ward: Ward) -> list[Effect]:
    """Three deaths without a token."""
    effects: list[Effect] = []
    for _ in range(3):
        if ward.state() is State.COLD:
            ward.acquire()
        effects = ward.exits()
    return effects


def test_a_model_that_keeps_dying_is_left_alone_for_a_while() -> None:
    ward = Ward(0, max_restarts=3)
    lease = ward.acquire()
    effects = crash_loop(ward)
    assert ended(effects) == [(lease, "model_unavailable")]
    assert ward.state() is State.CRASHED
    ward.acquire()
    assert ward.refusal() == "model_unavailable"
    assert ward.pool.preload("m", ward.now) == []
    assert ward.pool.next_deadline() == 5.0
    ward.after(4.9)
    assert ward.state() is State.CRASHED
    ward.after(0.1)
    ward.acquire()  # the probe
    assert ward.state() is State.LOADING
    ward.exits()
    assert ward.pool.next_deadline() == 15.0
    ward.after(10.0)
    probe = ward.acquire()
    assert granted(ward.ready()) == [probe]
    ward.passed(probe)
    assert tried(ward.dies()) == [probe]


def test_who_leaves_before_its_first_token_proves_nothing() -> None:
    ward = Ward(0, max_restarts=3)
    for _ in range(2):
        lease = ward.acquire()
        ward.ready()
        ward.release(lease)
        ward.exits()
    ward.acquire()
    ward.exits()
    assert ward.state() is State.CRASHED
    assert not ward.entry.proven


def test_tokens_are_asked_for_while_they_are_news() -> None:
    def untils(effects: Iterable[Effect]) -> list[int]:
        return [effect.until for effect in effects if isinstance(effect, Grant)]

    ward = Ward(0)
    first, second = ward.acquire(), ward.acquire()
    assert untils(ward.ready()) == [1, 1]
    ward.passed(first)
    assert untils(ward.pool.acquire("r", "m", HOLD, ward.now)[1]) == [0]
    assert untils(ward.dies(Fault.OUTSIDE)) == [1, 1, 1]
    ward.passed(second)
    assert untils(ward.dies(Fault.OUTSIDE, r1=7)) == [0, 0, 0]  # a token of the last worker's


@pytest.mark.parametrize("when", ["crashed", "half-open", "releasing"])
def test_a_person_may_try_at_once(when: str) -> None:
    ward = Ward(0, max_restarts=3, release=ReleaseRule.WHEN_SEEN)
    ward.acquire()
    for number in range(3):
        ward.exits()
        if when != "releasing" or number < 2:
            ward.pool.memory_seen(0, ward.now)
    if when == "half-open":
        ward.after(5.0)
    by_hand, _ = ward.pool.load("p", "m", HOLD, ward.now)
    ward.pool.memory_seen(0, ward.now)
    assert ward.state() is State.LOADING
    assert by_hand in ward.entry.waiting
    ward.exits()
    ward.pool.memory_seen(0, ward.now)
    assert ward.state() is not State.CRASHED  # the first death of three


def test_who_returns_to_a_model_that_is_left_alone_or_failed_is_told_so() -> None:
    ward = Ward(2, max_restarts=1)
    ward.exits()
    assert ward.state() is State.CRASHED
    assert ended(ward.returned(1)) == [(1, "model_unavailable")]
    ward.after(5.0)  # half-open; the second has given up
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.pool.load_failed("m", 2, "no such file", ward.now)
    ward.exits()
    assert ward.state() is State.FAILED
    assert ended(ward.returned(2)) == [(2, "model_load_failed")]


def test_a_death_that_convicts_does_not_count_against_the_model() -> None:
    ward = Ward(1, max_restarts=3)
    assert tried(ward.dies()) == [1]
    assert tried(ward.dies()) == [1]
    ward.exits()
    assert ward.state() is State.COLD
    assert convicted(ward.returned(1)) == ["r1"]


def test_a_model_that_worked_once_is_left_alone_before_it_convicts_everybody() -> None:
    ward = Ward(1, max_restarts=3)
    ward.dies()
    ward.dies()
    ward.exits()
    assert convicted(ward.returned(1)) == ["r1"]
    ward.acquire()
    ward.ready()
    ward.exits()
    assert ward.entry.state is State.CRASHED


def test_tokens_that_were_told_of_are_no_news_after_the_next_death() -> None:
    ward = Ward(1, max_restarts=2)
    assert tried(ward.dies()) == [1]
    ward.passed(1)
    assert tried(ward.dies(r1=PROBATION_TOKENS)) == [1]
    ward.exits()
    assert ward.entry.state is State.CRASHED


def test_deaths_from_outside_count_against_the_model_whoever_is_on_trial() -> None:
    ward = Ward(1, max_restarts=3)
    ward.dies()
    ward.dies()
    ward.exits(Fault.OUTSIDE)
    assert ward.state() is State.CRASHED


def test_nothing_is_due_after_a_shutdown_whatever_died_last() -> None:
    ward = Ward(1, max_restarts=1, release=ReleaseRule.WHEN_SEEN)
    ward.exits()
    ward.pool.shutdown(ward.now)
    ward.pool.memory_seen(0, ward.now)
    assert ward.state() is State.COLD
    assert ward.pool.next_deadline() is None


def test_a_load_by_hand_is_answered_while_a_trial_runs() -> None:
    ward = Ward(1)
    ward.dies()
    lease, effects = ward.pool.load("p", "m", HOLD, ward.now)
    assert effects == [Loaded(lease, "m", "m#2")]
