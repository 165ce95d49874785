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
class MachineMemory:
    """One look at the machine's memory. Bytes; None where it could not be read."""

    physical: int | None = None
    used: int | None = None
    """All but what the system would give to a new program without swapping."""
    wired: int | None = None
    """macOS alone: pages that can't be moved out, Metal's among them."""
    swap_used: int | None = None
    level: SystemPressure | None = None
    """NORMAL does not prove that the GPU has room."""

    @property
    def used_percent(self) -> float | None:
        if self.physical is None or self.used is None or self.physical <= 0:
            return None
        return min(100.0, 100 * self.used / self.physical)


class Level(enum.IntEnum):
    """How pressed the machine is. What is done at each level is in `relief`."""

    NORMAL = 0
    WARN = 1
    """Idle loans are called back, idle models unloaded down to `keep`."""
    HIGH = 2
    """No new loads, caches shrink."""
    CRITICAL = 3
    """Every model is unloaded, one kind after the other."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of physical RAM in use."""

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

    @property
    def eased(self) -> bool:
        """Whether the last reading would have led to a lower level."""
        return self._calm_since is not None

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
    if reading.physical is not None and reading.used is not None:
        figures = f"{reading.used / 1e9:.1f} of {reading.physical / 1e9:.1f} GB RAM in use"
        used = f"{figures} ({reading.used_percent:.1f} %)"
    limits = f"{thresholds.warn:.0%}/{thresholds.high:.0%}/{thresholds.critical:.0%}"
    system = "unknown" if reading.level is None else reading.level.name.lower()
    return f"{used}, thresholds {limits}, system pressure {system}"
