"""How pressed for memory the machine is, from readings of it, with hysteresis. Pure.

A level is reached at once: memory that is short is short now. It is left only when the reading has
been `MARGIN` below its threshold for `CALM_SECONDS`, so that a figure that swings around a
threshold does not unload and load models in turn.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MARGIN = 0.02
"""Share of physical RAM below a threshold at which its level may be left."""
CALM_SECONDS = 5.0


class SystemPressure(enum.IntEnum):
    """Memory pressure as the operating system tells it."""

    NORMAL = 1
    WARN = 2
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """A control group's limit (Linux). Bytes; None where it could not be read."""

    file: str
    """Of the limit."""
    limit: int
    used: int | None = None
    """By all that is in the group, but for what the system would take away without harm."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """One look at the machine's memory. Bytes; None where it could not be read."""

    physical: int | None = None
    """RAM."""
    used: int | None = None
    """All but what the system would give to a new program without swapping."""
    wired: int | None = None
    """macOS alone: pages that can't be moved out, Metal's among them."""
    swap_used: int | None = None
    level: SystemPressure | None = None
    """NORMAL does not prove that the GPU has room."""
    groups: tuple[GroupMemory, ...] = ()
    """Those that this process is in and that have a limit."""

    @property
    def limit(self) -> GroupMemory | None:
        """The least of the groups' limits, where that is less than there is RAM."""
        least = min(self.groups, key=lambda group: group.limit, default=None)
        binds = least is not None and (self.physical is None or least.limit < self.physical)
        return least if binds else None

    @property
    def usable(self) -> int | None:
        """RAM, or what a group allows of it."""
        return self.physical if self.limit is None else self.limit.limit

    @property
    def pressed(self) -> GroupMemory | None:
        """The machine, as a group without a file, or that of the groups of which a larger share is
        in use; None where no use is known."""
        known = [group for group in self.groups if group.used is not None]
        if self.physical and self.used is not None:
            known.insert(0, GroupMemory("", self.physical, self.used))
        return max(known, key=_share, default=None)

    @property
    def used_percent(self) -> float | None:
        """Of the machine's RAM or of a group's limit, whichever is more."""
        return None if self.pressed is None else min(100.0, 100 * _share(self.pressed))


def _share(group: GroupMemory) -> float:
    return (group.used or 0) / group.limit


class Level(enum.IntEnum):
    """How pressed the machine is. What is done at each level is in `planner`."""

    NORMAL = 0
    WARN = 1
    """Idle models are unloaded down to `keep`."""
    HIGH = 2
    """No new loads, caches shrink."""
    CRITICAL = 3
    """Every model is unloaded."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of RAM in use, or of what a control group allows."""

    warn: float = 0.85
    high: float = 0.95
    critical: float = 0.98


class Pressure:
    """Turns readings, taken about once a second, into a level."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.level = Level.NORMAL
        self._calm_since: float | None = None
        """Since when every reading would have led to a lower level."""
        self._calmest = Level.NORMAL
        """The highest level that the readings since then ask for."""

    def observe(self, reading: MachineMemory, now: float) -> Level:
        """The level after this reading, taken at `now`, monotonic seconds."""
        wanted = self._wanted(reading, 0.0)
        held = max(wanted, self._wanted(reading, MARGIN))
        if wanted > self.level:
            self.level, self._calm_since = wanted, None
        elif held >= self.level:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since, self._calmest = now, held
        else:
            self._calmest = max(self._calmest, held)
            if now - self._calm_since >= CALM_SECONDS:
                self.level, self._calm_since = self._calmest, None
        return self.level

    def _wanted(self, reading: MachineMemory, margin: float) -> Level:
        """The level of one reading with every threshold lowered by `margin`."""
        share = 0.0 if reading.used_percent is None else reading.used_percent / 100 + margin
        limits = self.thresholds
        if reading.level is SystemPressure.CRITICAL or share >= limits.critical:
            return Level.CRITICAL
        if share >= limits.high:
            return Level.HIGH
        if reading.level is SystemPressure.WARN or share >= limits.warn:
            return Level.WARN
        return Level.NORMAL


def describe(reading: MachineMemory, thresholds: Thresholds) -> str:
    """The figures behind a level, for a person."""
    used = "use of RAM unknown"
    pressed = reading.pressed
    if pressed is not None and pressed.used is not None:
        of = f"of {pressed.file}" if pressed.file else "RAM"
        figures = f"{pressed.used / 1e9:.1f} of {pressed.limit / 1e9:.1f} GB {of} in use"
        used = f"{figures} ({reading.used_percent:.1f} %)"
    limits = f"{thresholds.warn:.0%}/{thresholds.high:.0%}/{thresholds.critical:.0%}"
    system = "unknown" if reading.level is None else reading.level.name.lower()
    return f"{used}, thresholds {limits}, system pressure {system}"
