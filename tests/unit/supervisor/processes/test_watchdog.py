"""supervisor.processes.watchdog: what stalls is found in time, what is slow is left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from supervisor.processes.watchdog import CHECK_SECONDS, LATE_SECONDS, Watchdog
from supervisor.wire.progress import BEAT_SECONDS, Reading

STALL = 10.0
IN_STEP = Reading(begun=1)
IDLE = Reading(begun=1, ended=1)

Life = Callable[[float], Reading]
"""What is read of a process at each second of its life."""


def alarm(
    life: Life,
    until: float = 200.0,
    *,
    stall: float = STALL,
    awaited: bool = True,
    interval: Callable[[], float] = lambda: CHECK_SECONDS,
) -> tuple[float, str] | None:
    """When the process is found to have stalled, and what has."""
    dog, now = Watchdog(stall), 0.0
    while now < until:
        if how := dog.check(life(now), now, awaited=awaited):
            return now, how
        now += interval()
    return None


def beats(now: float) -> int:
    return int(now / BEAT_SECONDS)


def beating(reading: Reading) -> Life:
    return lambda now: replace(reading, beats=beats(now))


def busy(now: float) -> Reading:
    """In steps of half a second, one after the other."""
    steps = int(now * 2)
    return Reading(beats=beats(now), begun=steps + 1, ended=steps)


@pytest.mark.parametrize("stall", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("what", ["one step", "event loop"])
def test_what_stands_still_is_found_within_a_second_over(what: str, stall: float) -> None:
    chance = random.Random(stall)
    for _ in range(50):
        end = chance.uniform(0.0, 50.0)

        def life(now: float, end: float = end) -> Reading:
            stopped = busy(min(now, end))
            if what == "one step":
                return replace(stopped, beats=beats(now))
            return replace(stopped, ended=stopped.begun)

        found = alarm(life, stall=stall, interval=lambda: chance.uniform(0.8, 1.5) * CHECK_SECONDS)
        assert found is not None
        assert what in found[1]
        assert end + stall - 0.5 < found[0] <= end + stall + 1.0


def test_a_stopped_process_is_found() -> None:
    found = alarm(lambda now: busy(min(now, 20.0)))
    assert found is not None
    assert 29.5 < found[0] <= 31.0
    assert alarm(busy) is None


def test_a_process_with_nothing_to_do_may_rest_for_ever() -> None:
    """Its client reads slowly, or its requests pause."""
    assert alarm(beating(IDLE)) is None


def test_a_loop_that_nobody_waits_for_is_left_alone_and_found_at_once_when_somebody_does() -> None:
    assert alarm(lambda now: IDLE, awaited=False) is None
    dog = Watchdog(STALL)
    for look in range(1000):
        assert dog.check(IDLE, look * CHECK_SECONDS, awaited=False) is None
    assert "event loop" in (dog.check(IDLE, 1000 * CHECK_SECONDS, awaited=True) or "")


def test_a_step_that_nobody_waits_for_any_more_is_found_all_the_same() -> None:
    assert alarm(beating(IN_STEP), awaited=False) is not None


def test_a_long_prefill_in_chunks_is_no_stall() -> None:
    """Of 200 s, in chunks of 9."""

    def life(now: float) -> Reading:
        return Reading(beats=beats(now), begun=1 + int(now / 9), ended=int(now / 9))

    assert alarm(life) is None


def test_who_has_shown_long_steps_is_given_ten_times_as_long() -> None:
    patient = replace(IN_STEP, longest=3.0)
    found = alarm(beating(patient))
    assert found is not None
    assert 30.0 < found[0] <= 31.0
    assert alarm(beating(replace(IN_STEP, longest=0.5))) == alarm(beating(IN_STEP))
    # The same for a loop that long steps keep from turning.
    stopped = alarm(lambda now: replace(IDLE, longest=3.0))
    assert stopped is not None
    assert 30.0 < stopped[0] <= 31.0


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1e300, 1e300])
def test_nonsense_in_a_record_makes_nobody_immortal(nonsense: float) -> None:
    assert alarm(beating(replace(IN_STEP, longest=nonsense)), until=4000.0) is not None


def test_a_long_prompt_is_tokenized_in_one_piece_and_left_alone_ten_times_as_long() -> None:
    found = alarm(beating(Reading(preparing=1)))
    assert found is not None
    at, how = found
    assert "preparation" in how
    assert 100.0 < at <= 101.0
    assert alarm(beating(Reading(preparing=4, prepared=4))) is None


def test_a_late_look_starts_all_clocks_anew() -> None:
    """The machine slept, or the supervisor did not get its turn: nobody was seen to stand still."""
    for wedged in (IN_STEP, Reading(), Reading(preparing=1)):
        dog, now = Watchdog(STALL), 0.0
        for _ in range(100):
            for _ in range(30):  # 7.5 of 10 s
                assert dog.check(wedged, now, awaited=True) is None
                now += CHECK_SECONDS
            now += LATE_SECONDS
    dog = Watchdog(STALL)
    assert dog.check(IN_STEP, 0.0, awaited=True) is None
    assert dog.check(IN_STEP, 1e6, awaited=True) is None


def test_a_setting_below_what_can_be_told_means_a_second() -> None:
    assert alarm(beating(IDLE), stall=0.01) is None
    found = alarm(beating(IN_STEP), stall=0.01)
    assert found is not None
    assert found[0] > 1.0


def shown(life: Life, until: float, *, stall: float = 60.0, awaited: bool = True) -> float | None:
    """For how long it is shown to have stood still at `until`."""
    dog = Watchdog(stall)
    for look in range(int(until / CHECK_SECONDS) + 1):
        dog.check(life(look * CHECK_SECONDS), look * CHECK_SECONDS, awaited=awaited)
    return dog.standstill


def test_what_stands_still_is_shown_long_before_it_is_killed() -> None:
    # A stopped process: its loop does not turn either.
    assert shown(lambda now: busy(min(now, 20.0)), 24.5) is None
    assert shown(lambda now: busy(min(now, 20.0)), 30.0) == pytest.approx(10.0, abs=0.5)
    # One step, or one prompt, of a process that lives.
    for still in (IN_STEP, Reading(preparing=1)):
        assert shown(beating(still), 14.0) is None
        assert shown(beating(still), 16.0) == 16.0
    assert shown(beating(replace(IN_STEP, longest=10.0)), 29.0) is None
    assert shown(beating(replace(IN_STEP, longest=10.0)), 30.0) == 30.0


def test_what_moves_or_has_nothing_to_do_is_not_shown_as_stalled() -> None:
    assert shown(busy, 30.0) is None
    assert shown(beating(IDLE), 30.0) is None
    assert shown(lambda now: IDLE, 30.0, awaited=False) is None


def test_what_is_killed_was_shown_first() -> None:
    for stall in (1.0, 3.0, 60.0):
        assert shown(beating(IN_STEP), stall + 0.25, stall=stall) == stall + 0.25


def test_what_moves_in_any_way_does_not_stand() -> None:
    dog, still = Watchdog(STALL), Reading(beats=1, begun=1)
    dog.check(still, 0.0, awaited=True)
    times = [CHECK_SECONDS * n for n in range(1, 11)]
    assert [dog.stands(still, now) for now in times] == [now - times[0] for now in times]
    for moved in (replace(still, beats=2), replace(still, ended=1), replace(still, prefilled=5)):
        assert dog.stands(moved, times[-1]) == 0.0
    assert dog.stands(moved, times[-1] + LATE_SECONDS + 1) == 0.0  # we did not run
