"""What an earlier run with this state directory left behind: its children and its sockets.

Children die with their supervisor (parent-death signal, lifeline). This is the second line of
defence, for the cases in which they did not.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

import msgspec
import psutil

from supervisor.processes.launcher import Child, find_ours
from supervisor.state.files import read_json, write_atomically
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
    left = _ChildrenFile("", [])
    try:
        left = read_json(state.children, _ChildrenFile)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning(
            "%s is unreadable (%s); no children of an earlier run are looked for",
            state.children,
            error,
        )
    killed: list[psutil.Process] = []
    for child in left.children:
        process = find_ours(child.pid, child.started, left.instance)
        if process is not None:
            log.warning("killing %s (pid %d), left by an earlier run", child.role, child.pid)
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                process.kill()
            killed.append(process)
    # Until the kernel has taken back what they held, the port above all.
    psutil.wait_procs(killed, timeout=_END_SECONDS)
    state.children.unlink(missing_ok=True)
    for socket in state.run.glob("*.sock"):
        socket.unlink(missing_ok=True)
