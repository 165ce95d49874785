"""That an instance runs, written down, so that the next one can tell how it has ended.

A run that ends in order removes the file. Whoever finds one holds the lock of the state directory,
so that run is over: it was killed, or the machine went down.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated

import msgspec

from supervisor.state.files import read_json, write_atomically
from supervisor.state.paths import StateDir

log = logging.getLogger("bulkhead.supervisor")

_NAME = "run.json"
_LATEST = 1e11
"""Epoch seconds; calendars of Python go further, but not much."""


class Run(msgspec.Struct, frozen=True):
    """One run of a supervisor. `started` and `seen` in epoch seconds."""

    pid: int
    started: Annotated[float, msgspec.Meta(ge=0, le=_LATEST)]
    version: str
    boot: str = ""
    """Which boot of the machine it was in, "" = not known."""
    seen: float = 0.0
    """When it last wrote to one of its files, which is found out when the file is read."""


def find(state: StateDir) -> Run | None:
    """The run that has ended without removing its file; None when the last one was in order, or
    nothing can be read. Blocks on a few files; to be called before this run writes to its log.
    Never raises."""
    path = state.root / _NAME
    try:
        run = read_json(path, Run)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is unreadable (%s): how the last run ended is not known", path, error)
        return None
    logs = (state.logs / "supervisor.log", state.logs / "gateway.log")
    times = [at for each in (path, *logs) if (at := _modified(each)) is not None]
    return msgspec.structs.replace(run, seen=min(max([run.started, *times]), time.time()))


def begin(state: StateDir, run: Run) -> None:
    """Write down that this run is on. Raises OSError."""
    write_atomically(state.root / _NAME, msgspec.json.encode(run))


def end(state: StateDir) -> None:
    """It has ended in order. A file that can't be removed costs a line in the log."""
    try:
        (state.root / _NAME).unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", state.root / _NAME, error.strerror)


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
