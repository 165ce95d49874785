"""What happens at every death that nobody asked for: it is diagnosed, and a report is written.

The way of one death, as the supervisor calls it:

1. `diagnose`, once a fatal signal or the exit is known: takes a `snapshot` of what can be known
   only now, reads the end of stderr through `redaction`, and has `diagnosis` say why. This takes a
   few milliseconds on the event loop, since the scheduler and the clients wait for the cause.
2. The scheduler decides what becomes of the requests; `record_effect` adds that to the report.
3. `report`, once the process has ended: `writer` composes the report and puts it into the `store`,
   on a thread of its own.

Nothing here raises for a report that can't be made: a death is handled all the same.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from supervisor.crashes import store
from supervisor.crashes.os_evidence import Evidence
from supervisor.crashes.redaction import Redactor
from supervisor.crashes.snapshot import NEWS_BYTES, Helper, Snapshot, read_stderr
from supervisor.crashes.writer import ReportWriter
from supervisor.machine.readers import MachineMemory, MemoryReader
from supervisor.processes.launcher import Child
from supervisor.scheduler.death import Death
from supervisor.scheduler.effects import Effect, EndLease, Grant, Refuse
from supervisor.scheduler.lease import Lease
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import Model
from supervisor.scheduler.state import PoolState
from supervisor.wire.crash import LoadedModel, MachineSample, Sample

SAMPLES = 60
"""Memory samples that are kept, one a second."""
_SAMPLE_SECONDS = 0.9
"""The monitor looks more often while memory is on its way back."""
_OOM_SECONDS = 30.0
"""A worker's end may take seconds; what the kernel has killed before that was another process."""
_SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


@dataclass(slots=True, eq=False)
class _Process:
    """A worker's process. Times in monotonic seconds, memory in bytes."""

    child: Child
    started_at: float
    footprint: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """(time, memory)."""
    snapshot: Snapshot | None = None
    """Taken when the news of its death came."""


@dataclass(frozen=True, slots=True)
class _MachineReading:
    """The machine's memory. `at` in monotonic seconds."""

    at: float
    machine: MachineMemory
    oom_kills: int | None


