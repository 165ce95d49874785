"""What an earlier run with this state directory left behind: its children and its sockets.

Children die with their supervisor (parent-death signal, lifeline). This is the second line of
defence, for the cases in which they did not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterable

import msgspec
import psutil

from supervisor.processes.launcher import Child, is_ours
from supervisor.state.files import write_atomically
from supervisor.state.paths import StateDir

log = logging.getLogger("bulkhead.supervisor")

_END_SECONDS = 5.0


class _Process(msgspec.Struct, frozen=True):
    role: str
    pid: int
    started: float


class _ChildrenFile(msgspec.Struct, frozen=True):
    instance: str
    children: list[_Process]


def record(state: StateDir, instance: str, children: Iterable[Child]) -> None:
    """Write down which children run, so that the next start can find them. Raises OSError."""
    processes = [_Process(child.role, child.pid, child.started) for child in children]
    write_atomically(state.children, msgspec.json.encode(_ChildrenFile(instance, processes)))


def clean(state: StateDir) -> None:
    """Kill the recorded children that still run, and remove all sockets. Blocks for up to 5 s.

    To be called with the instance lock held: nothing here belongs to a running supervisor then.
    """
    try:
        left = msgspec.json.decode(state.children.read_bytes(), type=_ChildrenFile)
    except FileNotFoundError:
        left = _ChildrenFile("", [])
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        log.warning("%s is unreadable (%s); no leftovers are looked for", state.children, error)
        left = _ChildrenFile("", [])
    killed: list[int] = []
    for process in left.children:
        if is_ours(process.pid, process.started, left.instance):
            log.warning("killing %s (pid %d), left by an earlier run", process.role, process.pid)
            _kill(process.pid)
            killed.append(process.pid)
    _await_end(killed)
    state.children.unlink(missing_ok=True)
    for socket in state.run.glob("*.sock"):
        socket.unlink(missing_ok=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself meanwhile


def _await_end(pids: Iterable[int]) -> None:
    """Until the kernel has taken back what they held, the port above all; for 5 s at most."""
    gone = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            gone.append(psutil.Process(pid))
    psutil.wait_procs(gone, timeout=_END_SECONDS)
