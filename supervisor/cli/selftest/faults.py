"""The faults that a worker is made to have."""

from __future__ import annotations

import enum
import os
import resource
import signal
import sys


class Injection(enum.Enum):
    """The values are the names in the table."""

    NONE = "none"
    ABORT = "SIGABRT, a Metal abort"
    SEGFAULT = "SIGSEGV"
    KILL = "SIGKILL"
    WEDGE = "SIGSTOP, a wedge"
    MEMORY = "out of memory"


KILLS, WEDGES, STARVES = (
    (Injection.ABORT, Injection.SEGFAULT, Injection.KILL),
    (Injection.WEDGE,),
    (Injection.MEMORY,),
)
_SIGNALS = {
    Injection.ABORT: signal.SIGABRT,
    Injection.SEGFAULT: signal.SIGSEGV,
    Injection.KILL: signal.SIGKILL,
    Injection.WEDGE: signal.SIGSTOP,
}


def inject(fault: Injection, pid: int) -> None:
    """Have a process of our own instance suffer this. Raises OSError when it is gone already."""
    if fault in _SIGNALS:
        os.kill(pid, _SIGNALS[fault])
    elif fault is Injection.MEMORY:
        _starve(pid)


def _starve(pid: int) -> None:
    """Make every further allocation fail. On macOS, where limits can't be set from outside, kill
    it, as the system does for want of memory."""
    if sys.platform == "linux":
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (1, hard))
    else:
        os.kill(pid, signal.SIGKILL)
