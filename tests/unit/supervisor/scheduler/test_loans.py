"""supervisor.scheduler.loans, through the pool: who is lent what, and who gives it back."""

from __future__ import annotations

import random

import pytest

from supervisor.scheduler.effects import Effect, Lend, Recall, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import ANSWER_SECONDS, LoanNeeds
from supervisor.scheduler.model import Rules
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from tests.helpers.pools import GB, ask, done, loaded, said, serve, small_machine, states

MB = 10**6


def two_workers(budget: int = 10 * GB) -> Pool:
    """`a` and `b` are loaded with 4 GB each."""
    pool = small_machine("a", "b", budget=budget, size=4 * GB)
    loaded(pool, "a", size=4 * GB)
    loaded(pool, "b", size=4 * GB)
    return pool


def test_what_is_free_is_lent_all_of_it_that_is_of_use() -> None:
    pool = two_workers()
    needs = LoanNeeds(least=100 * MB, most=256 * MB, since=5.0)
    assert done(pool.memory.needs("a", 1, needs, 10.0)) == [Lend("a", 1, 256 * MB)]
    assert pool.state.ledger.lent(("a", 1)) == 256 * MB
    assert pool.state.ledger.free == 2 * GB - 256 * MB


def test_what_is_given_back_is_free() -> None:
    pool = two_workers()
    pool.memory.needs("a", 1, LoanNeeds(least=1, most=GB, since=5.0), 10.0)
    pool.memory.repaid("a", 1, GB, 0, 11.0)
    assert pool.state.ledger.free == 2 * GB


def test_words_of_another_generation_change_nothing() -> None:
    pool = two_workers()
    for generation in (0, 2):
        assert pool.memory.needs("a", generation, LoanNeeds(least=1, most=1), 10.0) == []
        assert pool.memory.repaid("a", generation, GB, 0, 10.0) == []


def ready(*, budget: int = 10 * GB, since: float = 5.0, rules: Rules | None = None) -> Pool:
    """`a` has borrowed 2 GB, `b` nothing, nothing is free, and both have a request."""
    pool = small_machine("a", "b", budget=budget, size=4 * GB, rules=rules)
    serve(pool, "a", 0.0, size=4 * GB)
    serve(pool, "b", 0.0, size=4 * GB)
    assert done(pool.memory.needs("a", 1, LoanNeeds(1, 2 * GB, since), 6.0)) == [
        Lend("a", 1, 2 * GB)
    ]
    return pool


def test_a_need_that_cannot_be_met_stands_until_it_can() -> None:
    pool = ready()
    assert done(pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0)) == []
    assert done(pool.memory.repaid("a", 1, GB // 2, 0, 9.0)) == []
    assert done(pool.memory.repaid("a", 1, GB // 2, 0, 10.0)) == [Lend("b", 1, GB)]
    assert done(pool.memory.repaid("a", 1, GB, 0, 11.0)) == []  # until it says anew


def test_idle_loans_are_called_back_for_a_need_and_kept_for_it() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    asked = done(pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0))
    assert asked == [Recall("a", 1, 1, GB)]
    # A younger one does not snatch them, nor does a load.
    assert (
        done(pool.memory.needs("a", 1, LoanNeeds(GB // 2, GB, since=7.5, idle=2 * GB), 8.1)) == []
    )
    assert done(pool.memory.repaid("a", 1, GB, 1, 8.2))[0] == Lend("b", 1, GB)


def test_a_worker_is_asked_for_one_thing_at_a_time() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0)
    assert done(pool.memory.needs("b", 1, LoanNeeds(2 * GB, 2 * GB, 7.0), 8.1)) == []
    assert done(pool.memory.repaid("a", 1, GB, 1, 8.2)) == [Recall("a", 1, 2, GB)]


def test_who_does_not_answer_counts_as_giving_nothing() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0)
    assert pool.next_deadline() == 8.0 + ANSWER_SECONDS
    assert "is silent" in said(pool.tick(8.0 + ANSWER_SECONDS))
    assert done(pool.memory.repaid("a", 1, GB, 1, 20.0)) == [Lend("b", 1, GB)]  # late is not never
    assert done(pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 21.0)) == [Recall("a", 1, 2, GB)]


def test_who_never_answers_is_asked_anew_after_a_while() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0)
    pool.tick(10.0)
    assert Recall("a", 1, 2, GB) in pool.tick(40.0)


def test_who_gives_less_is_left_alone_for_a_moment() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0)
    assert done(pool.memory.repaid("a", 1, 0, 1, 8.1)) == []
    assert done(pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 8.2)) == []
    assert Recall("a", 1, 2, GB) in pool.tick(9.1)


