"""How pressed for memory the machine is, from readings, with hysteresis. Pure.

A level is reached at once: memory that is short is short now. It is left only when the reading has
been `MARGIN` below its threshold for `CALM_SECONDS`, so that a figure that swings around a
threshold does not unload and load models in turn.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from supervisor.machine.readers import MachineMemory, SystemPressure

MARGIN = 0.02
"""Share of physical RAM below a threshold at which its level may be left."""
CALM_SECONDS = 5.0


class Level(enum.IntEnum):
    """What is done at each level is in the pool."""

    NORMAL = 0
    WARN = 1
    """Idle models are unloaded down to `keep`."""
    HIGH = 2
    """No new loads, caches shrink."""
    CRITICAL = 3
    """Every model is unloaded."""


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

    def observe(self, machine: MachineMemory, now: float) -> Level:
        """The level after this reading, taken at `now`, monotonic seconds."""
        wanted = self._raw(machine, 0.0)
        held = max(wanted, self._raw(machine, MARGIN))
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

    def _raw(self, machine: MachineMemory, margin: float) -> Level:
        """The level of one reading with every threshold lowered by `margin`."""
        share = 0.0 if machine.used_percent is None else machine.used_percent / 100 + margin
        limits = self.thresholds
        if machine.level is SystemPressure.CRITICAL or share >= limits.critical:
            return Level.CRITICAL
        if share >= limits.high:
            return Level.HIGH
        if machine.level is SystemPressure.WARN or share >= limits.warn:
            return Level.WARN
        return Level.NORMAL


def describe(machine: MachineMemory, thresholds: Thresholds) -> str:
    """The figures behind a level, for a person."""
    used = "use of RAM unknown"
    if machine.physical is not None and machine.used is not None:
        figures = f"{machine.used / 1e9:.1f} of {machine.physical / 1e9:.1f} GB RAM in use"
        used = f"{figures} ({machine.used_percent:.1f} %)"
    limits = f"{thresholds.warn:.0%}/{thresholds.high:.0%}/{thresholds.critical:.0%}"
    system = "unknown" if machine.level is None else machine.level.name.lower()
    return f"{used}, thresholds {limits}, system pressure {system}"
