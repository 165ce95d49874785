"""The counter: one process that counts tokens with models' tokenizers, and holds no weights.

It is started by the first count and ends when nobody has counted for a while. Whoever counts is its
user meanwhile. It holds nothing that could get lost, so it is killed, with SIGKILL, when it has to
go.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from supervisor import background
from supervisor.background import guarded
from supervisor.processes.launcher import Child
from supervisor.processes.watchdog import Watchdog
from supervisor.processes.worker import ExitCallbacks, WorkerProcess
from supervisor.wire import frames
from supervisor.wire.codec import ProtocolError
from supervisor.wire.listener import places

log = logging.getLogger("bulkhead.supervisor")

ROLE = "counter"
IDLE_SECONDS = 600.0
"""Without a user, after which it ends."""
_START_SECONDS = 60.0
"""An import that takes a second, on a machine that has better things to do."""
_BACKOFF_FIRST = 1.0
_BACKOFF_MAX = 60.0
_BACKOFF_DOUBLINGS = 6
_REAP_SECONDS = 5.0


class CounterState(enum.StrEnum):
    OFF = "off"
    STARTING = "starting"
    READY = "ready"


class CounterDown(Exception):
    """There is none, and none can be started now. The message says why, as the end of a sentence;
    `seconds` until it is tried again."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.seconds = seconds


