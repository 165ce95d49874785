"""Looks at the machine's memory: pressure once a second, and after an exit what has come back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from supervisor.machine.readers import MachineMemory, MemoryReader
from supervisor.scheduler.ledger import Key, Phase, QuietBaseline
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import Entry, ReleaseRule
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level, Pressure, Thresholds, describe

log = logging.getLogger("bulkhead.supervisor")

_SECONDS = 1.0
_FAST_SECONDS = 0.1
"""While a worker's memory is on its way back."""
_BUSY = frozenset({State.LOADING, State.STOPPING, State.RELEASING})


class MemoryListener(Protocol):
    """What the watch tells. Called on the event loop."""

    def memory_pressure(self, level: Level, figures: str) -> None: ...
    def memory_footprint(self, model: str, generation: int, size: int) -> None: ...
    def memory_unattributed(self, size: int) -> None: ...


class Monitor:
    """Reads, judges and tells; decides nothing. `clock` in monotonic seconds."""

    def __init__(
        self,
        pool: Pool,
        told: MemoryListener,
        reader: MemoryReader,
        thresholds: Thresholds,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.machine = reader.machine()
        """The last reading."""
        self._pool = pool
        self._told = told
        self._reader = reader
        self._pressure = Pressure(thresholds)
        self._clock = clock
        self._baseline = QuietBaseline()

    async def run(self) -> None:
        """Look for ever. What a look can't read is unknown, and changes nothing."""
        while True:
            try:
                before = self.wired()
                # Off the loop: where a figure comes from a helper command it may take seconds.
                self.look(await asyncio.to_thread(self._reader.machine), before)
            except Exception:
                # A bug of ours in one look must not leave the machine unwatched for good.
                log.exception("the machine's memory could not be looked at")
            await asyncio.sleep(self.interval)

    @property
    def interval(self) -> float:
        """Seconds until the next look."""
        charges = self._pool.ledger.charges.values()
        releasing = any(charge.phase is Phase.RELEASING for charge in charges)
        return _FAST_SECONDS if releasing else _SECONDS

    def wired(self) -> dict[Key, int]:
        """Bytes that each living worker has wired; empty where it does not matter."""
        if self._pool.rules.release is not ReleaseRule.WHEN_SEEN:
            return {}
        return {entry.key: self._reader.wired(pid) or 0 for entry, pid in self._living()}

    def look(self, machine: MachineMemory, before: Mapping[Key, int]) -> None:
        """Take one reading into account; `before` is what `wired` was when it began."""
        self.machine = machine
        level = self._pressure.observe(machine, self._clock())
        self._told.memory_pressure(level, describe(machine, self._pressure.thresholds))
        if self._pool.rules.release is ReleaseRule.WHEN_SEEN:
            self._look_for_returns(machine, before)

    def _look_for_returns(self, machine: MachineMemory, before: Mapping[Key, int]) -> None:
        for entry, pid in list(self._living()):
            # Not while it ends: half torn down, it would seem to leave little behind.
            if entry.state is not State.STOPPING:
                footprint = self._reader.footprint(pid)
                if footprint is not None:
                    self._told.memory_footprint(entry.spec.name, entry.generation, footprint)
        if machine.wired is None:
            return  # what can't be seen is not back; the pool gives up waiting by itself
        # A worker that grew or died while the machine was read may not hide what the dead hold.
        after = self.wired()
        living = sum(min(size, after.get(key, 0)) for key, size in before.items())
        unattributed = max(0, machine.wired - living)
        if any(charge.is_gone for charge in self._pool.ledger.charges.values()):
            self._told.memory_unattributed(max(0, unattributed - self._baseline.bytes))
        elif not any(entry.state in _BUSY for entry in self._pool.entries.values()):
            self._baseline.feed(unattributed)

    def _living(self) -> Iterator[tuple[Entry, int]]:
        for entry in self._pool.entries.values():
            if entry.pid is not None and entry.state in HAS_PROCESS:
                yield entry, entry.pid
