"""supervisor.scheduler.recovery, through the pool: who comes back from a death, and when."""

from __future__ import annotations

import pytest

from supervisor.scheduler.blame import PROBATION_TOKENS, QUARANTINE_SECONDS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.recovery import RETURN_SECONDS
from tests.helpers.driven_pool import (
    HOLD,
    DrivenPool,
    ended,
    granted,
    interrupted,
    on_probation,
    probations,
    quarantined,
    unpaused,
)

# ── probation ─────────────────────────────────────────────────────────────────────────────────────


def test_suspects_are_alone_the_shortest_way_first() -> None:
    driven = DrivenPool(4)
    effects = driven.dies(r1=9, r2=0, r3=5, r4=5)
    assert probations(effects) == [(2, PROBATION_TOKENS, True)]
    newcomer = driven.acquire()
    assert probations(driven.passed(2)) == [(3, 5 + PROBATION_TOKENS, True)]
    assert probations(driven.passed(3)) == [(4, 5 + PROBATION_TOKENS, True)]
    effects = driven.passed(4)
    assert probations(effects) == [(1, 9 + PROBATION_TOKENS, False)]  # nobody is left to wait for
    assert not unpaused(effects)
    effects = driven.passed(1)
    assert unpaused(effects) == [2, 3, 4]
    assert granted(effects) == [newcomer]


def test_one_that_died_alone_comes_last() -> None:
    driven = DrivenPool(3)
    assert on_probation(driven.dies(r1=0, r2=50, r3=60)) == [1]
    assert on_probation(driven.dies()) == [2]
    assert on_probation(driven.passed(2)) == [3]
    assert on_probation(driven.passed(3)) == [1]
    assert unpaused(driven.passed(1)) == [2, 3]


@pytest.mark.parametrize("how", ["passes", "ends", "leaves the queue", "its hold is over"])
def test_those_who_have_passed_go_on_after_the_last_suspect(how: str) -> None:
    driven = DrivenPool(2)
    assert on_probation(driven.dies()) == [1]
    effects = driven.passed(1)
    assert on_probation(effects) == [2]
    if how == "passes":
        effects = driven.passed(2)
    elif how == "ends":
        effects = driven.release(2)
    else:
        driven = DrivenPool(3)
        driven.dies()
        driven.release(3)
        if how == "leaves the queue":
            driven.release(2)
        else:
            assert ended(driven.after(HOLD)) == [(2, "worker_crashed")]
        effects = driven.passed(1)
    assert unpaused(effects) == [1]
    assert not any(lease.suspicion.name == "PAUSED" for lease in driven.entry.granted.values())


def test_nobody_is_on_probation_until_all_have_said_where_they_stand() -> None:
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1, 40)
    assert driven.ready() == []
    newcomer = driven.acquire()
    assert on_probation(driven.returned(2, 3)) == [2]
    assert newcomer in driven.entry.waiting


def test_a_gateway_that_says_nothing_is_not_waited_for() -> None:
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1)
    driven.ready()
    assert driven.pool.next_deadline() == RETURN_SECONDS
    assert driven.after(RETURN_SECONDS - 0.1) == []
    effects = driven.after(0.1)
    assert ended(effects) == [(2, "worker_crashed")]
    assert on_probation(effects) == [1]
    assert driven.returned(2, 7) == []
    assert driven.release(2) == []


def test_a_client_that_leaves_while_it_returns_or_is_on_probation_holds_nobody_up() -> None:
    driven = DrivenPool(3)
    driven.exits()
    driven.returned(1)
    driven.returned(2)
    driven.ready()
    assert on_probation(driven.release(3)) == [1]
    assert on_probation(driven.release(1)) == [2]
    assert driven.release(2) == []
    assert driven.state() is State.READY


def test_those_who_have_passed_are_not_suspected_when_another_kills() -> None:
    driven = DrivenPool(3, max_recoveries=1)
    driven.dies(r2=50, r3=60)
    driven.passed(1)
    assert on_probation(driven.passed(2)) == [3]
    effects = driven.dies(r3=70)  # it got on, but not far enough
    assert on_probation(effects) == [3]
    assert sorted(driven.entry.waiting) == [1, 2]
    effects = driven.passed(3)
    assert granted(effects) == [1, 2]
    assert not unpaused(effects)


def test_a_request_that_got_on_to_the_end_of_its_probation_is_not_blamed_for_the_next_death() -> (
    None
):
    """Its word that it has passed crosses that of the death."""
    driven = DrivenPool(1)
    assert probations(driven.dies(r1=4)) == [(1, 4 + PROBATION_TOKENS, False)]
    assert probations(driven.dies(r1=4)) == [(1, 4 + PROBATION_TOKENS, False)]  # a death alone
    driven.exits()
    assert driven.passed(1) == []
    assert not quarantined(driven.returned(1, 4 + PROBATION_TOKENS))
    assert probations(driven.ready()) == [(1, 4 + 2 * PROBATION_TOKENS, False)]
    assert not quarantined(driven.dies(r1=4 + PROBATION_TOKENS))  # the first one anew
    driven.exits()
    assert quarantined(driven.returned(1, 4 + PROBATION_TOKENS)) == ["r1"]


