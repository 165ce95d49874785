"""Looks at memory every second: the machine's, each worker's, after an exit what has come back."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from supervisor.machine.readers import MachineMemory, MemoryReader
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import Model
from supervisor.scheduler.pressure import Level, Pressure, Thresholds, describe

log = logging.getLogger("bulkhead.supervisor")

_SECONDS = 1.0
_FAST_SECONDS = 0.1
"""While a worker's memory is on its way back."""
_BUSY = frozenset({State.LOADING, State.STOPPING, State.RELEASING})
_QUIET_READINGS = 10

Incarnation = tuple[str, int]
"""(model, generation)."""


class MemoryListener(Protocol):
    """Who is told what the monitor sees. Called on the event loop."""

    def memory_pressure(self, machine: MachineMemory, level: Level, figures: str) -> None: ...
    def memory_footprint(self, model: str, generation: int, size: int) -> None:
        """What a living worker holds, bytes, at every look."""

    def memory_unattributed(self, size: int) -> None: ...


class Monitor:
    """Reads the machine's memory and tells; decides nothing.

    `models` are the pool's and only looked at. `awaits_memory` tells whether a process has ended
    and its memory is not yet seen to be back. `watches_release`: whether memory comes back later
    than its process ends (macOS), and is looked for. `clock` in monotonic seconds.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        awaits_memory: Callable[[], bool],
        listener: MemoryListener,
        reader: MemoryReader,
        thresholds: Thresholds,
        *,
        watches_release: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.machine = reader.machine()
        """The last reading."""
        self._models = models
        self._awaits_memory = awaits_memory
        self._listener = listener
        self._reader = reader
        self._pressure = Pressure(thresholds)
        self._watches_release = watches_release
        self._clock = clock
        self._baseline = QuietBaseline()

    async def run(self) -> None:
        """Look for ever. What a look can't read is unknown, and changes nothing."""
        told = ""
        while True:
            try:
                before, pids = self.wired_by_workers(), self.pids()
                # Off the loop: where a figure comes from a helper command it may take seconds.
                self.observe(*await asyncio.to_thread(self.read, pids), before)
                told = ""
            except Exception as error:
                # A bug of ours in one look must not leave the machine unwatched for good.
                if repr(error) != told:
                    told = repr(error)
                    is_bug = not isinstance(error, (OSError, RuntimeError))  # no thread, say
                    log.error("cannot look at the machine's memory: %s", told, exc_info=is_bug)
            await asyncio.sleep(self.interval)

    @property
    def interval(self) -> float:
        """Seconds until the next look."""
        releasing = any(model.state is State.RELEASING for model in self._models.values())
        return _FAST_SECONDS if releasing else _SECONDS

    def wired_by_workers(self) -> dict[Incarnation, int]:
        """Bytes that each living worker has wired; empty where it does not matter."""
        if not self._watches_release:
            return {}
        return {model.current.key: self._reader.wired(pid) or 0 for model, pid in self._living()}

    def pids(self) -> dict[Incarnation, int]:
        """Of the living workers."""
        return {model.current.key: pid for model, pid in self._living()}

    def read(self, pids: Mapping[Incarnation, int]) -> tuple[MachineMemory, dict[Incarnation, int]]:
        """The machine's memory, and the bytes that each of these processes holds, as far as they
        can be read. Blocks as the reader does. On any thread."""
        machine = self._reader.machine()
        sizes = ((key, self._reader.glance(pid)) for key, pid in pids.items())
        return machine, {key: size for key, size in sizes if size is not None}

    def observe(
        self,
        machine: MachineMemory,
        footprints: Mapping[Incarnation, int],
        before: Mapping[Incarnation, int],
    ) -> None:
        """Take into account what `read` has read; `before` is what `wired_by_workers` was when that
        began."""
        self.machine = machine
        level = self._pressure.observe(machine, self._clock())
        figures = describe(machine, self._pressure.thresholds)
        self._listener.memory_pressure(machine, level, figures)
        for model, _ in list(self._living()):
            # Not while it ends: half torn down, it would seem to leave little behind.
            if model.state is not State.STOPPING and model.current.key in footprints:
                key = model.current.key
                self._listener.memory_footprint(*key, footprints[key])
        if self._watches_release:
            self._look_for_returns(machine, before)

    def _look_for_returns(self, machine: MachineMemory, before: Mapping[Incarnation, int]) -> None:
        if machine.wired is None:
            return  # what can't be seen is not back; the pool gives up waiting by itself
        # A worker that grew or died while the machine was read may not hide what the dead hold.
        after = self.wired_by_workers()
        living = sum(min(size, after.get(key, 0)) for key, size in before.items())
        unattributed = max(0, machine.wired - living)
        if self._awaits_memory():
            self._listener.memory_unattributed(max(0, unattributed - self._baseline.bytes))
        elif not any(model.state in _BUSY for model in self._models.values()):
            self._baseline.feed(unattributed)

    def _living(self) -> Iterator[tuple[Model, int]]:
        for model in self._models.values():
            if model.state in HAS_PROCESS and model.current.pid is not None:
                yield model, model.current.pid


class QuietBaseline:
    """What is wired by others while none of our processes starts, loads or dies.

    The median of the last quiet readings: a neighbour's short burst does not move it.
    """

    def __init__(self) -> None:
        self._readings: deque[int] = deque(maxlen=_QUIET_READINGS)

    @property
    def bytes(self) -> int:
        """0 before the first quiet reading, which charges too much rather than too little."""
        return int(statistics.median(self._readings)) if self._readings else 0

    def feed(self, unattributed: int) -> None:
        """A reading, in bytes, of a quiet moment."""
        self._readings.append(unattributed)
