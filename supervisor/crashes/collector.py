"""Looks into every death that nobody asked for: sees what there is, says why, has a report written.

The news is examined on the event loop, in a few milliseconds, since the pool and the clients wait
for the cause; everything slow is left to `filing`, after the pool has decided. Nothing here fails
the handling of a death.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.crashes import store
from supervisor.crashes.diagnosis import Crash
from supervisor.crashes.os_evidence import Evidence
from supervisor.crashes.redaction import Cleaner
from supervisor.crashes.snapshot import NEWS_BYTES, Snapshot, words
from supervisor.crashes.writer import Files
from supervisor.machine.readers import MachineMemory, MemoryReader
from supervisor.processes.launcher import Child
from supervisor.scheduler.effects import Effect, EndLease, Grant, Refuse
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import Lease, Model
from supervisor.wire.crash import LoadedModel, MachineSample, Sample

SAMPLES = 60
"""Looks at the memory that are kept, one a second."""
_LOOK_SECONDS = 0.9
"""The watch looks more often while memory is on its way back."""
_OOM_SECONDS = 30.0
"""A worker's end may take seconds; what the kernel killed before that was another."""
_SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


@dataclass(slots=True, eq=False)
class _Living:
    """A worker's process and its memory so far: (monotonic seconds, bytes)."""

    child: Child
    born: float
    footprint: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    scene: Snapshot | None = None
    """What was seen when the news of its death came."""


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at the machine. `at` in monotonic seconds."""

    at: float
    machine: MachineMemory
    oom_kills: int | None


class CrashCollector:
    """Called on the supervisor's event loop. `models` are the pool's, and only looked at.

    `folder` is where reports go, `secrets` must not be in them, `version` is Bulkhead's. `clock` in
    monotonic seconds, `epoch` in epoch seconds.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        folder: Path,
        reader: MemoryReader,
        evidence: Evidence,
        *,
        version: str,
        secrets: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._reader = reader
        self._evidence = evidence
        self._cleaner = Cleaner(secrets)
        self.files = Files(folder, self._cleaner, evidence, version)
        self._clock = clock
        self._epoch = epoch
        self._living: dict[tuple[str, int], _Living] = {}
        self._looks: deque[_Look] = deque(maxlen=SAMPLES)
        self._inside: dict[int, tuple[str, str]] = {}
        """Leases that were in a worker when it died and of which nothing has become yet: the
        crash's id and the request's."""

    def born(self, model: str, generation: int, child: Child) -> None:
        """A worker's process exists."""
        self._living[model, generation] = _Living(child, self._clock())

    def look(self, machine: MachineMemory) -> None:
        """The machine was looked at: keep that and each worker's memory, once a second."""
        now = self._clock()
        if self._looks and now - self._looks[-1].at < _LOOK_SECONDS:
            return
        self._looks.append(_Look(now, machine, self._evidence.oom_kills()))
        for living in self._living.values():
            size = self._reader.glance(living.child.pid)
            if size is not None:
                living.footprint.append((now, size))

    def examine(self, name: str, generation: int, how: str, *, put_down: str = "") -> Crash | None:
        """News of a death, before the pool has it. None when it was asked for. `put_down` is why it
        is about to be killed, where the pool does not know it yet.

        May come twice for one death, first with its signal and then with its exit: the id stays,
        and the diagnosis has all that was said by then.
        """
        living, model = self._living.get((name, generation)), self._models[name]
        if living is None or not _is_crash(model, generation):
            return None
        if living.scene is None:
            inside = list(_inside(model))
            if model.state is State.STOPPING:
                put_down = model.reason
            living.scene = scene = self._look_around(living, model, inside, put_down)
            self.files.open(scene)
            for lease in inside:  # of an earlier death nothing else will be told
                self._settle(lease.id, f"was inside when {scene.name} died, too")
            self._inside |= {lease.id: (scene.id, lease.request_id) for lease in inside}
        said = words(living.scene, self._cleaner, NEWS_BYTES)
        return Crash(living.scene.id, living.scene.diagnose(how, said))

    def file(self, model: str, generation: int, how: str) -> None:
        """The process is gone and the pool has decided: have the report written, if it is one."""
        living = self._living.pop((model, generation), None)
        if living is not None and living.scene is not None:
            self.files.write(living.scene, how)

    def gateway_died(self, child: Child, how: str, uptime: float, put_down: str) -> None:
        """The gateway ended unasked after `uptime` seconds, or was `put_down`: have the report
        written."""
        epoch, now = self._epoch(), self._clock()
        scene = Snapshot(
            id=store.new_id(epoch),
            at=now,
            epoch=epoch,
            process="gateway",
            pid=child.pid,
            stderr=child.files[1],
            uptime=uptime,
            phase="serving",
            put_down=put_down,
            models=tuple(self._loaded()),
            machine=tuple(self._machine(now)),
            oom_kills=self._oom_kills(now),
        )
        self.files.open(scene)
        self.files.write(scene, how)

    # ── what becomes of those who were inside ────────────────────────────────────────────────────

    def returned(self, lease: int, position: int, prompt_tokens: int) -> None:
        """A gateway tells where a request stands that was interrupted."""
        if lease in self._inside:
            crash, request = self._inside[lease]
            self.files.position(crash, request, prompt_tokens or None, position)

    def follow(self, effect: Effect) -> None:
        """What the pool has decided about a request; nothing if it was in no worker that died."""
        match effect:
            case Grant(lease, _, worker):
                self._settle(lease, f"goes on in {worker}")
            case Refuse(lease, error) | EndLease(lease, error):
                self._settle(lease, f"ended with {error.code}")

    def left(self, lease: int) -> None:
        """A lease's connection has closed."""
        self._settle(lease, "its client left")

    def _settle(self, lease: int, outcome: str) -> None:
        if (inside := self._inside.pop(lease, None)) is not None:
            self.files.outcome(*inside, outcome)

    # ── what there is to see ─────────────────────────────────────────────────────────────────────

    def _look_around(
        self, living: _Living, model: Model, inside: Sequence[Lease], put_down: str
    ) -> Snapshot:
        epoch, now = self._epoch(), self._clock()
        return Snapshot(
            id=store.new_id(epoch),
            at=now,
            epoch=epoch,
            process="worker",
            pid=living.child.pid,
            stderr=living.child.files[1],
            uptime=now - living.born,
            phase="loading" if model.current.loaded_at is None else model.state.value,
            models=tuple(self._loaded()),
            machine=tuple(self._machine(now)),
            footprint=tuple(
                Sample(seconds=round(now - at, 1), bytes=size) for at, size in living.footprint
            ),
            model=model.name,
            generation=model.generation,
            put_down=put_down,
            requests=tuple(lease.request_id for lease in inside),
            oom_kills=self._oom_kills(now),
        )

    def _loaded(self) -> Iterator[LoadedModel]:
        for model in self._models.values():
            if model.state in HAS_PROCESS:
                yield LoadedModel(
                    name=model.name,
                    generation=model.generation,
                    state=model.state.value,
                    memory_bytes=model.current.memory_bytes,
                    in_flight=len(model.granted),
                    queued=len(model.waiting),
                )

    def _machine(self, now: float) -> Iterator[MachineSample]:
        for look in self._looks:
            yield MachineSample(
                seconds=round(now - look.at, 1),
                used_bytes=look.machine.used,
                swap_bytes=look.machine.swap_used,
            )

    def _oom_kills(self, now: float) -> int:
        """How many the kernel has killed within the last seconds."""
        known = [
            look.oom_kills
            for look in self._looks
            if look.oom_kills is not None and now - look.at <= _OOM_SECONDS
        ]
        count = self._evidence.oom_kills()
        return max(0, count - known[0]) if known and count is not None else 0


def secret_values(*environments: Mapping[str, str]) -> Iterable[str]:
    """What must not be shown: the values of variables whose names say so."""
    for environ in environments:
        yield from (value for name, value in environ.items() if _SECRET_NAME.search(name))


def _inside(model: Model) -> Iterator[Lease]:
    """Who is in a worker that dies, or waits for its load. After a stall some are on their way back
    already."""
    if model.state is State.LOADING:
        yield from model.waiting.values()
        return
    yield from model.granted.values()
    others = (*model.returning.values(), *model.waiting.values())
    yield from (lease for lease in others if lease.death_undecided)


def _is_crash(model: Model, generation: int) -> bool:
    """Whether the end of this incarnation is one that the pool counts as a death."""
    if model.generation != generation or model.state not in HAS_PROCESS:
        return False
    return model.current.exit_is_crash
