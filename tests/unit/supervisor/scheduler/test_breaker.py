"""supervisor.scheduler.breaker: when a model that keeps dying is left alone, and for how long."""

from __future__ import annotations

import pytest

from supervisor.scheduler.breaker import BACKOFF_FIRST, Breaker


def make(restarts: int = 3, longest: float = 60.0, jitter: float = 1.0) -> Breaker:
    return Breaker(restarts, 60.0, longest, lambda: jitter)


def test_so_many_deaths_within_the_window_open_it() -> None:
    breaker = make()
    assert [breaker.died(at) for at in (0.0, 30.0, 59.9)] == [None, None, BACKOFF_FIRST]


def test_deaths_that_are_far_apart_do_not() -> None:
    breaker = make()
    assert [breaker.died(at) for at in (0.0, 30.0, 60.0, 90.0, 120.0)] == [None] * 5
    assert breaker.died(121.0) == BACKOFF_FIRST


@pytest.mark.parametrize("restarts", [0, 1])
def test_it_may_open_at_the_first(restarts: int) -> None:
    assert make(restarts).died(0.0) == BACKOFF_FIRST


def test_each_probe_that_dies_doubles_the_pause_up_to_the_longest() -> None:
    breaker = make()
    pauses = [breaker.died(at) for at in (0.0, 1.0, 2.0, 500.0, 1000.0, 1500.0, 2000.0, 9000.0)]
    assert pauses == [None, None, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_token_closes_it() -> None:
    breaker = make()
    for at in (0.0, 1.0, 2.0, 3.0):
        breaker.died(at)
    breaker.progressed()
    assert [breaker.died(at) for at in (4.0, 5.0, 6.0)] == [None, None, BACKOFF_FIRST]


def test_a_token_is_news_after_a_death_alone() -> None:
    breaker = make()
    doubts = [breaker.doubts]
    breaker.died(0.0)
    doubts.append(breaker.doubts)
    breaker.progressed()
    doubts.append(breaker.doubts)
    assert doubts == [False, True, False]


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 3.75), (0.5, 4.375), (1.0, 5.0)])
def test_machines_that_crashed_together_do_not_load_together(jitter: float, pause: float) -> None:
    assert make(1, jitter=jitter).died(0.0) == pause


def test_a_pause_may_be_configured_away() -> None:
    assert make(1, longest=0.0).died(0.0) == 0.0


def test_a_crowd_has_two_deaths_more_for_one_of_it_to_be_found() -> None:
    breaker = make()
    assert [breaker.died(at, crowd=True) for at in range(5)] == [None] * 4 + [BACKOFF_FIRST]
    assert breaker.died(5, crowd=True) == 2 * BACKOFF_FIRST
    breaker = make()
    assert [breaker.died(at, crowd=True) for at in range(3)] == [None] * 3
    assert breaker.died(3) == BACKOFF_FIRST
