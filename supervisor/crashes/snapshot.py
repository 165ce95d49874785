"""What is seen of a death, and the report that is made of it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from supervisor.crashes import store
from supervisor.crashes.diagnosis import Diagnosis, diagnose
from supervisor.crashes.os_evidence import Evidence
from supervisor.crashes.redaction import Cleaner, Words
from supervisor.scheduler.lifecycle import State
from supervisor.wire.crash import CrashReport, LoadedModel, MachineSample, Sample

NEWS_BYTES = 32 * 2**10
"""Of stderr, looked at when the news comes."""
REPORT_BYTES = 512 * 2**10
"""Of stderr, from which the report's texts are cut: stacks alone may take tens of kilobytes."""
_EXIT = re.compile(r"exit status (\d+)")
_PACKAGES = ("mlx", "mlx-lm")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What can be seen only when the news of a death comes. `at` is in monotonic seconds, `epoch`
    in epoch seconds, `uptime` in seconds."""

    id: str
    at: float
    epoch: float
    process: Literal["worker", "gateway"]
    pid: int
    stderr: Path
    uptime: float
    phase: str
    models: tuple[LoadedModel, ...] = ()
    machine: tuple[MachineSample, ...] = ()
    footprint: tuple[Sample, ...] = ()
    model: str | None = None
    generation: int | None = None
    put_down: str = ""
    """Why we killed it, if we did."""
    requests: tuple[str, ...] = ()
    """Ids of those that were inside."""
    oom_kills: int = 0
    """How many processes the kernel has killed for want of memory in the last seconds."""

    @property
    def name(self) -> str:
        """For the log."""
        return "the gateway" if self.model is None else f"worker {self.model}#{self.generation}"

    def diagnose(self, how: str, words: Words, *, oom: bool = False) -> Diagnosis:
        """By what was said so far. `oom`: the kernel's log names this process."""
        return diagnose(
            how,
            words.text,
            words.exception,
            loading=self.phase == State.LOADING,
            put_down=self.put_down,
            oom=oom or self.oom_kills > 0,
        )


def words(scene: Snapshot, cleaner: Cleaner, limit: int) -> Words:
    """The end of what the process wrote to stderr, cleaned. Blocks on one read; never raises."""
    try:
        with open(scene.stderr, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return cleaner.clean(file.read(limit), cut=size > limit)
    except OSError:
        return Words("", "", "")


def compose(
    scene: Snapshot, how: str, cleaner: Cleaner, evidence: Evidence, version: str
) -> CrashReport:
    """The report, still without what becomes of the requests. Blocks on files; never raises."""
    said = words(scene, cleaner, REPORT_BYTES)
    record = evidence.oom_record(scene.pid) if how == "SIGKILL" and not scene.put_down else None
    found = scene.diagnose(how, said, oom=record is not None)
    if record is None and how == "SIGKILL" and scene.oom_kills:
        record = f"the kernel killed {scene.oom_kills} for want of memory in the last seconds"
    status = _EXIT.fullmatch(how)
    at = datetime.fromtimestamp(scene.epoch).astimezone()
    return CrashReport(
        id=scene.id,
        time=at.isoformat("T", "milliseconds"),
        process=scene.process,
        model=scene.model,
        generation=scene.generation,
        how=how,
        cause=found.cause,
        summary=found.summary,
        advice=found.advice,
        pid=scene.pid,
        phase=scene.phase,
        signal=how if how.startswith(("SIG", "signal ")) else None,
        exit_code=int(status[1]) if status else None,
        permanent=found.permanent,
        memory=found.memory,
        blame=found.blame,
        put_down=scene.put_down or None,
        line=found.line or None,
        exception=found.exception or None,
        uptime_seconds=round(scene.uptime, 3),
        in_flight=len(scene.requests),
        requests=[],
        recovery=[],
        models=list(scene.models),
        machine=list(scene.machine),
        footprint=list(scene.footprint),
        oom_record=record,
        ips=evidence.ips(scene.pid, scene.epoch - scene.uptime),
        stderr_file=str(scene.stderr),
        stderr=said.text[-store.TEXT_MAX :],
        stacks=said.stacks[-store.TEXT_MAX :],
        versions={"bulkhead": version, **_versions()},
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # a worker with an interpreter of its own may have it
    return found