class CounterProcess:
    """At most one process. To be used on the event loop, whose time is all times here.

    `start` starts it on a socket. `on_change` is called when there is one or none. `on_death` is
    called at every end that was not asked for: the process, how it ended, its uptime in seconds,
    and why we killed it, "" = we did not. `socket` gives the path for each of them.
    """

    def __init__(
        self,
        start: Callable[[Path, ExitCallbacks], WorkerProcess],
        socket: Callable[[int], Path],
        on_change: Callable[[], None],
        on_death: Callable[[Child, str, float, str], None],
        *,
        stall_seconds: float,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.state = CounterState.OFF
        self.users = 0
        """Who counts, or is about to. Above 0 it does not end by itself."""
        self.process: WorkerProcess | None = None
        """It runs; where the state is OFF it is being killed."""
        self._start = start
        self._socket = socket
        self._on_change = on_change
        self._on_death = on_death
        self._stall_seconds = stall_seconds
        self._idle_seconds = idle_seconds
        self._generation = 0
        self._began = self._used = self._due = 0.0
        """When it was started, when it had its last user, and when another one may start."""
        self._failures = 0
        """In a row, of processes that were never ready."""
        self._why_down = ""
        self._kill_reason = ""
        self._is_over = False
        self._started: asyncio.Future[None]
        """Done once the one that starts is ready, or has ended."""
        self._watchdog = Watchdog(stall_seconds)

    @property
    def child(self) -> Child | None:
        return None if self.process is None else self.process.child

    @property
    def socket(self) -> Path:
        """Of the one that was started last."""
        return self._socket(self._generation)

    def enter(self) -> None:
        """Somebody uses it from now on."""
        self.users += 1

    def leave(self) -> None:
        self.users -= 1
        self._used = _now()

    async def ready(self) -> Path:
        """The socket of one that is ready; starts it if there is none. Returns or raises
        CounterDown within a minute or so."""
        if self.process is not None and (self.state is CounterState.OFF or self._kill_reason):
            await self._is_gone(self.process)
        if self.state is CounterState.OFF:  # nobody else was faster
            self._start_one()
        if self.state is CounterState.STARTING:
            await asyncio.wait([self._started], timeout=_START_SECONDS + _REAP_SECONDS)
        if self.state is CounterState.OFF:
            raise CounterDown(self._why_down, max(0.0, self._due - _now()))
        if self.state is CounterState.STARTING or self._kill_reason:
            raise CounterDown(self._kill_reason or "it takes too long to start", 0.0)
        return self.socket

    def maintain(self, now: float) -> None:
        """End one that nobody uses, kill one that takes too long to start or has stalled. To be
        called every `watchdog.CHECK_SECONDS`."""
        if self.state is CounterState.STARTING and now >= self._began + _START_SECONDS:
            self.fault(f"it was not ready within {_START_SECONDS:g} s")
        elif self.state is CounterState.READY:
            assert self.process is not None
            reading = self.process.reading()
            awaited = self.users > 0
            how = reading and self._watchdog.check(reading, now, awaited=awaited)
            if how:
                self.fault(f"it stalled: {how}")
            elif not awaited and now >= self._used + self._idle_seconds:
                self.drop(f"nobody has counted for {self._idle_seconds:g} s")

    def fault(self, reason: str) -> None:
        """Kill it as one that does not work; that is a death. Nothing where it is dying already."""
        if self.state is CounterState.OFF or self.process is None or self._kill_reason:
            return
        log.error("the counter is killed: %s", reason)
        self._kill_reason = reason
        self.process.child.kill_with_stacks()

    def drop(self, why: str) -> None:
        """End it, unless somebody uses it; `why` is for the log."""
        if self.state is not CounterState.OFF and not self.users and not self._kill_reason:
            log.info("the counter goes: %s", why)
            self._end()

    def disable(self) -> None:
        """End it, and let there be none any more."""
        self._is_over = True
        self._end()

    async def ended(self) -> None:
        """Return once its process has ended, or after 5 s."""
        if self.process is not None and not await self._is_gone(self.process):
            log.error("the counter, pid %d, does not end", self.process.child.pid)

    def _end(self) -> None:
        """As it was asked for."""
        if self.process is not None:
            self.state = CounterState.OFF
            self._why_down = "it is ending"
            self.process.child.signal(signal.SIGKILL)

    async def _is_gone(self, process: WorkerProcess) -> bool:
        """Whether it is, within 5 s."""
        try:
            await asyncio.wait_for(process.gone.wait(), _REAP_SECONDS)
        except TimeoutError:
            return False
        return True

    def _start_one(self) -> None:
        """Or tell in `_why_down` why not."""
        now = _now()
        if self._is_over:
            self._why_down = "the server is shutting down"
            return
        if self.process is not None:
            self._why_down = "the last one does not end"
            return
        if now < self._due:
            return
        self._generation += 1
        self._kill_reason = ""
        try:
            self.process = self._start(self.socket, ExitCallbacks(self._fatal_signal, self._exited))
        except OSError as error:
            self._failed(f"it could not be started: {error.strerror}")
            return
        self.state, self._began = CounterState.STARTING, now
        self._started = asyncio.get_running_loop().create_future()
        log.info("the counter is started, pid %d", self.process.child.pid)
        background.start(self._await_hello(self.process))
        guarded(self._on_change)

    async def _await_hello(self, process: WorkerProcess) -> None:
        try:
            channel = await process.connect()
            hello = await channel.receive()
        except (ProtocolError, OSError) as error:
            if process is self.process:
                self.fault(f"its channel is no good: {error}")
            return
        if hello is None or process is not self.process or self.state is not CounterState.STARTING:
            return  # it ends, or has ended and there is another one
        if not isinstance(hello, frames.Hello):
            self.fault("it spoke out of turn")
        elif not process.runs_our_code():
            self.fault("Bulkhead's files changed while it started")
        else:
            self.state, self._failures, self._used = CounterState.READY, 0, _now()
            self._watchdog = Watchdog(self._stall_seconds)
            log.info("the counter is ready, pid %d", process.child.pid)
            self._started.set_result(None)

    def _fatal_signal(self, how: str) -> None:
        """Its exit follows at once, and says the same."""

    def _exited(self, how: str) -> None:
        assert self.process is not None
        process, self.process = self.process, None
        was, self.state = self.state, CounterState.OFF
        if process.channel is not None:
            process.channel.close()
        for place in places(str(self.socket)):
            guarded(_remove, place)
        if was is CounterState.OFF:
            log.info("the counter, pid %d, has ended", process.child.pid)
        else:
            told = f"{how}; {self._kill_reason}" if self._kill_reason else how
            if was is CounterState.STARTING:
                self._failed(f"it died while it started ({told})")
            else:
                self._why_down = f"it died ({told})"
                log.error("the counter, pid %d, died (%s)", process.child.pid, told)
            uptime = _now() - self._began
            guarded(self._on_death, process.child, how, uptime, self._kill_reason)
        if not self._started.done():
            self._started.set_result(None)
        guarded(self._on_change)

    def _failed(self, how: str) -> None:
        """It was never ready: the next one has to wait."""
        doublings = min(self._failures, _BACKOFF_DOUBLINGS)
        pause = min(_BACKOFF_FIRST * 2**doublings, _BACKOFF_MAX)
        self._failures += 1
        self._why_down, self._due = how, _now() + pause
        log.error("the counter cannot be used: %s; not tried again for %g s", how, pause)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _remove(place: str) -> None:
    if os.path.lexists(place):
        os.unlink(place)
