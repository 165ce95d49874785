"""supervisor.scheduler.pressure: levels are reached at once and left after a calm while."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.machine.readers import MachineMemory, SystemPressure
from supervisor.scheduler.pressure import (
    CALM_SECONDS,
    MARGIN,
    GroupMemory,
    Level,
    Pressure,
    Thresholds,
    describe,
)

PHYSICAL = 1000


def reading(percent: float | None, system: SystemPressure | None = None) -> MachineMemory:
    return MachineMemory(PHYSICAL, None if percent is None else round(percent * 10), level=system)


def after(*percents: float, seconds: float = 1.0) -> Level:
    """The level after these readings, one every `seconds`."""
    pressure = Pressure()
    for i, percent in enumerate(percents):
        pressure.observe(reading(percent), i * seconds)
    return pressure.level


@pytest.mark.parametrize(
    ("percent", "level"),
    [
        (84.9, Level.NORMAL),
        (85.0, Level.WARN),
        (94.9, Level.WARN),
        (95.0, Level.HIGH),
        (97.9, Level.HIGH),
        (98.0, Level.CRITICAL),
        (100.0, Level.CRITICAL),
    ],
)
def test_a_level_is_reached_at_once(percent: float, level: Level) -> None:
    assert after(percent) is level


@pytest.mark.parametrize(
    ("system", "level"),
    [
        (SystemPressure.NORMAL, Level.NORMAL),
        (SystemPressure.WARN, Level.WARN),
        (SystemPressure.CRITICAL, Level.CRITICAL),
    ],
)
@pytest.mark.parametrize("percent", [None, 40.0])
def test_the_operating_system_has_a_say(
    percent: float | None, system: SystemPressure, level: Level
) -> None:
    pressure = Pressure()
    pressure.observe(reading(percent, system), 0.0)
    assert pressure.level is level


def test_unknown_use_is_no_pressure() -> None:
    assert Pressure().observe(reading(None), 0.0) is Level.NORMAL
    assert Pressure().observe(MachineMemory(), 0.0) is Level.NORMAL


def test_a_figure_that_swings_around_a_threshold_changes_the_level_once() -> None:
    pressure = Pressure()
    swings = [86.0, 84.0, 86.0, 84.5, 85.1, 83.5] * 20
    levels = [pressure.observe(reading(at), float(i)) for i, at in enumerate(swings)]
    assert set(levels) == {Level.WARN}


def test_a_level_is_left_after_a_calm_while() -> None:
    pressure = Pressure()
    pressure.observe(reading(86.0), 0.0)
    assert pressure.observe(reading(82.0), 10.0) is Level.WARN
    assert pressure.observe(reading(82.0), 10.0 + CALM_SECONDS - 0.1) is Level.WARN
    assert pressure.observe(reading(82.0), 10.0 + CALM_SECONDS) is Level.NORMAL


def test_a_relapse_starts_the_calm_anew() -> None:
    assert after(86, 82, 82, 82, 86, 82, 82, 82, 82, 82) is Level.WARN
    assert after(86, 82, 82, 82, 86, 82, 82, 82, 82, 82, 82) is Level.NORMAL


def test_the_level_falls_no_lower_than_the_highest_calm_reading() -> None:
    pressure = Pressure()
    pressure.observe(reading(99.0), 0.0)
    for i, percent in enumerate([60.0, 90.0, 60.0, 60.0, 60.0, 60.0]):
        pressure.observe(reading(percent), 1.0 + i)
    assert pressure.level is Level.WARN


def test_a_rise_during_the_calm_acts_at_once() -> None:
    assert after(86, 82, 82, 96) is Level.HIGH
    assert after(96, 99) is Level.CRITICAL


def test_an_emergency_that_ends_leaves_through_the_margin() -> None:
    below = 98.0 - 100 * MARGIN
    assert after(99, *[below + 0.1] * 20) is Level.CRITICAL
    assert after(99, *[below - 0.1] * 20) is Level.HIGH


def test_the_log_line_has_the_figures() -> None:
    machine = MachineMemory(64 * 10**9, 40 * 10**9, level=SystemPressure.WARN)
    line = describe(machine, Thresholds(0.5, 0.6, 0.7))
    for figure in ("40.0 of 64.0 GB", "62.5 %", "50%/60%/70%", "warn"):
        assert figure in line
    assert describe(MachineMemory(), Thresholds()).startswith("use of RAM unknown")


GROUP = GroupMemory("/cg/memory.max", 8 * 10**9, 6 * 10**9)


def test_the_more_pressed_of_machine_and_groups_counts() -> None:
    roomy = MachineMemory(64 * 10**9, 32 * 10**9, groups=(GROUP,))
    assert roomy.used_percent == 75.0
    assert "6.0 of 8.0 GB of /cg/memory.max in use (75.0 %)" in describe(roomy, Thresholds())
    full = MachineMemory(64 * 10**9, 60 * 10**9, groups=(GROUP,))
    assert full.used_percent == 93.75
    assert "60.0 of 64.0 GB RAM in use" in describe(full, Thresholds())
    assert Pressure().observe(replace(roomy, groups=(replace(GROUP, used=GROUP.limit),)), 0.0) is (
        Level.CRITICAL
    )
    # What is unknown counts for nothing,
    assert MachineMemory(64 * 10**9, None, groups=(GROUP,)).used_percent == 75.0
    unknown = replace(GROUP, used=None)
    assert MachineMemory(64 * 10**9, 32 * 10**9, groups=(unknown,)).used_percent == 50.0
    # and more than all is all.
    assert MachineMemory(groups=(replace(GROUP, used=9 * 10**9),)).used_percent == 100.0


def test_the_least_limit_stands_for_the_ram() -> None:
    larger = GroupMemory("/cg/a/memory.max", 9 * 10**9)
    machine = MachineMemory(64 * 10**9, groups=(larger, GROUP))
    assert (machine.limit, machine.usable) == (GROUP, 8 * 10**9)
    assert replace(machine, physical=None).usable == 8 * 10**9
    small = MachineMemory(4 * 10**9, groups=(larger, GROUP))  # it binds nobody
    assert (small.limit, small.usable) == (None, 4 * 10**9)
    assert MachineMemory().usable is None


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(SystemPressure)), max_size=40))
def test_the_level_is_never_below_what_the_last_reading_asks_for(
    series: list[tuple[float, SystemPressure]],
) -> None:
    pressure = Pressure()
    for i, (percent, system) in enumerate(series):
        fresh = Pressure()
        fresh.observe(reading(percent, system), 0.0)
        assert pressure.observe(reading(percent, system), float(i)) >= fresh.level
