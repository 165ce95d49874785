"""supervisor.scheduler.recovery, through the pool: who comes back from a death, and when."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.scheduler.blame import PROBATION_TOKENS, QUARANTINE_SECONDS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect, Refuse
from supervisor.scheduler.recovery import RETURN_SECONDS
from tests.helpers.driven_pool import (
    HOLD,
    DrivenPool,
    awaited,
    ended,
    granted,
    interrupted,
    limits,
    quarantined,
)

# ── coming back ───────────────────────────────────────────────────────────────────────────────────


def test_after_a_first_death_all_come_back_together() -> None:
    driven = DrivenPool(4)
    effects = driven.dies(r1=9, r2=4, r3=5, r4=5)
    assert awaited(effects) == [(1, 12), (2, 7), (3, 8), (4, 8)]
    assert not driven.on_trial()
    assert granted(driven.pool.acquire("r", "m", HOLD, driven.now)[1]) == [5]


def test_nobody_is_granted_until_all_have_said_where_they_stand() -> None:
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1, 40)
    assert driven.ready() == []
    newcomer = driven.acquire()
    assert granted(driven.returned(2, 30)) == [1, 2, newcomer]


def test_a_gateway_that_says_nothing_is_not_waited_for() -> None:
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1)
    driven.ready()
    assert driven.pool.next_deadline() == RETURN_SECONDS
    assert driven.after(RETURN_SECONDS - 0.1) == []
    effects = driven.after(0.1)
    assert ended(effects) == [(2, "worker_crashed")]
    assert granted(effects) == [1]
    assert driven.returned(2, 7) == []
    assert driven.release(2) == []


def test_who_had_hardly_begun_is_tried_after_the_others_have_passed() -> None:
    driven = DrivenPool(4)
    effects = driven.dies(r1=9, r2=2, r3=3, r4=50)
    assert granted(effects) == [1, 3, 4]
    newcomer = driven.acquire()
    for lease in (1, 3):
        assert driven.passed(lease) == []
    assert awaited(driven.passed(4)) == [(2, 2 + PROBATION_TOKENS)]
    assert driven.on_trial() == [2]
    assert newcomer in driven.entry.waiting
    assert granted(driven.passed(2)) == [newcomer]


@pytest.mark.parametrize("tokens", [(0, 0, 0, 0), (0, 0, 9, 9), (9, 9, 9, 9)])
def test_no_minority_points_at_nobody(tokens: tuple[int, ...]) -> None:
    driven = DrivenPool(4)
    positions = {f"r{lease}": made for lease, made in enumerate(tokens, 1)}
    assert granted(driven.dies(Fault.REQUEST, **positions)) == [1, 2, 3, 4]


def stuck(requests: int = 4, **rules: Any) -> DrivenPool:
    """A crowd that has died twice in the same place, and may be as large as it was: the limit that
    this has taught is taken back."""
    driven = DrivenPool(requests, **rules)
    driven.dies()
    driven.exits()
    for lease in driven.leases:
        driven.returned(lease)
    driven.entry.learned_limit = driven.entry.presumption = None
    driven.ready()
    return driven


def test_the_second_death_in_the_same_place_separates_those_who_are_stuck() -> None:
    driven = DrivenPool(5)
    driven.dies(r1=20, r2=20, r3=10, r4=20, r5=20)
    effects = driven.exits()
    for lease, made in ((1, 23), (2, 21), (3, 10), (4, 22), (5, 60)):
        effects += driven.returned(lease, made)
    assert limits(effects) == [2]
    assert granted(driven.ready()) == [1, 5]  # they got past the place
    assert driven.passed(1) == driven.passed(5) == []  # no place for more
    assert granted(driven.release(5)) == [3]  # the shortest way to its own
    assert driven.on_trial() == [3]
    assert driven.passed(3) == []
    assert granted(driven.release(1)) == [2]
    assert granted(driven.release(2)) == [4]


def test_suspects_are_introduced_one_by_one_and_who_has_passed_runs_on() -> None:
    driven = stuck(3)
    newcomer = driven.acquire()
    for lease in (1, 2, 3):
        assert driven.on_trial() == [lease]
        assert sorted(driven.entry.granted) == list(range(1, lease + 1))
        effects = driven.passed(lease)
    assert granted(effects) == [newcomer]


@pytest.mark.parametrize("how", ["ends", "leaves", "never returns"])
def test_who_goes_holds_nobody_up(how: str) -> None:
    driven = stuck(3)
    if how == "never returns":
        driven.exits()
        effects = driven.after(RETURN_SECONDS)
        assert ended(effects) == [(1, "worker_crashed")]
        driven.ready()
        assert driven.on_trial() == [2]
        return
    effects = driven.release(1)
    assert granted(effects) == [2]
    if how == "leaves":
        driven.release(3)
    assert granted(driven.passed(2)) == ([] if how == "leaves" else [3])


def test_newcomers_are_told_why_they_waited() -> None:
    driven = stuck(3)
    newcomer = driven.acquire(hold=1.0)
    effects = driven.after(1.0)
    assert ended(effects) == [(newcomer, "queue_full")]
    (refusal,) = [effect for effect in effects if isinstance(effect, Refuse)]
    assert "3 requests that were interrupted go on before new ones" in refusal.error.message


def test_a_request_that_got_past_the_place_is_not_blamed_for_the_next_death() -> None:
    """Its word that it has passed crosses that of the death."""
    driven = DrivenPool(1)
    assert awaited(driven.dies(r1=4)) == [(1, 4 + PROBATION_TOKENS)]
    assert awaited(driven.dies(r1=4)) == [(1, 4 + PROBATION_TOKENS)]  # counts
    driven.exits()
    assert driven.passed(1) == []
    assert not quarantined(driven.returned(1, 4 + PROBATION_TOKENS))
    assert awaited(driven.ready()) == [(1, 4 + 2 * PROBATION_TOKENS)]
    assert not quarantined(driven.dies(r1=4 + PROBATION_TOKENS))  # the first one anew
    driven.exits()
    assert quarantined(driven.returned(1, 4 + PROBATION_TOKENS)) == ["r1"]


def test_places_are_for_survivors_as_for_newcomers() -> None:
    driven = DrivenPool(0, concurrency=2)
    first, second, third = (driven.acquire() for _ in range(3))
    driven.ready()
    assert granted(driven.dies()) == [first, second]
    driven.passed(first)
    driven.passed(second)
    assert granted(driven.release(first)) == [third]


def test_no_hold_runs_while_the_others_go_first() -> None:
    driven = DrivenPool(6)
    driven.exits(Fault.MEMORY)
    driven.now = 3.0
    for lease in driven.leases:
        driven.returned(lease, 5)
    assert granted(driven.ready()) == [1, 2, 3]
    newcomer = driven.acquire()
    assert ended(driven.after(20 * HOLD)) == [(newcomer, "queue_full")]
    assert granted(driven.release(1)) == [4]


def test_a_hold_runs_while_there_is_no_room() -> None:
    driven = DrivenPool(1, load_gate="exclusive", load_gate_timeout=10 * HOLD)
    other = driven.acquire(model="other")
    driven.exits()
    driven.pool.ready("other", 1, 0, 1, driven.now)
    driven.now = 2.0
    driven.returned(1, 7)  # its load waits for the generation of the other
    assert other in driven.pool.models["other"].granted
    assert ended(driven.after(HOLD - 1.0)) == []
    assert ended(driven.after(1.0)) == [(1, "worker_crashed")]


# ── guilt ─────────────────────────────────────────────────────────────────────────────────────────


def test_who_dies_as_the_only_one_on_trial_and_then_alone_is_quarantined() -> None:
    driven = stuck(3)
    driven.passed(1)
    assert driven.on_trial() == [2]
    effects = driven.dies(r1=66)
    assert granted(effects) == [2]  # alone, before the others
    assert driven.on_trial() == [2]
    assert interrupted(driven.exits()) == [2]
    effects = driven.returned(2)
    assert quarantined(effects) == ["r2"]
    assert ended(effects) == [(2, "request_crashed_worker")]
    assert granted(driven.ready()) == [1]
    assert granted(driven.passed(1)) == [3]
    assert driven.entry.deaths == 4


def test_who_is_accused_and_passes_was_one_too_many() -> None:
    driven = stuck(4)
    driven.passed(1)
    driven.passed(2)
    assert driven.on_trial() == [3]
    assert granted(driven.dies(r1=66, r2=66)) == [3]
    effects = driven.passed(3)
    assert limits(effects) == [2]
    assert granted(effects) == [1]
    assert driven.pool.recovery.blame.deaths(b"3", driven.now) == 0


def test_a_limit_that_was_taught_by_the_guilty_is_taken_back() -> None:
    driven = DrivenPool(4, concurrency=32)
    driven.dies()
    driven.exits()
    effects = [effect for lease in driven.leases for effect in driven.returned(lease)]
    assert limits(effects) == [2]
    driven.ready()
    driven.dies()  # the first one alone
    driven.exits()
    effects = driven.returned(1)
    assert quarantined(effects) == ["r1"]
    assert limits(effects) == [None]
    assert driven.entry.concurrency == 32


def test_who_asks_by_hand_may_have_as_many_again() -> None:
    driven = DrivenPool(4, concurrency=32)
    driven.dies()
    driven.dies()
    assert driven.entry.concurrency == 2
    assert granted(driven.passed(1)) == [2]
    effects = driven.pool.load("p", "m", HOLD, driven.now)[1]
    assert limits(effects) == [None]
    assert granted(driven.passed(2)) == [3]


def test_a_death_for_want_of_memory_counts_against_one_that_was_alone() -> None:
    driven = stuck(3, concurrency=32)
    driven.passed(1)
    driven.dies(Fault.MEMORY, r1=66)
    assert driven.pool.recovery.blame.deaths(b"2", driven.now) == 0
    assert driven.entry.concurrency == 1
    driven.release(1)
    assert driven.on_trial() == [2]
    driven.dies(Fault.MEMORY)
    assert driven.pool.recovery.blame.deaths(b"2", driven.now) == 1
    driven.exits(Fault.MEMORY)
    assert quarantined(driven.returned(2)) == ["r2"]


def test_the_quarantined_and_its_equals_are_refused_for_an_hour() -> None:
    driven = DrivenPool(1)
    poison, equal = driven.acquire(b"x"), driven.acquire(b"x")
    driven.release(1)
    driven.dies()
    driven.dies()
    assert driven.on_trial() == [poison]
    driven.dies()
    assert driven.on_trial() == [poison]
    driven.exits()
    effects = driven.returned(poison)
    assert quarantined(effects) == ["r2"]
    assert ended(effects) == [(poison, "request_crashed_worker"), (equal, "request_crashed_worker")]
    assert driven.pool.recovery.blame.quarantined(driven.now) == [(b"x", QUARANTINE_SECONDS)]
    driven.acquire(b"x")
    assert driven.refusal() == "request_crashed_worker"
    driven.acquire(b"y")
    assert driven.refusal() is None
    driven.after(QUARANTINE_SECONDS)
    driven.acquire(b"x")
    assert driven.refusal() is None


def test_one_whose_equal_has_a_death_on_record_is_suspected_at_once() -> None:
    driven = DrivenPool(0)
    driven.pool.recovery.blame.add_death(b"x", 0.0, alone=True)
    known, others = driven.acquire(b"x"), [driven.acquire() for _ in range(3)]
    driven.ready()
    driven.passed(others[0])
    assert granted(driven.dies(r1=50, r2=50, r3=50, r4=50)) == [known]
    assert driven.on_trial() == [known]
    assert granted(driven.passed(known)) == others


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
    assert driven.pool.recovery.blame.deaths(b"x", driven.now) == 0


def test_who_kills_a_model_that_never_made_a_token_is_guilty_once_somebody_has_one() -> None:
    driven = stuck(3, proven=False)
    assert driven.on_trial() == [1]
    driven.dies()
    assert driven.on_trial() == [1]
    effects = driven.dies()
    assert not quarantined(effects)
    assert driven.on_trial() == [2]
    effects = driven.passed(2)
    assert quarantined(effects) == ["r1"]
    assert ended(effects) == [(1, "request_crashed_worker")]
    assert granted(effects) == [3]
    assert not driven.entry.proven  # the next one is not convicted before another token


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
    driven.dies()
    driven.dies()  # alone
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
    driven.dies()
    driven.pool.dying("m", 2, "SIGABRT", driven.now)
    if leaves:
        driven.release(lease)
    driven.exits(Fault.OUTSIDE)
    driven.returned(lease)
    assert driven.pool.recovery.blame.deaths(b"x", driven.now) == 0


def test_a_death_from_outside_makes_no_suspects_and_clears_none() -> None:
    driven = DrivenPool(2, max_recoveries=5)
    effects = driven.dies(Fault.OUTSIDE)
    assert granted(effects) == [1, 2]
    assert not awaited(effects)
    driven = stuck(2, max_recoveries=5)
    assert driven.on_trial() == [1]
    driven.dies(Fault.OUTSIDE)
    assert driven.on_trial() == [1]
    assert granted(driven.passed(1)) == [2]


def test_who_returns_late_is_judged_by_its_own_death() -> None:
    """The next worker has died meanwhile, of something else."""
    driven = DrivenPool(2)
    driven.exits()
    driven.returned(1)
    driven.exits(Fault.OUTSIDE)
    driven.returned(2)
    assert awaited(driven.ready()) == [(1, PROBATION_TOKENS), (2, PROBATION_TOKENS)]


# ── giving up ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_request_gives_up_after_so_many_deaths_without_a_new_token(most: int) -> None:
    driven = DrivenPool(1, max_recoveries=most, proven=False)
    for _ in range(most):
        assert granted(driven.dies()) == [1]
    driven.exits()
    assert ended(driven.returned(1)) == [(1, "worker_crashed")]


def test_a_new_token_makes_it_go_on_but_twenty_deaths_are_enough() -> None:
    driven = DrivenPool(1, max_recoveries=1)
    for number in range(20):
        assert granted(driven.dies(r1=PROBATION_TOKENS * number + 1)) == [1]
        driven.passed(1)
    driven.exits()
    assert ended(driven.returned(1, 10_000)) == [(1, "worker_crashed")]


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
    assert awaited(driven.ready()) == [(2, PROBATION_TOKENS), (3, PROBATION_TOKENS)]


def test_replay_counts_what_dies_alone_after_its_first_token() -> None:
    driven = DrivenPool(0, recovery="replay")
    lease = driven.acquire(b"x")
    driven.ready()
    driven.dies()
    driven.exits()
    assert ended(driven.returned(lease, PROBATION_TOKENS - 1)) == [(lease, "worker_crashed")]
    assert driven.pool.recovery.blame.deaths(b"x", driven.now) == 1


def test_all_whose_end_is_decided_by_one_death_are_told() -> None:
    driven = DrivenPool(2, max_recoveries=0)
    driven.pool.dying("m", 1, "SIGABRT", driven.now)
    driven.returned(1)
    driven.returned(2)
    assert ended(driven.exits()) == [(1, "worker_crashed"), (2, "worker_crashed")]


# ── several choices ───────────────────────────────────────────────────────────────────────────────


def _several(*places: int, concurrency: int = 0) -> DrivenPool:
    """A proven model in which requests of so many choices run."""
    driven = DrivenPool(1, concurrency=concurrency)
    for number, wanted in enumerate(places, 2):
        driven.pool.acquire(f"r{number}", "m", HOLD, driven.now, places=wanted)
    driven.release(1)
    return driven


def test_one_request_with_several_choices_is_a_crowd_before_it_is_poison() -> None:
    driven = _several(8)
    assert not limits(driven.dies(r2=9))
    taught = [each for _ in range(3) for each in limits(_died(driven))]
    assert taught == [4, 2, 1]
    assert driven.entry.granted[2].held == 1
    driven.dies()
    effects = driven.exits()
    assert quarantined([*effects, *driven.returned(2)]) == ["r2"]


def _died(driven: DrivenPool) -> list[Effect]:
    """As `DrivenPool.dies`, and all effects."""
    effects = driven.exits()
    for lease in list(driven.entry.returning):
        effects += driven.returned(lease, 0)
    return [*effects, *driven.ready()]


def test_a_crowd_of_choices_is_halved_by_what_ran_and_not_by_who_asked() -> None:
    driven = _several(8, 8)
    driven.dies(r2=9, r3=9)
    assert limits(_died(driven)) == [8]
    assert driven.entry.in_flight <= 8


def test_survivors_with_several_choices_keep_to_the_limit_beside_a_suspect() -> None:
    driven = _several(3, 3, 3, 3, concurrency=4)
    driven.dies(r2=9, r3=9, r4=0, r5=9)
    assert driven.entry.in_flight <= 4
