"""The end of the process, bounded in time whatever state it is in.

The first signal asks for an orderly end, the second one for a quick end, and the third one ends the
process. Both ends have a deadline. It is the kernel's alarm, which needs neither the event loop nor
a thread nor memory. The children end with us (`supervisor.processes.child`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

log = logging.getLogger("bulkhead.supervisor")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS = 90.0
"""Beyond the drain, for all that an orderly end waits for: processes that must be killed and do not
go, a disk that does not answer. The worker of a model of 100 GB has 80 s between its two signals.
"""
QUICK_SECONDS = 45.0
"""After the second signal."""
_NOTICE_SECONDS = 2
"""Before the alarm: if the loop still runs, the log has a word about it."""


class Stopping:
    """Hears the signals that end the process, and sees to it that it does end.

    `on_signal` is called on the event loop for each. `drain` is in seconds.
    """

    def __init__(self, drain: float, on_signal: Callable[[], None]) -> None:
        self._seconds = (drain + SECONDS, QUICK_SECONDS)
        self._on_signal = on_signal
        self._heard = 0

    def listen(self) -> None:
        """From now on. To be called on the event loop, in the main thread."""
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever we were started with
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # nohup means it
                continue
            loop.add_signal_handler(number, self._on_signal)
            # In place of the loop's own, which does nothing: it wakes the loop all the same. Ours
            # runs while the loop does not, and makes it return from a call that blocks.
            signal.signal(number, self._hear)

    def arm(self) -> None:
        """The process has to end by now, in an orderly way."""
        if self._heard == 0:
            self._set_alarm(self._seconds[0])

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard += 1
        if self._heard > len(self._seconds):
            os._exit(1)
        self._set_alarm(self._seconds[self._heard - 1])

    def _set_alarm(self, seconds: float) -> None:
        left = signal.alarm(0)
        due = min(left or seconds, seconds)
        signal.alarm(max(1, round(due)))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # it has ended: the alarm will do
        loop.call_soon_threadsafe(loop.call_later, due - _NOTICE_SECONDS, _give_up)


def disarm() -> None:
    """The process goes on: for tests, which share it."""
    signal.alarm(0)


def _give_up() -> None:
    log.critical("something does not end: the supervisor exits, and its processes with it")
    logging.shutdown()
    os._exit(1)