def test_places_are_not_exceeded_by_suspects() -> None:
    driven = DrivenPool(0, concurrency=2)
    first, second, third = (driven.acquire() for _ in range(3))
    driven.ready()
    assert on_probation(driven.dies()) == [first]
    driven.passed(first)
    driven.passed(second)
    assert sorted(driven.entry.granted) == [first, second]
    assert granted(driven.release(first)) == [third]


# ── quarantine ────────────────────────────────────────────────────────────────────────────────────


def test_two_deaths_alone_quarantine_and_the_others_go_on() -> None:
    driven = DrivenPool(3)
    assert on_probation(driven.dies(r2=50, r3=50)) == [1]
    assert on_probation(driven.dies()) == [2]
    driven.passed(2)
    assert on_probation(driven.passed(3)) == [1]
    assert interrupted(driven.exits()) == [2, 3, 1]
    effects = driven.returned(1)
    assert quarantined(effects) == ["r1"]
    assert ended(effects) == [(1, "request_crashed_worker")]
    driven.returned(2, 66)
    driven.returned(3, 66)
    assert granted(driven.ready()) == [2, 3]


def test_a_death_alone_is_forgotten_with_the_probation_that_is_passed() -> None:
    driven = DrivenPool(1)
    assert on_probation(driven.dies()) == [1]
    assert on_probation(driven.dies()) == [1]  # a death alone
    driven.passed(1)
    assert on_probation(driven.dies()) == [1]
    assert not quarantined(driven.dies())
    assert driven.entry.granted


def test_the_quarantined_and_its_equals_are_refused_for_an_hour() -> None:
    driven = DrivenPool(1)
    poison, equal = driven.acquire(b"x"), driven.acquire(b"x")
    assert on_probation(driven.dies(r1=50)) == [poison]
    assert on_probation(driven.dies()) == [1]  # who has no death alone, and no equal that had one
    assert on_probation(driven.passed(1)) == [poison]
    driven.exits()
    effects = driven.returned(poison)
    assert quarantined(effects) == ["r2"]
    assert ended(effects) == [(poison, "request_crashed_worker"), (equal, "request_crashed_worker")]
    assert driven.pool.recovery.blame.quarantined(driven.now) == [(b"x", QUARANTINE_SECONDS)]
    driven.returned(1, 66)
    assert granted(driven.ready()) == [1]
    driven.acquire(b"x")
    assert driven.refusal() == "request_crashed_worker"
    driven.acquire(b"y")
    assert driven.refusal() is None
    driven.after(QUARANTINE_SECONDS)
    driven.acquire(b"x")
    assert driven.refusal() is None


def test_no_request_is_quarantined_on_a_model_that_never_made_a_token() -> None:
    driven = DrivenPool(0)
    lease = driven.acquire(b"x")
    driven.ready()
    driven.dies()
    driven.dies()  # alone
    driven.exits()  # alone
    effects = driven.returned(lease)
    assert ended(effects) == [(lease, "worker_crashed")]
    assert not quarantined(effects)
    assert driven.pool.recovery.blame.quarantined(driven.now) == []
    # Once the model has made one for somebody, its deaths alone count.
    other, lease = driven.acquire(), driven.acquire(b"x")
    assert driven.refusal() is None
    assert granted(driven.ready()) == [other, lease]
    driven.passed(other)
    assert on_probation(driven.dies()) == [other]
    assert on_probation(driven.passed(other)) == [lease]
    driven.exits()
    assert quarantined(driven.returned(lease)) == ["r3"]


def test_a_request_that_makes_tokens_elsewhere_proves_the_model() -> None:
    driven = DrivenPool(1, proven=False)
    driven.dies(r1=3)  # it made them itself
    driven.dies()
    driven.exits()
    assert quarantined(driven.returned(1, 3)) == ["r1"]


@pytest.mark.parametrize("when", ["returning", "before the cause is known", "never returns"])
def test_leaving_spares_nobody_the_quarantine(when: str) -> None:
    driven = DrivenPool(1)
    lease = driven.acquire(b"x")
    driven.release(1)
    assert on_probation(driven.dies()) == [lease]
    assert on_probation(driven.dies()) == [lease]  # a death alone
    effects: list[Effect] = []
    if when == "before the cause is known":
        driven.pool.dying("m", driven.entry.generation, "SIGABRT", driven.now)
        driven.returned(lease)
        assert not quarantined(driven.release(lease))
        effects = driven.exits()
    else:
        driven.exits()
        effects = driven.release(lease) if when == "returning" else driven.after(RETURN_SECONDS)
    assert quarantined(effects) == ["r2"]
    driven.acquire(b"x")
    assert driven.refusal() == "request_crashed_worker"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_death_from_outside_counts_against_nobody(leaves: bool) -> None:
    driven = DrivenPool(1)
    lease = driven.acquire(b"x")
    driven.release(1)
    assert on_probation(driven.dies()) == [lease]
    driven.pool.dying("m", 2, "SIGABRT", driven.now)
    if leaves:
        driven.release(lease)
    driven.exits(Fault.OUTSIDE)
    driven.returned(lease)
    assert driven.pool.recovery.blame.deaths_alone(b"x", driven.now) == 0


