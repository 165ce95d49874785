"""Deaths as a test plans them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supervisor.crashes.snapshot import Snapshot
from supervisor.crashes.store import new_id

EPOCH = 1_800_000_000.0
METAL = (
    "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command "
    "buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError"
    "OutOfMemory)\n"
)
"""What Metal says of a command that got no memory."""


class PlannedEvidence:
    """`Evidence`: what a test says that the system knows. Each look for macOS' own report takes the
    next of `reports`."""

    def __init__(self) -> None:
        self.kills: int | None = None
        self.record: str | None = None
        self.reports: list[str | None] = []
        self.late_reports = True

    def oom_kills(self) -> int | None:
        return self.kills

    def oom_record(self, pid: int) -> str | None:
        return self.record

    def ips(self, pid: int, since: float) -> str | None:
        return self.reports.pop(0) if self.reports else None


def snapshot(stderr: Path, *, second: int = 0, **more: Any) -> Snapshot:
    """Of the worker `m`#1, pid 7, which had req-1 and req-2 in it and served for 30 s."""
    values: dict[str, Any] = {
        "id": new_id(EPOCH + second),
        "epoch": EPOCH + second,
        "process": "worker",
        "pid": 7,
        "stderr": stderr,
        "uptime": 30.0,
        "phase": "ready",
        "model": "m",
        "generation": 1,
        "requests": ("req-1", "req-2"),
    }
    return Snapshot(**{**values, **more})
