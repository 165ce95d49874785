"""What an earlier run with this state directory left behind: its children and its sockets.

Children die with their supervisor (parent-death signal, lifeline). This is the second line of
defence, for the cases in which they did not.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from typing import Annotated

import msgspec
import psutil

from supervisor.processes.launcher import Child, find_ours, start_time
from supervisor.state.files import read_json, write_atomically
from supervisor.state.paths import StateDir, StateError
from supervisor.wire.listener import folders, remove_spare_folder

log = logging.getLogger("bulkhead.supervisor")

_END_SECONDS = 5.0
_SAME_START_SECONDS = 0.5


class _Process(msgspec.Struct, frozen=True):
    role: str
    pid: Annotated[int, msgspec.Meta(ge=1)]
    started: float


class _ChildrenFile(msgspec.Struct, frozen=True):
    instance: str
    children: list[_Process]
    supervisor: _Process | None = None


def record(state: StateDir, instance: str, children: Iterable[Child]) -> None:
    """Write down which children run, so that the next start can find them. Raises OSError."""
    processes = [_Process(child.role, child.pid, child.started) for child in children]
    us = _Process("supervisor", os.getpid(), start_time(os.getpid()))
    write_atomically(state.children, msgspec.json.encode(_ChildrenFile(instance, processes, us)))


def _runs(process: _Process) -> bool:
    """Whether it is still the one that was recorded; a zombie is not."""
    started = start_time(process.pid)
    if not started or abs(started - process.started) > _SAME_START_SECONDS:
        return False
    try:
        return bool(psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def clean(state: StateDir) -> None:
    """Kill the recorded children that still run, and remove all sockets. Blocks for up to 5 s.

    To be called with the instance lock held: nothing here belongs to a running supervisor then.
    Raises StateError where it does all the same, because somebody has removed that one's lock.
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
    owner = left.supervisor
    if owner is not None and owner.pid != os.getpid() and _runs(owner):
        raise StateError(
            f"another Bulkhead (pid {owner.pid}) still runs with the state directory {state.root}, "
            "though its lock file was removed; stop it or choose another --state-dir"
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
    with contextlib.suppress(OSError):  # it names nobody who runs
        state.children.unlink()
    for folder in folders(state.run):
        for socket in folder.glob("*.sock"):
            with contextlib.suppress(OSError):  # who wants to listen there says so
                socket.unlink()
    remove_spare_folder(state.run)
