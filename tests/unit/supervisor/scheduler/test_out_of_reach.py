"""supervisor.scheduler.out_of_reach, through the pool: who needs more than there can ever be."""

from __future__ import annotations

import pytest

from supervisor.scheduler.effects import Interrupt, Lend, LogLine, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import LoanNeeds
from supervisor.scheduler.model import ReleaseRule, Rules
from supervisor.scheduler.out_of_reach import PATIENCE_SECONDS
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.state import UNSURE
from tests.helpers.pools import GB, done, loaded, said, serve, small_machine, states, told

NEED = LoanNeeds(3 * GB, 3 * GB, 5.0)


def two_loaded(rules: Rules | None = None) -> Pool:
    """`a` serves and `b` is idle, 4 GB each; 2 GB are free."""
    rules = rules or Rules(min_residency=0.0, recovery="resume")
    pool = small_machine("a", "b", size=4 * GB, rules=rules)
    loaded(pool, "b", size=4 * GB)
    serve(pool, "a", 3.0, size=4 * GB)
    return pool


def test_what_can_never_be_met_is_said_once_and_the_worker_loaded_anew() -> None:
    pool = two_loaded()
    pool.pin("b", 4.0)
    effects = pool.memory.needs("a", 1, NEED, 10.0)
    assert done(effects) == []
    assert "a#1 needs 3.0 GB more, and all that can ever be is 2.0 GB" in said(effects)
    assert pool.next_deadline() == 10.0 + PATIENCE_SECONDS
    assert pool.memory.needs("a", 1, NEED, 11.0) == []
    effects = pool.tick(10.0 + PATIENCE_SECONDS)
    assert any(isinstance(effect, Interrupt) for effect in effects)
    assert Stop("a", 1, kill=False) in effects
    assert "is loaded anew" in said(effects)
    assert pool.state.next_charge("a").most == 6 * GB - UNSURE  # it is told that at its next load


def test_it_comes_back_knowing_what_can_be_lent() -> None:
    pool = two_loaded()
    assert pool.state.next_charge("a").most == 10 * GB - UNSURE
    pool.pin("b", 4.0)
    pool.memory.needs("a", 1, NEED, 10.0)
    pool.tick(10.0 + PATIENCE_SECONDS)
    (lease,) = pool.models["a"].returning
    pool.returned(lease, 0, 41.0)
    assert Spawn("a", 2) in pool.exited("a", 1, "", 42.0)
    pool.ready("a", 2, 4 * GB, 1, 43.0)
    assert done(pool.memory.needs("a", 2, LoanNeeds(2 * GB, 2 * GB, 5.0), 44.0)) == [
        Lend("a", 2, 2 * GB)
    ]


def test_who_is_unpinned_in_time_makes_room_as_before() -> None:
    pool = two_loaded()
    pool.pin("b", 4.0)
    pool.memory.needs("a", 1, NEED, 10.0)
    assert Stop("b", 1, kill=False) in pool.unpin("b", 20.0)
    assert Lend("a", 1, 3 * GB) in pool.exited("b", 1, "", 21.0)
    assert done(pool.tick(10.0 + PATIENCE_SECONDS)) == []
    assert states(pool)["a"] is State.READY


def test_a_pinned_one_that_takes_more_than_was_thought_counts_with_that() -> None:
    pool = small_machine("a", "b", size=4 * GB)
    serve(pool, "a", 3.0, size=4 * GB)
    pool.pin("b", 4.0)
    assert pool.state.next_charge("a").most == 6 * GB - UNSURE
    pool.preload("b", 4.0)
    pool.ready("b", 1, 5 * GB, 1, 5.0)
    assert pool.state.next_charge("a").most == 5 * GB - UNSURE
    assert "can ever be is 1.0 GB" in said(
        pool.memory.needs("a", 1, LoanNeeds(2 * GB, 2 * GB, 5.0), 6.0)
    )


def test_its_loans_do_not_count_as_they_come_back() -> None:
    pool = two_loaded()
    pool.pin("b", 4.0)
    pool.memory.needs("b", 1, LoanNeeds(GB, GB, 1.0), 5.0)
    assert pool.state.next_charge("a").most == 6 * GB - UNSURE
    assert pool.memory.needs("a", 1, LoanNeeds(2 * GB, 2 * GB, 5.0), 6.0) == []


def test_stranded_memory_is_never_lent() -> None:
    rules = Rules(min_residency=0.0, release=ReleaseRule.WHEN_SEEN)
    pool = small_machine("a", "b", size=4 * GB, rules=rules)
    loaded(pool, "b", size=4 * GB)
    serve(pool, "a", 3.0, size=4 * GB)
    pool.exited("b", 1, "SIGKILL", 4.0)
    pool.memory.memory_seen(4 * GB, 20.0)
    assert pool.state.next_charge("a").most == 6 * GB - UNSURE
    assert "can ever be is 2.0 GB" in said(pool.memory.needs("a", 1, NEED, 21.0))
    assert Lend("a", 1, 3 * GB) in pool.memory.memory_seen(0, 22.0)
    assert done(pool.tick(60.0)) == []


def test_while_nothing_may_be_loaded_it_is_left_as_it_is() -> None:
    pool = two_loaded()
    pool.pin("b", 4.0)
    pool.memory.needs("a", 1, NEED, 10.0)
    pool.memory.pressure(Level.HIGH, "", 11.0)
    assert pool.next_deadline() is None
    assert done(pool.tick(100.0)) == []
    assert Stop("a", 1, kill=False) in pool.memory.pressure(Level.NORMAL, "", 101.0)


def test_one_that_is_pinned_itself_is_loaded_again_for_nobody() -> None:
    pool = two_loaded(Rules(min_residency=0.0, recovery="off"))
    pool.pin("a", 4.0)
    pool.pin("b", 4.0)
    pool.memory.needs("a", 1, NEED, 10.0)
    effects = pool.tick(10.0 + PATIENCE_SECONDS)
    assert [each.code for each in told(effects)] == ["insufficient_memory_now"]
    assert Spawn("a", 2) in pool.exited("a", 1, "", 42.0)


@pytest.mark.parametrize("least", [0, 2 * GB])
def test_who_can_go_on_or_will_be_able_to_is_let_alone(least: int) -> None:
    pool = two_loaded()
    pool.pin("b", 4.0)
    effects = pool.memory.needs("a", 1, LoanNeeds(least, 3 * GB, 5.0), 10.0)
    assert not [each for each in effects if isinstance(each, LogLine)]
    assert pool.next_deadline() is None
