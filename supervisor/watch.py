"""Looks at the machine's memory: pressure once a second, and after an exit what has come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from supervisor import pressure, readers
from supervisor.ledger import Phase, QuietBaseline
from supervisor.lifecycle import HAS_PROCESS, State
from supervisor.pool import Pool, ReleaseRule
from supervisor.pressure import Level, Pressure, Thresholds

_SECONDS = 1.0
_FAST_SECONDS = 0.1
"""While a worker's memory is on its way back."""
_BUSY = frozenset({State.LOADING, State.STOPPING, State.RELEASING})


class Memory(Protocol):
    """What the watch tells. Called on the event loop."""

    def memory_pressure(self, level: Level, figures: str) -> None: ...
    def memory_footprint(self, model: str, generation: int, size: int) -> None: ...
    def memory_unattributed(self, size: int) -> None: ...


class Watch:
    """Reads, judges and tells; decides nothing. `clock` in monotonic seconds."""

    def __init__(
        self,
        pool: Pool,
        told: Memory,
        reader: readers.Reader,
        thresholds: Thresholds,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._told = told
        self._reader = reader
        self._pressure = Pressure(thresholds)
        self._clock = clock
        self._baseline = QuietBaseline()

    async def run(self) -> None:
        """Look for ever. A look that fails is the reader's to tell as unknown."""
        while True:
            # Off the loop: where a figure comes from a helper command it may take seconds.
            machine = await asyncio.to_thread(self._reader.machine)
            self.look(machine)
            releasing = any(
                charge.phase is Phase.RELEASING for charge in self._pool.ledger.charges.values()
            )
            await asyncio.sleep(_FAST_SECONDS if releasing else _SECONDS)

    def look(self, machine: readers.Machine) -> None:
        """Take one reading into account."""
        now = self._clock()
        if machine.physical:
            system = pressure.System(machine.level or pressure.System.NORMAL)
            reading = pressure.Reading(machine.physical, machine.used, system)
            self._pressure.observe(reading, now)
            figures = pressure.describe(reading, self._pressure.thresholds)
            self._told.memory_pressure(self._pressure.level, figures)
        if self._pool.rules.release is ReleaseRule.WHEN_SEEN:
            self._look_for_returns(machine)

    def _look_for_returns(self, machine: readers.Machine) -> None:
        living = 0
        for entry in self._pool.entries.values():
            if entry.pid is None or entry.state not in HAS_PROCESS:
                continue
            if (footprint := self._reader.footprint(entry.pid)) is not None:
                self._told.memory_footprint(entry.spec.name, entry.generation, footprint)
            living += self._reader.wired(entry.pid) or 0
        if machine.wired is None:
            return  # what can't be seen is not back; the pool gives up waiting by itself
        unattributed = max(0, machine.wired - living)
        ledger = self._pool.ledger
        gone = any(charge.gone_at is not None for charge in ledger.charges.values())
        if gone:
            self._told.memory_unattributed(max(0, unattributed - self._baseline.bytes))
        elif not any(entry.state in _BUSY for entry in self._pool.entries.values()):
            self._baseline.feed(unattributed)
