"""supervisor.scheduler.requests, through the pool: who comes back from a death, in which order, and who not."""

from __future__ import annotations

import pytest

from supervisor.scheduler.blame import PROBATION_TOKENS, QUARANTINE_SECONDS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.recovery import RETURN_SECONDS
from tests.helpers.ward import (
    HOLD,
    Ward,
    convicted,
    ended,
    granted,
    interrupted,
    proceeding,
    trials,
    tried,
)

# ── trials ───────────────────────────────────────────────────────────────────────────────────────


def test_suspects_are_tried_alone_the_shortest_way_first() -> None:
    ward = Ward(4)
    effects = ward.dies(r1=9, r2=0, r3=5, r4=5)
    assert trials(effects) == [(2, PROBATION_TOKENS, True)]
    newcomer = ward.acquire()
    assert trials(ward.passed(2)) == [(3, 5 + PROBATION_TOKENS, True)]
    assert trials(ward.passed(3)) == [(4, 5 + PROBATION_TOKENS, True)]
    effects = ward.passed(4)
    assert trials(effects) == [(1, 9 + PROBATION_TOKENS, False)]  # nobody is left to wait for
    assert not proceeding(effects)
    effects = ward.passed(1)
    assert proceeding(effects) == [2, 3, 4]
    assert granted(effects) == [newcomer]


def test_one_that_died_alone_is_tried_last() -> None:
    ward = Ward(3)
    assert tried(ward.dies(r1=0, r2=50, r3=60)) == [1]
    assert tried(ward.dies()) == [2]
    assert tried(ward.passed(2)) == [3]
    assert tried(ward.passed(3)) == [1]
    assert proceeding(ward.passed(1)) == [2, 3]


@pytest.mark.parametrize("how", ["passes", "ends", "leaves the queue", "its hold is over"])
def test_those_who_have_passed_go_on_after_the_last_suspect(how: str) -> None:
    ward = Ward(2)
    assert tried(ward.dies()) == [1]
    effects = ward.passed(1)
    assert tried(effects) == [2]
    if how == "passes":
        effects = ward.passed(2)
    elif how == "ends":
        effects = ward.release(2)
    else:
        ward = Ward(3)
        ward.dies()
        ward.release(3)
        if how == "leaves the queue":
            ward.release(2)
        else:
            assert ended(ward.after(HOLD)) == [(2, "worker_crashed")]
        effects = ward.passed(1)
    assert proceeding(effects) == [1]
    assert not any(lease.suspicion.name == "PAUSED" for lease in ward.entry.granted.values())


def test_nobody_is_tried_until_all_have_said_where_they_stand() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1, 40)
    assert ward.ready() == []
    newcomer = ward.acquire()
    assert tried(ward.returned(2, 3)) == [2]
    assert newcomer in ward.entry.waiting


def test_a_gateway_that_says_nothing_is_not_waited_for() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.ready()
    assert ward.pool.next_deadline() == RETURN_SECONDS
    assert ward.after(RETURN_SECONDS - 0.1) == []
    effects = ward.after(0.1)
    assert ended(effects) == [(2, "worker_crashed")]
    assert tried(effects) == [1]
    assert ward.returned(2, 7) == []
    assert ward.release(2) == []


def test_a_client_that_leaves_while_it_returns_or_is_tried_holds_nobody_up() -> None:
    ward = Ward(3)
    ward.exits()
    ward.returned(1)
    ward.returned(2)
    ward.ready()
    assert tried(ward.release(3)) == [1]
    assert tried(ward.release(1)) == [2]
    assert ward.release(2) == []
    assert ward.state() is State.READY


def test_those_who_have_passed_are_not_suspected_when_another_kills() -> None:
    ward = Ward(3, max_recoveries=1)
    ward.dies(r2=50, r3=60)
    ward.passed(1)
    assert tried(ward.passed(2)) == [3]
    effects = ward.dies(r3=70)  # it got on, but not far enough
    assert tried(effects) == [3]
    assert sorted(ward.entry.waiting) == [1, 2]
    effects = ward.passed(3)
    assert granted(effects) == [1, 2]
    assert not proceeding(effects)


def test_a_request_that_got_on_to_the_end_of_its_trial_is_not_struck_by_the_next_death() -> None:
    """Its word that it has passed crosses that of the death."""
    ward = Ward(1)
    assert trials(ward.dies(r1=4)) == [(1, 4 + PROBATION_TOKENS, False)]
    assert trials(ward.dies(r1=4)) == [(1, 4 + PROBATION_TOKENS, False)]  # a strike
    ward.exits()
    assert ward.passed(1) == []
    assert not convicted(ward.returned(1, 4 + PROBATION_TOKENS))
    assert trials(ward.ready()) == [(1, 4 + 2 * PROBATION_TOKENS, False)]
    assert not convicted(ward.dies(r1=4 + PROBATION_TOKENS))  # the first strike anew
    ward.exits()
    assert convicted(ward.returned(1, 4 + PROBATION_TOKENS)) == ["r1"]