def test_while_idle_bytes_do_not_come_the_youngest_request_is_parked() -> None:
    """A worker may take for idle what it can't give: the oldest request must not wait for that."""
    pool = ready()
    says = LoanNeeds(idle=GB, youngest=6.0, parkable=GB)
    pool.memory.needs("a", 1, says, 7.0)
    asked = done(pool.memory.needs("b", 1, LoanNeeds(GB, GB, 5.5), 8.0))
    assert asked == [Recall("a", 1, 1, GB)]
    assert done(pool.memory.repaid("a", 1, 0, 1, 8.1)) == [Recall("a", 1, 2, GB, park=True)]
    # Whom it has parked it says anew; until then nobody is.
    assert done(pool.memory.repaid("a", 1, GB // 2, 2, 8.2)) == []
    assert done(pool.memory.needs("a", 1, says, 8.3)) == [Recall("a", 1, 3, GB // 2, park=True)]


def test_an_idle_loan_goes_before_an_idle_model() -> None:
    pool = two_workers()
    pool.memory.needs("a", 1, LoanNeeds(1, 2 * GB, 5.0), 6.0)
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    assert done(pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0)) == [Recall("a", 1, 1, GB)]
    more = done(pool.memory.needs("b", 1, LoanNeeds(3 * GB, 3 * GB, 7.0), 8.0))
    assert more == [Stop("a", 1, kill=False)]


def test_a_busy_model_never_goes_for_anothers_cache() -> None:
    pool = ready(rules=Rules(min_residency=0.0, max_wait=0.0))
    for now in (8.0, 100.0):
        assert done(pool.memory.needs("b", 1, LoanNeeds(GB, GB, 1.0), now)) == []
    assert states(pool) == {"a": State.READY, "b": State.READY}


def test_the_youngest_request_of_all_is_parked_for_the_oldest() -> None:
    pool = ready(since=6.0)
    pool.memory.needs("a", 1, LoanNeeds(youngest=6.0, parkable=2 * GB), 7.0)
    effects = pool.memory.needs("b", 1, LoanNeeds(GB, GB, since=5.0), 8.0)
    assert done(effects) == [Recall("a", 1, 1, GB, park=True)]
    assert "is parked" in said(effects)
    # What was parked wants it back, and waits for its turn.
    assert done(pool.memory.repaid("a", 1, GB, 1, 8.1)) == [Lend("b", 1, GB)]
    assert done(pool.memory.needs("a", 1, LoanNeeds(GB, GB, since=6.0), 8.2)) == []


@pytest.mark.parametrize("since", [6.0, 6.5])
def test_nobody_as_old_or_older_is_parked(since: float) -> None:
    pool = ready(since=6.0)
    pool.memory.needs("a", 1, LoanNeeds(youngest=6.0, parkable=2 * GB), 7.0)
    assert done(pool.memory.needs("b", 1, LoanNeeds(GB, GB, since), 8.0)) == []


def test_parking_that_would_not_suffice_is_not_begun() -> None:
    pool = ready(since=6.0)
    pool.memory.needs("a", 1, LoanNeeds(youngest=6.0, parkable=2 * GB), 7.0)
    assert done(pool.memory.needs("b", 1, LoanNeeds(3 * GB, 3 * GB, since=5.0), 8.0)) == []


def test_a_waiting_load_calls_idle_loans_back() -> None:
    pool = small_machine("a", "b", size=4 * GB)
    serve(pool, "a", 0.0, size=4 * GB)
    pool.memory.needs("a", 1, LoanNeeds(1, 4 * GB, 5.0), 6.0)
    pool.memory.needs("a", 1, LoanNeeds(idle=4 * GB), 7.0)
    ask(pool, "b", 8.0)
    assert states(pool)["b"] is State.COLD
    assert pool.state.ledger.lent(("a", 1)) == 4 * GB
    assert done(pool.memory.repaid("a", 1, 2 * GB, 1, 8.1)) == [Spawn("b", 1)]


def test_a_load_that_is_larger_than_thought_calls_idle_loans_back_before_anybody_goes() -> None:
    pool = small_machine("a", "b", "c", budget=14 * GB, size=4 * GB)
    loaded(pool, "c", size=4 * GB)
    serve(pool, "a", 3.0, size=4 * GB)
    pool.memory.needs("a", 1, LoanNeeds(1, 2 * GB, 5.0), 6.0)
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    ask(pool, "b", 8.0)
    assert done(pool.ready("b", 1, 5 * GB, 1, 9.0))[0] == Recall("a", 1, 1, GB)
    # It gives less than was counted on: now the idle model goes.
    assert Stop("c", 1, kill=False) in pool.memory.repaid("a", 1, GB // 2, 1, 9.1)


def test_a_worker_is_not_trusted_to_count() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=9 * GB, parkable=9 * GB, youngest=9.0), 7.0)
    assert done(pool.memory.needs("b", 1, LoanNeeds(3 * GB, 3 * GB, 5.0), 8.0)) == []
    pool.memory.repaid("a", 1, 9 * GB, 0, 9.0)
    assert pool.state.ledger.charged == 8 * GB


def test_a_death_in_the_middle_of_a_recall_gives_all_of_it_back() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    pool.memory.needs("b", 1, LoanNeeds(GB, GB, 7.0), 8.0)
    effects = pool.exited("a", 1, "SIGKILL", 8.1)
    assert Lend("b", 1, GB) in effects
    assert pool.memory.repaid("a", 1, GB, 1, 8.2) == []


# ── words that cross ─────────────────────────────────────────────────────────────────────────────


def test_what_is_on_its_way_comes_off_what_is_asked_for() -> None:
    """The second word left before the first loan was heard of: no idle model goes for it."""
    pool = two_workers(budget=8 * GB + 256 * MB)
    first = LoanNeeds(10 * MB, 256 * MB, 5.0, heard=0)
    assert done(pool.memory.needs("a", 1, first, 10.0)) == [Lend("a", 1, 256 * MB)]
    second = LoanNeeds(20 * MB, 256 * MB, 5.0, heard=0)
    assert done(pool.memory.needs("a", 1, second, 10.1)) == []
    heard = LoanNeeds(20 * MB, 256 * MB, 5.0, heard=256 * MB)
    assert done(pool.memory.needs("a", 1, heard, 10.2)) == [Stop("b", 1, kill=False)]


def test_no_more_is_lent_than_the_last_word_asks_for() -> None:
    pool = two_workers(budget=20 * GB)
    pool.memory.needs("a", 1, LoanNeeds(300 * MB, 300 * MB, 5.0, heard=0), 10.0)
    more = LoanNeeds(200 * MB, 350 * MB, 5.0, heard=0)
    assert done(pool.memory.needs("a", 1, more, 10.1)) == [Lend("a", 1, 50 * MB)]
    assert done(pool.memory.needs("a", 1, more, 10.2)) == []


def test_what_was_given_back_does_not_make_a_loan_unheard() -> None:
    pool = two_workers(budget=20 * GB)
    pool.memory.needs("a", 1, LoanNeeds(GB, GB, 5.0, heard=0), 10.0)
    pool.memory.repaid("a", 1, GB, 0, 11.0)
    needs = LoanNeeds(GB, GB, 5.0, heard=GB)
    assert done(pool.memory.needs("a", 1, needs, 12.0)) == [Lend("a", 1, GB)]


def test_what_was_of_use_is_lent_once_it_is_free() -> None:
    pool = two_workers(budget=8 * GB + 100 * MB)
    needs = LoanNeeds(10 * MB, 256 * MB, 5.0)
    assert done(pool.memory.needs("a", 1, needs, 10.0)) == [Lend("a", 1, 100 * MB)]
    assert done(pool.unload("b", 11.0)) == [Stop("b", 1, kill=False)]
    assert done(pool.exited("b", 1, "", 12.0)) == [Lend("a", 1, 156 * MB)]


def test_what_came_back_by_itself_is_not_asked_for_again() -> None:
    pool = ready()
    pool.memory.needs("a", 1, LoanNeeds(idle=2 * GB), 7.0)
    pool.memory.repaid("a", 1, GB, 0, 7.1)
    # It has 1 GB, and 1 GB is free.
    assert done(pool.memory.needs("b", 1, LoanNeeds(3 * GB, 3 * GB, 5.0), 8.0)) == []
    asked = done(pool.memory.needs("b", 1, LoanNeeds(2 * GB, 2 * GB, 5.0), 8.1))
    assert asked == [Recall("a", 1, 1, GB)]


def test_a_recall_that_crosses_what_comes_back_brings_no_more_than_there_is() -> None:
    """`a` gives back half before it hears of the recall, and `c` has an idle loan as well."""
    pool = small_machine("a", "b", "c", budget=14 * GB, size=4 * GB)
    for name in "abc":
        serve(pool, name, 0.0, size=4 * GB)
    for name in "ac":
        pool.memory.needs(name, 1, LoanNeeds(1, GB, 5.0), 6.0)
        pool.memory.needs(name, 1, LoanNeeds(idle=GB), 7.0)
    need = LoanNeeds(GB, GB, 7.0)
    (asked,) = done(pool.memory.needs("b", 1, need, 8.0))
    assert asked == Recall("a", 1, 1, GB)
    half = GB // 2
    # Half of it is used by now: the other worker is asked for that at once.
    crossed = done(pool.memory.needs("a", 1, LoanNeeds(idle=half), 8.1))
    assert crossed == [Recall("c", 1, 2, half)]
    assert done(pool.memory.repaid("a", 1, half, 1, 8.2)) == []
    assert done(pool.memory.repaid("c", 1, half, 2, 8.3)) == [Lend("b", 1, GB)]
    # It gave all that it had said, and may be asked again at once.
    pool.memory.needs("a", 1, LoanNeeds(idle=half), 8.4)
    again = done(pool.memory.needs("b", 1, LoanNeeds(half, half, 7.0), 8.5))
    assert again == [Recall("a", 1, 3, half)]


def test_in_an_emergency_nothing_is_lent() -> None:
    pool = ready(budget=20 * GB)
    pool.memory.pressure(Level.HIGH, "", 5.0)
    assert done(pool.memory.needs("a", 1, LoanNeeds(1, GB, 5.0), 6.0)) == [Lend("a", 1, 1)]
    pool.memory.pressure(Level.CRITICAL, "", 7.0)
    assert done(pool.memory.needs("a", 1, LoanNeeds(1, GB, 5.0), 8.0)) == []
    assert done(pool.memory.pressure(Level.CRITICAL, "", 9.0, eased=True)) == [Lend("a", 1, 1)]


def test_every_request_ends_whatever_it_takes_from_whom() -> None:
    """Requests of three workers, each of which fits alone, together three times the memory: the
    oldest one always moves."""
    rng = random.Random(3)
    pool = small_machine("a", "b", "c", budget=12 * GB, size=3 * GB)
    for name in "abc":
        serve(pool, name, 0.0, size=3 * GB)
    wants = {name: rng.sample(range(1, 100), 5) for name in "abc"}
    held: dict[str, dict[int, int]] = {name: {} for name in "abc"}
    now, ends = 100.0, 0
    inbox: list[Lend | Recall] = []

    def tell(name: str) -> None:
        """Its oldest request needs a step more, up to 2 GB."""
        live, idle = held[name], pool.state.ledger.lent((name, 1)) - sum(held[name].values())
        since = min(wants[name], default=0)
        youngest = max((one for one in live if one != since), default=since if since in live else 0)
        needs = LoanNeeds(
            GB if wants[name] else 0, GB, since, idle, youngest, live.get(youngest, 0)
        )
        take(pool.memory.needs(name, 1, needs, now))

    def take(effects: list[Effect]) -> None:
        inbox.extend(effect for effect in effects if isinstance(effect, Lend | Recall))

    for _ in range(400):
        now += 0.1
        for name in "abc":
            tell(name)
        while inbox:
            effect = inbox.pop(0)
            name = effect.model
            live = held[name]
            if isinstance(effect, Lend):
                since = min(wants[name])
                live[since] = live.get(since, 0) + effect.bytes
                if live[since] >= 2 * GB:
                    wants[name].remove(since)
                    del live[since]  # its cache is idle now
                    ends += 1
            else:
                idle = pool.state.ledger.lent((name, 1)) - sum(live.values())
                while effect.park and idle < effect.bytes and live:
                    idle += live.pop(max(live))
                take(pool.memory.repaid(name, 1, min(idle, effect.bytes), effect.number, now))
        if ends == 15:
            return
    raise AssertionError(f"{15 - ends} requests wait for ever: {wants}, {held}")
