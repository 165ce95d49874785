"""What can happen to a worker, and how it is made to happen.

Signals come from outside. What a process does to itself (end in good order, send half a frame, keep
the interpreter's lock) it is ordered to do: the fake worker reads one order from a FIFO of its own,
on a thread that waits for nothing else, so that orders are obeyed in any phase.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.orders import EXIT, HOG, TEAR, fifo_of

SIGNALS = {
    "abrt": signal.SIGABRT,
    "segv": signal.SIGSEGV,
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
}
ORDERS = {"exit0": EXIT, "torn": TEAR, "hog": HOG}
FAULTS = (*SIGNALS, *ORDERS)


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault: which, of which model, in which phase, so many seconds into it."""

    fault: str
    model: str
    phase: str
    delay: float


def plan(dice: random.Random, models: tuple[str, ...], last: Plan | None) -> Plan:
    """The next fault. Now and then the same model is hit again while it is loaded; twice in a row
    would be one fault of another kind: a model that can't be loaded."""
    fault = dice.choice(FAULTS)
    if last is not None and last.phase == "serve" and dice.random() < 0.3:
        return Plan(fault, last.model, "load", dice.uniform(0, 1.5))
    return Plan(fault, dice.choice(models), "serve", dice.uniform(0, 1.0))


def strike(fault: str, pid: int, orders: Path) -> bool:
    """Make it happen; False when the process is gone, or too young to take an order."""
    if fault in SIGNALS:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGNALS[fault])
            return True
        return False
    try:
        door = os.open(fifo_of(orders, pid), os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.write(door, ORDERS[fault])
    finally:
        os.close(door)
    return True


def wait_until(true: Callable[[], bool], seconds: float, step: float = 0.01) -> bool:
    """Look until it is true, or for so long."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(step)
    return True