def test_places_are_not_exceeded_by_suspects() -> None:
    ward = Ward(0, concurrency=2)
    first, second, third = (ward.acquire() for _ in range(3))
    ward.ready()
    assert tried(ward.dies()) == [first]
    ward.passed(first)
    ward.passed(second)
    assert sorted(ward.entry.granted) == [first, second]
    assert granted(ward.release(first)) == [third]


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def test_two_deaths_alone_convict_and_the_others_go_on() -> None:
    ward = Ward(3)
    assert tried(ward.dies(r2=50, r3=50)) == [1]
    assert tried(ward.dies()) == [2]
    ward.passed(2)
    assert tried(ward.passed(3)) == [1]
    assert interrupted(ward.exits()) == [2, 3, 1]
    effects = ward.returned(1)
    assert convicted(effects) == ["r1"]
    assert ended(effects) == [(1, "request_crashed_worker")]
    ward.returned(2, 66)
    ward.returned(3, 66)
    assert granted(ward.ready()) == [2, 3]


def test_a_strike_is_forgotten_with_the_trial_that_is_passed() -> None:
    ward = Ward(1)
    assert tried(ward.dies()) == [1]
    assert tried(ward.dies()) == [1]  # a strike
    ward.passed(1)
    assert tried(ward.dies()) == [1]
    assert not convicted(ward.dies())
    assert ward.entry.granted


def test_the_guilty_and_its_equals_are_refused_for_an_hour() -> None:
    ward = Ward(1)
    poison, equal = ward.acquire(b"x"), ward.acquire(b"x")
    assert tried(ward.dies(r1=50)) == [poison]
    assert tried(ward.dies()) == [1]  # who has no death alone, and no equal that had one
    assert tried(ward.passed(1)) == [poison]
    ward.exits()
    effects = ward.returned(poison)
    assert convicted(effects) == ["r2"]
    assert ended(effects) == [(poison, "request_crashed_worker"), (equal, "request_crashed_worker")]
    assert ward.pool.recovery.blame.quarantined(ward.now) == [(b"x", QUARANTINE_SECONDS)]
    ward.returned(1, 66)
    assert granted(ward.ready()) == [1]
    ward.acquire(b"x")
    assert ward.refusal() == "request_crashed_worker"
    ward.acquire(b"y")
    assert ward.refusal() is None
    ward.after(QUARANTINE_SECONDS)
    ward.acquire(b"x")
    assert ward.refusal() is None


def test_no_request_is_guilty_on_a_model_that_never_made_a_token() -> None:
    ward = Ward(0)
    lease = ward.acquire(b"x")
    ward.ready()
    ward.dies()
    ward.dies()  # alone
    ward.exits()  # alone
    effects = ward.returned(lease)
    assert ended(effects) == [(lease, "worker_crashed")]
    assert not convicted(effects)
    assert ward.pool.recovery.blame.quarantined(ward.now) == []
    # Once the model has made one for somebody, its deaths alone count.
    other, lease = ward.acquire(), ward.acquire(b"x")
    assert ward.refusal() is None
    assert granted(ward.ready()) == [other, lease]
    ward.passed(other)
    assert tried(ward.dies()) == [other]
    assert tried(ward.passed(other)) == [lease]
    ward.exits()
    assert convicted(ward.returned(lease)) == ["r3"]


def test_a_request_that_makes_tokens_elsewhere_proves_the_model() -> None:
    ward = Ward(1, proven=False)
    ward.dies(r1=3)  # it made them itself
    ward.dies()
    ward.exits()
    assert convicted(ward.returned(1, 3)) == ["r1"]


