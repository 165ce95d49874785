"""How pressed for memory the machine is, from readings, with hysteresis. Pure.

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
_BYTES_PER_GB = 1e9


class Level(enum.IntEnum):
    """What is done at each level is in the pool."""

    NORMAL = 0
    WARN = 1
    """Idle models are unloaded down to `keep`."""
    HIGH = 2
    """No new loads, caches shrink."""
    CRITICAL = 3
    """Every model is unloaded."""


class System(enum.IntEnum):
    """What the operating system says of itself (macOS: kern.memorystatus_vm_pressure_level)."""

    NORMAL = 1
    WARN = 2
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of physical RAM and of its use; `used` is None where the platform won't tell."""

    physical: int
    used: int | None
    system: System = System.NORMAL

    @property
    def share(self) -> float | None:
        return None if self.used is None or not self.physical else self.used / self.physical


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of physical RAM in use."""

    warn: float = 0.85
    high: float = 0.95
    critical: float = 0.98


@dataclass(frozen=True, slots=True)
class Change:
    """The level is another one than before; `figures` says why, for the log."""

    before: Level
    level: Level
    figures: str


class Pressure:
    """Turns readings, taken about once a second, into a level."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.level = Level.NORMAL
        self._calm_since: float | None = None
        """Since when every reading would have led to a lower level."""
        self._calmest = Level.NORMAL
        """The highest level that the readings since then ask for."""

    def observe(self, reading: Reading, now: float) -> Change | None:
        """Take a reading into account. Returns what changed, None when nothing did."""
        wanted = self._raw(reading, 0.0)
        if wanted > self.level:
            return self._move(wanted, reading)
        held = max(wanted, self._raw(reading, MARGIN))
        if held >= self.level:
            self._calm_since = None
            return None
        if self._calm_since is None:
            self._calm_since, self._calmest = now, held
        self._calmest = max(self._calmest, held)
        if now - self._calm_since < CALM_SECONDS:
            return None
        return self._move(self._calmest, reading)

    def _raw(self, reading: Reading, margin: float) -> Level:
        """The level of one reading with every threshold lowered by `margin`."""
        share = 0.0 if reading.share is None else reading.share + margin
        limits = self.thresholds
        if reading.system is System.CRITICAL or share >= limits.critical:
            return Level.CRITICAL
        if share >= limits.high:
            return Level.HIGH
        if reading.system is System.WARN or share >= limits.warn:
            return Level.WARN
        return Level.NORMAL

    def _move(self, level: Level, reading: Reading) -> Change:
        change = Change(self.level, level, describe(reading, self.thresholds))
        self.level, self._calm_since = level, None
        return change


def describe(reading: Reading, thresholds: Thresholds) -> str:
    """The figures behind a level, for a person."""
    if reading.share is None or reading.used is None:
        used = "use of RAM unknown"
    else:
        used = (
            f"{reading.used / _BYTES_PER_GB:.1f} of {reading.physical / _BYTES_PER_GB:.1f} GB RAM "
            f"in use ({reading.share:.1%})"
        )
    limits = f"{thresholds.warn:.0%}/{thresholds.high:.0%}/{thresholds.critical:.0%}"
    return f"{used}, thresholds {limits}, system pressure {reading.system.name.lower()}"