class CrashCollector:
    """To be used on the event loop. `pool` is only looked at.

    `folder` is where reports go, `secrets` must not be in them, `version` is Bulkhead's. `clock` in
    monotonic seconds, `epoch` in epoch seconds.
    """

    def __init__(
        self,
        pool: PoolState,
        folder: Path,
        reader: MemoryReader,
        evidence: Evidence,
        *,
        version: str,
        secrets: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._reader = reader
        self._evidence = evidence
        self._redactor = Redactor(secrets)
        self.reports = ReportWriter(folder, self._redactor, evidence, version)
        self._clock = clock
        self._epoch = epoch
        self._processes: dict[tuple[str, int], _Process] = {}
        self._readings: deque[_MachineReading] = deque(maxlen=SAMPLES)
        self._unsettled: dict[int, tuple[str, str]] = {}
        """Leases that were in a worker when it died and of which nothing has become yet: the
        crash's id and the request's."""

    def worker_started(self, model: str, generation: int, child: Child) -> None:
        """A worker's process exists."""
        self._processes[model, generation] = _Process(child, self._clock())

    def sample_memory(self, machine: MachineMemory) -> None:
        """Keep a reading of the machine and each worker's memory; once a second at most."""
        now = self._clock()
        if self._readings and now - self._readings[-1].at < _SAMPLE_SECONDS:
            return
        self._readings.append(_MachineReading(now, machine, self._evidence.oom_kills()))
        for process in self._processes.values():
            size = self._reader.glance(process.child.pid)
            if size is not None:
                process.footprint.append((now, size))

    def footprint(self, model: str, generation: int) -> int | None:
        """Bytes that a worker's process held at the last sample; None before the first."""
        process = self._processes.get((model, generation))
        return process.footprint[-1][1] if process is not None and process.footprint else None

    def diagnose(
        self, name: str, generation: int, how: str, *, kill_reason: str = ""
    ) -> Death | None:
        """Why a worker dies; None when its end was asked for. To be called before the pool is told.
        `kill_reason` is why it is about to be killed, where the pool does not know it yet.

        May come twice for one death, first with its signal and then with its exit: the id stays,
        and the diagnosis is by all that was on stderr by then.
        """
        process = self._processes.get((name, generation))
        model = self._pool.crashing(name, generation)
        if process is None or model is None:
            return None
        if process.snapshot is None:
            leases = list(_leases_in(model))
            if model.state is State.STOPPING and model.current.killed:
                kill_reason = model.reason
            snapshot = process.snapshot = self._snapshot_worker(process, model, leases, kill_reason)
            self.reports.begin(snapshot)
            for lease in leases:  # of an earlier death nothing else will become known
                self._settle(lease.id, f"was inside when {snapshot.name} died, too")
            self._unsettled |= {lease.id: (snapshot.id, lease.request_id) for lease in leases}
        stderr = read_stderr(process.snapshot.stderr, self._redactor, NEWS_BYTES)
        return process.snapshot.diagnose(how, stderr).death(process.snapshot.id)

    def report(self, model: str, generation: int, how: str) -> None:
        """The process has ended and the pool has decided: have the report written, if this was a
        crash."""
        process = self._processes.pop((model, generation), None)
        if process is not None and process.snapshot is not None:
            self.reports.finish(process.snapshot, how)

    def process_died(
        self, process: Helper, child: Child, how: str, uptime: float, kill_reason: str
    ) -> None:
        """A process without a model ended unasked after `uptime` seconds, or was killed for
        `kill_reason`: have the report written."""
        snapshot = replace(self._snapshot(child, uptime, "serving", kill_reason), process=process)
        self.reports.begin(snapshot)
        self.reports.finish(snapshot, how)

    # ── what becomes of the requests ─────────────────────────────────────────────────────────────

    def returned(self, lease: int, position: int, prompt_tokens: int) -> None:
        """A gateway tells how far an interrupted request had come."""
        if lease in self._unsettled:
            crash, request = self._unsettled[lease]
            self.reports.add_position(crash, request, prompt_tokens or None, position)

    def record_effect(self, effect: Effect) -> None:
        """What was decided about a request. Nothing if it was in no worker that died."""
        match effect:
            case Grant(lease, _, worker):
                self._settle(lease, f"goes on in {worker}")
            case Refuse(lease, error) | EndLease(lease, error):
                self._settle(lease, f"ended with {error.code}")

    def left(self, lease: int) -> None:
        """The connection of a lease has closed."""
        self._settle(lease, "its client left")

    def _settle(self, lease: int, outcome: str) -> None:
        if (crash_and_request := self._unsettled.pop(lease, None)) is not None:
            self.reports.add_outcome(*crash_and_request, outcome)

    # ── the snapshot ─────────────────────────────────────────────────────────────────────────────

    def _snapshot_worker(
        self, process: _Process, model: Model, leases: Sequence[Lease], kill_reason: str
    ) -> Snapshot:
        now = self._clock()
        phase = "loading" if model.current.loaded_at is None else model.state.value
        return replace(
            self._snapshot(process.child, now - process.started_at, phase, kill_reason),
            process="worker",
            model=model.name,
            generation=model.generation,
            requests=tuple(lease.request_id for lease in leases),
            footprint=tuple(
                Sample(seconds=round(now - at, 1), bytes=size) for at, size in process.footprint
            ),
        )

    def _snapshot(self, child: Child, uptime: float, phase: str, kill_reason: str) -> Snapshot:
        """As of the gateway, which has no model."""
        epoch, now = self._epoch(), self._clock()
        return Snapshot(
            id=store.new_id(epoch),
            epoch=epoch,
            process="gateway",
            pid=child.pid,
            stderr=child.files[1],
            uptime=uptime,
            phase=phase,
            kill_reason=kill_reason,
            models=tuple(
                LoadedModel(
                    name=model.name,
                    generation=model.generation,
                    state=model.state.value,
                    memory_bytes=self.footprint(*model.current.key) or model.current.memory_bytes,
                    in_flight=model.in_flight,
                    queued=len(model.waiting),
                )
                for model in self._pool.models.values()
                if model.state in HAS_PROCESS
            ),
            machine=tuple(
                MachineSample(
                    seconds=round(now - reading.at, 1),
                    used_bytes=reading.machine.used,
                    swap_bytes=reading.machine.swap_used,
                )
                for reading in self._readings
            ),
            oom_kills=self._oom_kills(now),
        )

    def _oom_kills(self, now: float) -> int:
        """How many processes the kernel has killed for want of memory within the last seconds."""
        known = [
            reading.oom_kills
            for reading in self._readings
            if reading.oom_kills is not None and now - reading.at <= _OOM_SECONDS
        ]
        count = self._evidence.oom_kills()
        return max(0, count - known[0]) if known and count is not None else 0


def secret_values(*environments: Mapping[str, str]) -> Iterable[str]:
    """The values of environment variables whose names say that they are secret."""
    for environ in environments:
        yield from (value for name, value in environ.items() if _SECRET_NAME.search(name))


def _leases_in(model: Model) -> Iterator[Lease]:
    """The requests that a death concerns: those in the worker, or those that wait for its load.
    After a stall some of them are on their way back already."""
    if model.state is State.LOADING:
        yield from model.waiting.values()
        return
    yield from model.granted.values()
    inside = () if model.undecided is None else model.undecided.inside
    yield from (lease for lease in inside if lease.id in (*model.returning, *model.waiting))
