"""What is known of a death when its news comes, and the report that is made of it."""

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
from supervisor.crashes.redaction import Redacted, Redactor
from supervisor.scheduler.lifecycle import State
from supervisor.state.files import not_waiting
from supervisor.wire.crash import CrashReport, LoadedModel, MachineSample, Sample

NEWS_BYTES = 32 * 2**10
"""Of stderr, read when the news comes: clients wait for the diagnosis."""
REPORT_BYTES = 512 * 2**10
"""Of stderr, read for the report: stacks alone may take tens of kilobytes."""
_EXIT = re.compile(r"exit status (\d+)")
_PACKAGES = ("mlx", "mlx-lm")


Helper = Literal["gateway", "counter"]
"""A process without a model."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What can be known only when the news of a death comes, not later. `epoch` in epoch seconds,
    `uptime` in seconds."""

    id: str
    epoch: float
    process: Literal["worker"] | Helper
    pid: int
    stderr: Path
    uptime: float
    phase: str
    models: tuple[LoadedModel, ...] = ()
    machine: tuple[MachineSample, ...] = ()
    footprint: tuple[Sample, ...] = ()
    model: str | None = None
    generation: int | None = None
    kill_reason: str = ""
    """Why we killed it, if we did."""
    requests: tuple[str, ...] = ()
    """Ids of those that were in the process."""
    oom_kills: int = 0
    """How many processes the kernel has killed for want of memory in the last seconds."""

    @property
    def name(self) -> str:
        """For the log."""
        if self.model is None:
            return f"the {self.process}"
        return f"worker {self.model}#{self.generation}"

    def diagnose(self, how: str, stderr: Redacted, *, oom: bool = False) -> Diagnosis:
        """By what it has written so far. `oom`: the kernel's log names this process."""
        return diagnose(
            how,
            stderr.text,
            stderr.exception,
            loading=self.phase == State.LOADING,
            kill_reason=self.kill_reason,
            oom=oom or self.oom_kills > 0,
        )


def read_stderr(path: Path, redactor: Redactor, limit: int) -> Redacted:
    """The last `limit` bytes of the file, redacted. Blocks on one read; never raises."""
    try:
        with open(path, "rb", opener=not_waiting) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return redactor.redact(file.read(limit), cut=size > limit)
    except OSError:
        return Redacted("", "", "")


def compose_report(
    snapshot: Snapshot, how: str, redactor: Redactor, evidence: Evidence, version: str
) -> CrashReport:
    """The report, still without what becomes of the requests. Blocks on files; never raises."""
    stderr = read_stderr(snapshot.stderr, redactor, REPORT_BYTES)
    unexplained_kill = how == "SIGKILL" and not snapshot.kill_reason
    record = evidence.oom_record(snapshot.pid) if unexplained_kill else None
    found = snapshot.diagnose(how, stderr, oom=record is not None)
    meaning = found.meaning
    if record is None and how == "SIGKILL" and snapshot.oom_kills:
        record = f"the kernel killed {snapshot.oom_kills} for want of memory in the last seconds"
    status = _EXIT.fullmatch(how)
    at = datetime.fromtimestamp(snapshot.epoch).astimezone()
    return CrashReport(
        id=snapshot.id,
        time=at.isoformat("T", "milliseconds"),
        process=snapshot.process,
        model=snapshot.model,
        generation=snapshot.generation,
        how=how,
        cause=found.cause,
        summary=found.summary,
        advice=found.advice(snapshot.process),
        pid=snapshot.pid,
        phase=snapshot.phase,
        signal=how if how.startswith(("SIG", "signal ")) else None,
        exit_code=int(status[1]) if status else None,
        permanent=meaning.permanent,
        memory=meaning.memory,
        blame=meaning.blame,
        put_down=snapshot.kill_reason or None,
        line=found.line or None,
        exception=found.exception or None,
        uptime_seconds=round(snapshot.uptime, 3),
        in_flight=len(snapshot.requests),
        requests=[],
        recovery=[],
        models=list(snapshot.models),
        machine=list(snapshot.machine),
        footprint=list(snapshot.footprint),
        oom_record=record,
        ips=evidence.ips(snapshot.pid, snapshot.epoch - snapshot.uptime),
        stderr_file=str(snapshot.stderr),
        stderr=stderr.text[-store.TEXT_MAX :],
        stacks=stderr.stacks[-store.TEXT_MAX :],
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
