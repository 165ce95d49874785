"""What is done to a worker."""

from __future__ import annotations

import enum
import os
import resource
import signal
import sys


class Fault(enum.Enum):
    """Its name in the table."""

    NONE = "none"
    ABORT = "SIGABRT, a Metal abort"
    SEGFAULT = "SIGSEGV"
    KILL = "SIGKILL"
    WEDGE = "SIGSTOP, a wedge"
    MEMORY = "out of memory"


KILLS, WEDGES, STARVES = (Fault.ABORT, Fault.SEGFAULT, Fault.KILL), (Fault.WEDGE,), (Fault.MEMORY,)
_SIGNALS = {
    Fault.ABORT: signal.SIGABRT,
    Fault.SEGFAULT: signal.SIGSEGV,
    Fault.KILL: signal.SIGKILL,
    Fault.WEDGE: signal.SIGSTOP,
}


def strike(fault: Fault, pid: int) -> None:
    """Do it to a process of our own instance. Raises OSError when it is gone already."""
    if fault in _SIGNALS:
        os.kill(pid, _SIGNALS[fault])
    elif fault is Fault.MEMORY:
        _starve(pid)


def _starve(pid: int) -> None:
    """No further allocation succeeds. Where limits can't be set from outside, on macOS, it gets at
    once what the system's memory killer would do to it."""
    if sys.platform == "linux":
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (1, hard))
    else:
        os.kill(pid, signal.SIGKILL)
