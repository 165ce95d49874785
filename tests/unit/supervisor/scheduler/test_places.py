"""supervisor.scheduler.places, and the pool with requests of several choices."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.scheduler.effects import Effect, Grant, Refuse, SetPlaces
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.places import shares
from supervisor.scheduler.pool import Pool
from tests.helpers.pools import HOLD, LIMITS


@pytest.mark.parametrize(
    ("limit", "wanted", "given"),
    [
        (0, [128, 1], [128, 1]),
        (1, [4, 1], [1, 0]),
        (2, [4], [1]),
        (32, [32], [28]),
        (32, [32, 1], [27, 1]),
        (32, [32, 32], [14, 14]),
        (32, [2, 40, 1], [2, 25, 1]),
        (4, [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]),
        (4, [9, 1, 1, 1, 1], [1, 1, 1, 1, 0]),
    ],
)
def test_shares(limit: int, wanted: list[int], given: list[int]) -> None:
    assert shares(limit, wanted) == given


@settings(deadline=None)
@given(st.integers(1, 80), st.lists(st.integers(1, 128), max_size=100))
def test_no_share_starves_another(limit: int, wanted: list[int]) -> None:
    got = shares(limit, wanted)
    assert sum(got) <= limit
    assert all(each <= want for each, want in zip(got, wanted, strict=True))
    assert all(got[: min(limit, len(wanted))])
    # Who has less than another could not have used more, but for a place that can't be halved.
    for each, want in zip(got, wanted, strict=True):
        assert not 0 < each < want or each >= max(got) - 1


def pool_of(concurrency: int, *, capacity: int = 1000, max_requests: int = 0) -> Pool:
    spec = Spec("m", capacity=capacity, concurrency=concurrency)
    pool = Pool([spec], limits=LIMITS, rules=Rules(max_requests=max_requests))
    pool.preload("m", 0.0)
    pool.started("m", 1, 1)
    pool.ready("m", 1, 0, 4096, 1.0)
    return pool


def come(pool: Pool, places: int = 1, at_once: int = 0) -> tuple[int, list[Effect]]:
    return pool.acquire("r", "m", HOLD, 2.0, places=places, at_once=at_once)


def test_one_beside_thirty_two_is_granted_at_once() -> None:
    pool = pool_of(32)
    many, (grant,) = come(pool, 32)
    assert isinstance(grant, Grant)
    assert grant.places == 28
    for _ in range(4):
        _, effects = come(pool)
        assert [effect.places for effect in effects if isinstance(effect, Grant)] == [1]
    assert pool.models["m"].in_flight == 32
    one, effects = come(pool)
    assert SetPlaces(many, 23) in effects  # it gives them back as its choices end
    assert not [effect for effect in effects if isinstance(effect, Grant)]
    assert pool.models["m"].queued == 4 + 1
    effects = pool.holds(many, 27, 31, 3.0)
    assert [e.lease for e in effects if isinstance(e, Grant)] == [one]


def test_places_that_become_free_go_to_who_can_use_them() -> None:
    pool = pool_of(8)
    first, (grant,) = come(pool, 8)
    second, effects = come(pool, 8)
    assert isinstance(grant, Grant)
    assert grant.places == 7
    assert [e.places for e in effects if isinstance(e, Grant)] == [1]
    assert SetPlaces(first, 4) in effects
    assert pool.holds(first, 6, 7, 3.0) == [SetPlaces(second, 2)]
    assert pool.holds(first, 5, 6, 3.0) == [SetPlaces(second, 3)]
    assert SetPlaces(first, 6) in pool.release(second, 4.0)
    assert pool.holds(first, 1, 1, 5.0) == []
    assert pool.models["m"].in_flight == 1


def test_a_word_that_crosses_another_gives_nothing_back() -> None:
    pool = pool_of(16)
    first, _ = come(pool, 8)
    second, _ = come(pool, 64)
    pool.release(first, 3.0)
    before = pool.models["m"].in_flight
    assert before > 2
    assert pool.holds(second, 2, 63, 3.1) == []  # said before it knew of its new places
    assert pool.models["m"].in_flight == before


def test_nobody_is_given_more_than_can_be_used() -> None:
    pool = pool_of(64)
    many, (grant,) = come(pool, 128, at_once=16)
    assert isinstance(grant, Grant)
    assert grant.places == 16
    assert pool.holds(many, 16, 127, 3.0) == []


def test_a_request_counts_as_many() -> None:
    pool = pool_of(2, capacity=4)
    come(pool, 4)
    _, (refused,) = come(pool)
    assert isinstance(refused, Refuse)
    pool = pool_of(2, max_requests=4)
    come(pool, 4)
    _, (refused,) = come(pool)
    assert isinstance(refused, Refuse)
    assert refused.error.code == "queue_full"


def test_without_a_limit_all_are_granted() -> None:
    pool = pool_of(0)
    _, (grant,) = come(pool, 100)
    assert isinstance(grant, Grant)
    assert grant.places == 100


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_places_are_kept_and_everybody_comes(seed: int) -> None:
    """A gateway that does as it is told: it never has more choices on the worker than its grant
    allowed, and a request with one choice waits for no more than one choice of another's."""
    draw = random.Random(seed)
    limit = draw.choice([1, 2, 3, 8, 32])
    pool, now = pool_of(limit, capacity=10**6), 2.0
    allowed: dict[int, int] = {}
    running: dict[int, int] = {}
    left: dict[int, int] = {}

    def obey(effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Grant | SetPlaces) and effect.lease in left:
                allowed[effect.lease] = effect.places
                running[effect.lease] = max(
                    running.get(effect.lease, 0), min(effect.places, left[effect.lease])
                )
        assert sum(running.values()) <= max(limit, 1)
        assert pool.models["m"].in_flight >= sum(running.values())

    for step in range(300):
        now += 0.01
        if draw.random() < 0.3 and step < 250:
            wanted = draw.choice([1, 1, 1, 2, 5, 32, 128])
            lease, effects = pool.acquire("r", "m", HOLD, now, places=wanted)
            left[lease] = wanted
            obey(effects)
        elif running:
            lease = draw.choice(list(running))
            left[lease] -= 1
            if not left[lease]:
                for table in (left, running, allowed):
                    del table[lease]
                obey(pool.release(lease, now))
                continue
            running[lease] = max(running[lease] - 1, min(allowed[lease], left[lease]))
            obey(pool.holds(lease, running[lease], left[lease], now))
        if left:
            assert running
    granted = pool.models["m"].granted
    assert set(granted) == set(running)