@pytest.mark.parametrize("when", ["returning", "before the cause is known", "never returns"])
def test_leaving_spares_nobody_the_verdict(when: str) -> None:
    ward = Ward(1)
    lease = ward.acquire(b"x")
    ward.release(1)
    assert tried(ward.dies()) == [lease]
    assert tried(ward.dies()) == [lease]  # a strike
    effects: list[Effect] = []
    if when == "before the cause is known":
        ward.pool.dying("m", ward.entry.generation, "SIGABRT", ward.now)
        ward.returned(lease)
        assert not convicted(ward.release(lease))
        effects = ward.exits()
    else:
        ward.exits()
        effects = ward.release(lease) if when == "returning" else ward.after(RETURN_SECONDS)
    assert convicted(effects) == ["r2"]
    ward.acquire(b"x")
    assert ward.refusal() == "request_crashed_worker"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_death_from_outside_strikes_nobody(leaves: bool) -> None:
    ward = Ward(1)
    lease = ward.acquire(b"x")
    ward.release(1)
    assert tried(ward.dies()) == [lease]
    ward.pool.dying("m", 2, "SIGABRT", ward.now)
    if leaves:
        ward.release(lease)
    ward.exits(Fault.OUTSIDE)
    ward.returned(lease)
    assert ward.pool.recovery.blame.deaths_alone(b"x", ward.now) == 0


def test_a_death_from_outside_makes_no_suspects_and_clears_none() -> None:
    ward = Ward(2, max_recoveries=5)
    assert granted(ward.dies(Fault.OUTSIDE)) == [1, 2]
    assert tried(ward.dies()) == [1]
    assert tried(ward.dies(Fault.OUTSIDE)) == [1]
    assert tried(ward.passed(1)) == [2]


def test_who_returns_late_is_judged_by_its_own_death() -> None:
    """The next worker has died meanwhile, of something else."""
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.exits(Fault.OUTSIDE)
    ward.returned(2)
    assert tried(ward.ready()) == [1]
    assert tried(ward.passed(1)) == [2]


def test_deaths_of_memory_make_suspects() -> None:
    assert tried(Ward(2).dies(Fault.MEMORY)) == [1]


# ── giving up ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_request_gives_up_after_so_many_deaths_without_a_new_token(most: int) -> None:
    ward = Ward(1, max_recoveries=most, proven=False)
    for _ in range(most):
        assert tried(ward.dies()) == [1]
    ward.exits()
    assert ended(ward.returned(1)) == [(1, "worker_crashed")]


def test_a_new_token_makes_it_go_on_but_twenty_deaths_are_enough() -> None:
    ward = Ward(1, max_recoveries=1)
    for number in range(20):
        assert tried(ward.dies(r1=PROBATION_TOKENS * number + 1)) == [1]
        ward.passed(1)
    ward.exits()
    assert ended(ward.returned(1, 10_000)) == [(1, "worker_crashed")]


def test_a_hold_that_is_over_tells_of_the_death_and_not_of_the_queue() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.now = 3.0
    ward.returned(2)
    late = ward.acquire(hold=1.0)
    ward.now = 4.0
    assert ended(ward.pool.tick(4.0)) == [(late, "model_loading")]
    for _ in range(11):  # its load goes on
        ward.pool.loading("m", 2, ward.now)
        effects = ward.after(9.0)
        if effects:
            break
    assert ended(effects) == [(1, "worker_crashed"), (2, "worker_crashed")]


def test_newcomers_displace_newcomers_alone() -> None:
    ward = Ward(0, max_requests=3)
    for _ in range(3):
        ward.acquire()
    ward.ready()
    ward.exits()
    for lease in (1, 2, 3):
        ward.returned(lease)
    ward.acquire(model="other")
    assert ward.refusal() == "queue_full"
    ward.release(3)
    newcomer = ward.acquire()
    ward.acquire(model="other")
    assert ward.refusal() is None
    assert newcomer not in ward.entry.waiting
    assert sorted(ward.entry.waiting) == [1, 2]


def test_without_recovery_a_death_ends_its_requests() -> None:
    ward = Ward(2, recovery="off")
    effects = ward.exits()
    assert ended(effects) == [(1, "worker_crashed"), (2, "worker_crashed")]
    assert not interrupted(effects)


def test_replay_takes_back_what_had_no_token() -> None:
    ward = Ward(3, recovery="replay")
    assert interrupted(ward.exits()) == [1, 2, 3]
    assert ended(ward.returned(1, 1)) == [(1, "worker_crashed")]
    ward.returned(2)
    ward.returned(3)
    assert trials(ward.ready()) == [(2, PROBATION_TOKENS, True)]
    assert tried(ward.passed(2)) == [3]


def test_replay_strikes_what_dies_alone_after_its_first_token() -> None:
    ward = Ward(0, recovery="replay")
    lease = ward.acquire(b"x")
    ward.ready()
    ward.dies()
    ward.exits()
    assert ended(ward.returned(lease, PROBATION_TOKENS - 1)) == [(lease, "worker_crashed")]
    assert ward.pool.recovery.blame.deaths_alone(b"x", ward.now) == 1