def test_a_death_from_outside_makes_no_suspects_and_clears_none() -> None:
    driven = DrivenPool(2, max_recoveries=5)
    assert granted(driven.dies(Fault.OUTSIDE)) == [1, 2]
    assert on_probation(driven.dies()) == [1]
    assert on_probation(driven.dies(Fault.OUTSIDE)) == [1]
    assert on_probation(driven.passed(1)) == [2]


def test_who_returns_late_is_suspected_for_its_own_death() -> None:
    """The next worker has died meanwhile, of something else."""
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1)
    driven.exits(Fault.OUTSIDE)
    driven.returned(2)
    assert on_probation(driven.ready()) == [1]
    assert on_probation(driven.passed(1)) == [2]


def test_deaths_of_memory_make_suspects() -> None:
    assert on_probation(DrivenPool(2).dies(Fault.MEMORY)) == [1]


# ── giving up ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_request_gives_up_after_so_many_deaths_without_a_new_token(most: int) -> None:
    driven = DrivenPool(1, max_recoveries=most, proven=False)
    for _ in range(most):
        assert on_probation(driven.dies()) == [1]
    driven.exits()
    assert ended(driven.returned(1)) == [(1, "worker_crashed")]


def test_a_new_token_makes_it_go_on_but_twenty_deaths_are_enough() -> None:
    driven = DrivenPool(1, max_recoveries=1)
    for number in range(20):
        assert on_probation(driven.dies(r1=PROBATION_TOKENS * number + 1)) == [1]
        driven.passed(1)
    driven.exits()
    assert ended(driven.returned(1, 10_000)) == [(1, "worker_crashed")]


def test_a_hold_that_is_over_tells_of_the_death_and_not_of_the_queue() -> None:
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1)
    driven.now = 3.0
    driven.returned(2)
    late = driven.acquire(hold=1.0)
    driven.now = 4.0
    assert ended(driven.pool.tick(4.0)) == [(late, "model_loading")]
    for _ in range(11):  # its load goes on
        driven.pool.loading("m", 2, driven.now)
        effects = driven.after(9.0)
        if effects:
            break
    assert ended(effects) == [(1, "worker_crashed"), (2, "worker_crashed")]


def test_newcomers_displace_newcomers_alone() -> None:
    driven = DrivenPool(0, max_requests=3)
    for _ in range(3):
        driven.acquire()
    driven.ready()
    driven.exits()
    for lease in (1, 2, 3):
        driven.returned(lease)
    driven.acquire(model="other")
    assert driven.refusal() == "queue_full"
    driven.release(3)
    newcomer = driven.acquire()
    driven.acquire(model="other")
    assert driven.refusal() is None
    assert newcomer not in driven.entry.waiting
    assert sorted(driven.entry.waiting) == [1, 2]


def test_without_recovery_a_death_ends_its_requests() -> None:
    driven = DrivenPool(2, recovery="off")
    effects = driven.exits()
    assert ended(effects) == [(1, "worker_crashed"), (2, "worker_crashed")]
    assert not interrupted(effects)


def test_replay_takes_back_what_had_no_token() -> None:
    driven = DrivenPool(3, recovery="replay")
    assert interrupted(driven.exits()) == [1, 2, 3]
    assert ended(driven.returned(1, 1)) == [(1, "worker_crashed")]
    driven.returned(2)
    driven.returned(3)
    assert probations(driven.ready()) == [(2, PROBATION_TOKENS, True)]
    assert on_probation(driven.passed(2)) == [3]


def test_replay_counts_what_dies_alone_after_its_first_token() -> None:
    driven = DrivenPool(0, recovery="replay")
    lease = driven.acquire(b"x")
    driven.ready()
    driven.dies()
    driven.exits()
    assert ended(driven.returned(lease, PROBATION_TOKENS - 1)) == [(lease, "worker_crashed")]
    assert driven.pool.recovery.blame.deaths_alone(b"x", driven.now) == 1


def test_all_whose_end_is_decided_by_one_death_are_told() -> None:
    driven = DrivenPool(2, max_recoveries=0)
    driven.pool.dying("m", 1, "SIGABRT", driven.now)
    driven.returned(1)
    driven.returned(2)
    assert ended(driven.exits()) == [(1, "worker_crashed"), (2, "worker_crashed")]
