"""supervisor.scheduler.overcharge: the table, a reading a second."""

from __future__ import annotations

import pytest

from supervisor.scheduler.overcharge import (
    CALM_SECONDS,
    Action,
    Stage,
    Watch,
    backoff,
    is_over,
    step,
)

GB = 10**9


def walk(readings: str, running: int, *, may_restart: bool = True) -> list[tuple[Action, int]]:
    """What a reading a second leads to: `+` over, `-` within."""
    watch, taken = Watch(), []
    for second, reading in enumerate(readings):
        watch, action = step(
            watch,
            over=reading == "+",
            running=running,
            may_restart=may_restart,
            now=100.0 + second,
        )
        taken.append((action, watch.limit))
    return taken


def test_what_a_measurement_may_be_wrong_by_is_not_over() -> None:
    assert not is_over(int(10.5 * GB) + 256 * 10**6, 10 * GB)
    assert is_over(int(10.5 * GB) + 256 * 10**6 + 1, 10 * GB)


def test_caches_then_sequences_then_the_worker() -> None:
    assert walk("+++++", running=8) == [
        (Action.SHRINK, 0),
        (Action.LIMIT, 4),
        (Action.LIMIT, 2),
        (Action.LIMIT, 1),
        (Action.RESTART, 1),
    ]


@pytest.mark.parametrize("running", [0, 1])
def test_one_alone_is_limited_before_it_is_restarted(running: int) -> None:
    actions = [action for action, _ in walk("+++", running)]
    assert actions == [Action.SHRINK, Action.LIMIT, Action.RESTART]


def test_a_shrink_that_suffices_is_all() -> None:
    assert walk("+-+", running=8) == [(Action.SHRINK, 0), (Action.NONE, 0), (Action.SHRINK, 0)]


def test_who_may_not_be_restarted_stays_at_one() -> None:
    assert walk("++++", running=2, may_restart=False)[2:] == [(Action.NONE, 1)] * 2


def test_a_limit_is_doubled_in_calm_times_until_it_keeps_nobody() -> None:
    watch = Watch(Stage.LIMITED, 2, over=True, since=100.0)
    taken = []
    for now in (101.0, 99.9 + CALM_SECONDS, 100.0 + CALM_SECONDS, 100.0 + 2 * CALM_SECONDS):
        watch, action = step(watch, over=False, running=3, may_restart=True, now=now)
        taken.append((action, watch.limit))
    assert taken == [
        (Action.NONE, 2),
        (Action.NONE, 2),
        (Action.LIMIT, 4),
        (Action.LIMIT, 0),
    ]
    assert watch.stage is Stage.WITHIN


def test_readings_that_come_faster_lead_no_faster_down() -> None:
    watch, _ = step(Watch(), over=True, running=8, may_restart=True, now=100.0)
    same, action = step(watch, over=True, running=8, may_restart=True, now=100.1)
    assert (same, action) == (watch, Action.NONE)


def test_restarts_are_further_and_further_apart() -> None:
    assert [backoff(count) for count in (0, 1, 2, 3, 20)] == [0.0, 60.0, 120.0, 240.0, 3600.0]
