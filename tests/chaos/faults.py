"""What can happen to a worker, when, and how it is made to happen.

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

from tests.helpers.fakes.orders import EXIT, HOG, TEAR, fifo_of
from tests.helpers.fakes.signs import IDLE, PREFILL, Sign

SIGNALS = {
    "abrt": signal.SIGABRT,
    "segv": signal.SIGSEGV,
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
}
ORDERS = {"exit0": EXIT, "torn": TEAR, "hog": HOG}
FAULTS = (*SIGNALS, *ORDERS)
YOUNG, READY, BATCHING, FILLING, IDLING = "young", "ready", "batching", "filling", "idling"
AIMS = {YOUNG: 9, READY: 6, BATCHING: 3, FILLING: 2, IDLING: 1}
"""What a fault waits for, and how often: a new process; one that serves, with a suspect on
probation or without; one that runs several requests at once; one that has just got one; one
without any."""
DELAYS = {YOUNG: 1.8, READY: 0.8, BATCHING: 0.5, FILLING: 0.0, IDLING: 0.2}
"""Seconds that it waits at most after that."""
BARREN_MAX = 3
"""Deaths without a token between them after which the next process is left until it makes one: what
never makes any is rightly not loaded again for a while."""
BATCH_MIN = 3
"""Requests that run at once only when nobody is accused, and tried alone."""


@dataclass(slots=True)
class Past:
    """What a model has been through, as far as it restricts what may come next."""

    barren: int = 0
    """Deaths since its last token."""
    accuses: bool = False
    """Whether a worker has died with requests in it: one of them may be accused of that, and is
    tried alone then. A second fault there would be of another kind: one that a request brings with
    it."""

    def died(self, sign: Sign | None) -> None:
        """A process has ended; `sign` is its last."""
        self.barren = 1 if sign is not None and sign.made else self.barren + 1
        if sign is not None and sign.serves:
            self.accuses |= sign.running > 0

    def allows(self, sign: Sign | None) -> bool:
        """Whether a fault may hit a process where it is now."""
        made = sign is not None and sign.made
        if self.barren >= BARREN_MAX and not made:
            return False
        busy = sign is not None and sign.serves and sign.phase != IDLE
        return not (self.accuses and busy and sign is not None and sign.running < BATCH_MIN)


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault: which, what it waits for, and how many seconds after that it comes."""

    fault: str
    aim: str
    delay: float


def plan(dice: random.Random, past: Past) -> Plan:
    """The next fault of a model."""
    fault = dice.choice(FAULTS)
    aim = dice.choices(tuple(AIMS), tuple(AIMS.values()))[0]
    if aim == YOUNG and past.barren >= BARREN_MAX:
        aim = READY
    if past.accuses and fault == "torn" and aim in (YOUNG, IDLING):
        fault = "kill"  # half a frame comes with the next frame, and that may be later
    return Plan(fault, aim, dice.uniform(0, DELAYS[aim]))


def reached(aim: str, sign: Sign | None) -> bool:
    """Whether a process is where such a fault waits for it."""
    if aim == YOUNG:
        return True
    if sign is None or not sign.serves:
        return False
    return {
        READY: True,
        BATCHING: sign.running >= BATCH_MIN and sign.made,
        FILLING: sign.phase == PREFILL,
        IDLING: not sign.running,
    }[aim]


def inject(fault: str, pid: int, orders: Path) -> bool:
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


def is_gone(pid: int) -> bool:
    """Whether the process has been reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(true: Callable[[], bool], seconds: float, step: float = 0.01) -> bool:
    """Look until it is true, or for so long."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(step)
    return True
