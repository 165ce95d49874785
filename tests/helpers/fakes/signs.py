"""What a fake worker shows of itself: a few bytes in a file that is named by its pid.

They are written before a phase is entered, so that what a dead process leaves behind is where it
died.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.wire.frames import Embed, Generate, Load, Token
from tests.helpers.fakes.loans import PassesLoansOn
from worker.engine.thread import FINAL_FRAMES, Engine, Job, LoadResult, Output, Prepared

SPAWN, IMPORT, LOAD, IDLE, PREFILL, DECODE = "spawn", "import", "load", "idle", "prefill", "decode"
PHASES = (SPAWN, IMPORT, LOAD, IDLE, PREFILL, DECODE)
_MANY = 255


@dataclass(frozen=True, slots=True)
class Sign:
    """Where a worker is."""

    phase: str
    """Of `PHASES`. PREFILL is from a request's arrival to the next token of anybody's."""
    running: int
    """Requests that run, each with all its choices."""
    made: bool
    """Whether it has made a token."""

    @property
    def serves(self) -> bool:
        return self.phase in (IDLE, PREFILL, DECODE)


def sign_of(folder: Path, pid: int) -> Sign | None:
    """None until the process shows one."""
    try:
        shown = _file(folder, pid).read_bytes()
    except FileNotFoundError:
        return None
    if len(shown) < 3:
        return None
    return Sign(PHASES[shown[0]], shown[1], bool(shown[2]))


def forget(folder: Path, pid: int) -> None:
    """The process is gone."""
    _file(folder, pid).unlink(missing_ok=True)


def _file(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.sign"


class Signed(PassesLoansOn):
    """An engine that shows where it is."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._shown = engine
        self._file = os.open(_file(folder, os.getpid()), os.O_WRONLY | os.O_CREAT, 0o600)
        self._phase = SPAWN
        self._running: dict[Job, str] = {}
        """Who runs, and the request that it is a choice of."""
        self._made = False
        self._show()

    @property
    def _engine(self) -> Engine:
        return self._shown

    def _show(self, phase: str = "") -> None:
        self._phase = phase or self._phase
        running = min(len(set(self._running.values())), _MANY)
        os.pwrite(self._file, bytes((PHASES.index(self._phase), running, self._made)), 0)

    def warm_up(self) -> None:
        self._engine.warm_up()

    def load(self, load: Load, progress: Callable[[int, int], None]) -> LoadResult:
        from worker.engine.batch import BatchEngine

        self._show(IMPORT)
        BatchEngine().warm_up()
        self._show(LOAD)
        loaded = self._engine.load(load, progress)
        self._show(IDLE)
        return loaded

    def prepare(self, request: Generate | Embed) -> Prepared:
        return self._engine.prepare(request)

    def insert(self, job: Job) -> None:
        self._running[job] = job.request.request_id.partition("#")[0]
        self._show(PREFILL)
        self._engine.insert(job)

    def remove(self, job: Job) -> None:
        self._engine.remove(job)
        self._forget([job])

    def step(self) -> Sequence[Output]:
        outputs = self._engine.step()
        frames = [(job, frame) for job, made in outputs for frame in made]
        made = any(isinstance(frame, Token) for _, frame in frames)
        if made and (self._phase != DECODE or not self._made):
            self._made = True
            self._show(DECODE)
        self._forget([job for job, frame in frames if isinstance(frame, FINAL_FRAMES)])
        return outputs

    def _forget(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._running.pop(job, None)
        if jobs:
            self._show("" if self._running else IDLE)

    @property
    def prefill(self) -> tuple[int, int]:
        return self._engine.prefill

    def shrink(self) -> None:
        self._engine.shrink()

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def close(self) -> None:
        self._engine.close()
