"""supervisor.processes.activity: what a worker does now, from readings of its record."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from supervisor.processes.activity import WINDOW_SECONDS, Activity, Meter
from supervisor.processes.watchdog import CHECK_SECONDS
from supervisor.wire.progress import Reading


def watched(
    tokens: Callable[[float], int], until: float, awaited: Callable[[float], bool] = lambda _: True
) -> Activity:
    """What is told at `until` of a worker that has made so many tokens at each second."""
    meter = Meter()
    for look in range(int(until / CHECK_SECONDS) + 1):
        now = look * CHECK_SECONDS
        meter.feed(Reading(tokens=tokens(now)), now, awaited=awaited(now))
    return meter.activity()


@pytest.mark.parametrize("rate", [1, 8, 400])
def test_a_steady_rate_is_told(rate: int) -> None:
    told = watched(lambda now: int(rate * now), 60.0)
    assert told.tokens_per_second == pytest.approx(rate)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    def slows(now: float) -> int:
        return int(40 * min(now, 20.0) + 4 * max(now - 20.0, 0.0))

    assert watched(slows, 20.0).tokens_per_second == 40
    assert watched(slows, 20.0 + WINDOW_SECONDS).tokens_per_second == 4
    assert watched(lambda now: int(40 * min(now, 20.0)), 25.0).tokens_per_second == 0


def test_a_burst_after_rest_is_not_thinned_by_the_rest() -> None:
    def bursts(now: float) -> int:
        return int(40 * max(now - 20.0, 0.0))

    assert watched(bursts, 21.0, lambda now: now > 20.0).tokens_per_second == 40


def test_short_requests_one_after_the_other_are_a_steady_rate() -> None:
    """At every other look nobody is there."""
    told = watched(lambda now: int(40 * now), 10.0, lambda now: int(now / CHECK_SECONDS) % 2 == 0)
    assert told.tokens_per_second == 40


def test_nothing_is_made_before_the_first_reading_and_at_it() -> None:
    assert Meter().activity() == Activity()
    assert watched(lambda _: 1000, 0.0) == Activity()


def test_a_prefill_is_told_as_it_is_and_never_beyond_its_end() -> None:
    meter = Meter()
    meter.feed(Reading(prefilled=8192, to_prefill=12288), 1.0, awaited=True)
    assert meter.activity(7.5) == Activity(0.0, 8192, 12288, 7.5)
    # Two words of a record need not be of the same moment.
    meter.feed(Reading(prefilled=12288, to_prefill=0), 1.25, awaited=True)
    assert meter.activity() == Activity()


def test_a_record_that_runs_backwards_is_no_negative_rate() -> None:
    assert watched(lambda now: 1000 - int(now), 5.0).tokens_per_second == 0
