"""supervisor.scheduler.loans, through the pool: who is lent what, and who gives it back."""

from __future__ import annotations

from supervisor.scheduler.effects import Lend
from supervisor.scheduler.loans import LoanNeeds
from supervisor.scheduler.pool import Pool
from tests.helpers.pools import GB, done, loaded, small_machine

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
    assert done(pool.needs("a", 1, needs, 10.0)) == [Lend("a", 1, 256 * MB)]
    assert pool.state.ledger.lent(("a", 1)) == 256 * MB
    assert pool.state.ledger.free == 2 * GB - 256 * MB


def test_what_is_given_back_is_free() -> None:
    pool = two_workers()
    pool.needs("a", 1, LoanNeeds(least=1, most=GB, since=5.0), 10.0)
    pool.repaid("a", 1, GB, 0, 11.0)
    assert pool.state.ledger.free == 2 * GB


def test_words_of_another_generation_change_nothing() -> None:
    pool = two_workers()
    for generation in (0, 2):
        assert pool.needs("a", generation, LoanNeeds(least=1, most=1), 10.0) == []
        assert pool.repaid("a", generation, GB, 0, 10.0) == []
