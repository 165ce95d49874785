"""What an earlier run of this state directory left behind: its children and its sockets.

Children die with their supervisor (parent-death signal, lifeline). This is the second line, for
platforms and moments in which they did not.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable

import msgspec

from supervisor.paths import StateDir, write_atomically
from supervisor.process import Child, is_ours

log = logging.getLogger("bulkhead.supervisor")


class _Process(msgspec.Struct, frozen=True):
    role: str
    pid: int
    started: float


class _Record(msgspec.Struct, frozen=True):
    instance: str
    children: list[_Process]


def record(state: StateDir, instance: str, children: Iterable[Child]) -> None:
    """Write down who runs, so that the next start can find them."""
    processes = [_Process(child.role, child.pid, child.started) for child in children]
    write_atomically(state.children, msgspec.json.encode(_Record(instance, processes)))


def clean(state: StateDir) -> None:
    """Kill the recorded children that still run, and remove all sockets.

    Call it with the instance lock held: whatever is here then belongs to nobody alive.
    """
    try:
        left = msgspec.json.decode(state.children.read_bytes(), type=_Record)
    except FileNotFoundError:
        left = _Record("", [])
    except msgspec.MsgspecError as error:
        log.warning("%s is unreadable (%s); no leftovers are looked for", state.children, error)
        left = _Record("", [])
    for process in left.children:
        if is_ours(process.pid, process.started, left.instance):
            log.warning("killing %s (pid %d), left by an earlier run", process.role, process.pid)
            _kill(process.pid)
    state.children.unlink(missing_ok=True)
    for socket in state.run.glob("*.sock"):
        socket.unlink(missing_ok=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself meanwhile
