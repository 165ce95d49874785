"""The spare: a worker process that has imported mlx-lm and waits for the next load.

It is no model, and nobody waits for it: it is started when nothing else is, imports at the lowest
priority, and is the first to go when memory is short. The next load takes it, if it is ready, and
starts a process of its own otherwise.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import signal
from collections.abc import Callable, Iterable

from supervisor import background
from supervisor.processes.watchdog import Watchdog
from supervisor.processes.worker import ExitCallbacks, WorkerProcess
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Model
from supervisor.scheduler.pressure import Level
from supervisor.wire import frames
from supervisor.wire.codec import ProtocolError

log = logging.getLogger("bulkhead.supervisor")

ROLE = "spare"
BYTES = 150 * 10**6
"""What the budget reserves for it: 80 MB on Linux; Metal needs some more."""
_IMPORT_SECONDS = 600.0
"""At the lowest priority an import may take its time on a busy machine."""
_BACKOFF_SECONDS = (1.0, 10.0)
"""Between a death and the next start, after the first and the second death in a row. After the
third there is no next start."""
_REAP_SECONDS = 5.0
_STALL_SECONDS = 5.0
"""A loop that has stood still for so long will not load a model."""


class SpareState(enum.StrEnum):
    OFF = "off"
    WAITING = "waiting"
    """There is none for now: something loads, memory is short, or the last one has died."""
    IMPORTING = "importing"
    READY = "ready"


def is_calm(models: Iterable[Model], level: Level) -> bool:
    """Whether an import would slow nobody down: memory is plenty, no model loads, and no request
    recovers from a death."""
    return level is Level.NORMAL and not any(
        model.state is State.LOADING
        or model.returning
        or any(lease.error is not None for lease in model.waiting.values())
        for model in models
    )


class Spare:
    """At most one process. To be used on the event loop.

    `start` starts it, `on_change` is called when there is one or none. OFF at first. It holds
    nothing that could get lost, so it is killed, with SIGKILL, whenever it has to go.
    """

    def __init__(
        self,
        start: Callable[[ExitCallbacks], WorkerProcess],
        on_change: Callable[[], None],
        *,
        backoff: tuple[float, ...] = _BACKOFF_SECONDS,
    ) -> None:
        self.state = SpareState.OFF
        self.process: WorkerProcess | None = None
        """It runs; where the state is OFF or WAITING, it is being killed."""
        self._start = start
        self._on_change = on_change
        self._backoff = backoff
        self._deaths = 0
        """Since one was taken."""
        self._due = 0.0
        """When the next may start, or the import must be over; monotonic seconds."""
        self.startup: asyncio.Task[None] | None = None
        """Ends once it is ready, or can't become so any more."""
        self._watchdog = Watchdog(_STALL_SECONDS)
        """Of the one that is ready."""

    def enable(self) -> None:
        """Let there be one from now on."""
        self.state = SpareState.WAITING

    def maintain(self, now: float, *, calm: bool) -> None:
        """Start one if there is none and it is `calm`; kill one that takes too long to import or
        has stalled. To be called every `watchdog.CHECK_SECONDS`; `now` in the loop's seconds."""
        if self.state is SpareState.WAITING and calm and self.process is None and now >= self._due:
            self._start_one(now)
        elif self.state is SpareState.IMPORTING and now >= self._due:
            log.error("the spare worker takes too long and is killed")
            self._kill()
        elif self.state is SpareState.READY and (how := self._stalled(now)):
            log.error("the spare worker has stalled and is killed: %s", how)
            self._await_exit(now)
            self._kill()

    def take(self) -> WorkerProcess | None:
        """The spare if it is ready, for the caller to `reassign`; else None."""
        if self.state is not SpareState.READY:
            return None
        process, self.process = self.process, None
        self.state, self._deaths, self._due = SpareState.WAITING, 0, 0.0
        return process

    def drop(self, why: str) -> None:
        """Kill it, for the time being; `why` is for the log."""
        if self.state in (SpareState.IMPORTING, SpareState.READY):
            log.info("the spare worker goes: %s", why)
            self.state, self._due = SpareState.WAITING, 0.0
            self._kill()

    def disable(self) -> None:
        """Kill it and let there be none any more."""
        self.state = SpareState.OFF
        self._kill()

    async def ended(self) -> None:
        """Return once its process has ended, or after 5 s."""
        if self.process is not None:
            try:
                await asyncio.wait_for(self.process.gone.wait(), _REAP_SECONDS)
            except TimeoutError:
                log.error("the spare worker, pid %d, does not end", self.process.child.pid)

    def _start_one(self, now: float) -> None:
        try:
            self.process = self._start(ExitCallbacks(self._fatal_signal, self._exited))
        except OSError as error:
            self._failed(f"it could not be started: {error.strerror}")
            return
        self.state, self._due = SpareState.IMPORTING, now + _IMPORT_SECONDS
        self.startup = background.start(self._await_hello(self.process))
        self._on_change()

    async def _await_hello(self, process: WorkerProcess) -> None:
        """`Hello` is the one thing that a worker says before it has a model."""
        try:
            channel = await process.connect()
            hello = await channel.receive()
        except (ProtocolError, OSError) as error:
            log.error("the spare worker is no good: %s", error)
            process.child.signal(signal.SIGKILL)
            return
        if isinstance(hello, frames.Hello) and not process.runs_our_code():
            log.error("the spare worker is no good: Bulkhead's files changed while it started")
            process.child.signal(signal.SIGKILL)
        elif isinstance(hello, frames.Hello) and self.state is SpareState.IMPORTING:
            self.state, self._watchdog = SpareState.READY, Watchdog(_STALL_SECONDS)
            log.info("a spare worker is ready, pid %d", process.child.pid)

    def _kill(self) -> None:
        if self.process is not None:
            self.process.child.signal(signal.SIGKILL)

    def _fatal_signal(self, how: str) -> None:
        if self.state is SpareState.READY:
            self._await_exit(asyncio.get_running_loop().time())

    def _await_exit(self, now: float) -> None:
        """No load may take it any more; its exit, which must come soon, counts as a death."""
        self.state, self._due = SpareState.IMPORTING, now + _REAP_SECONDS

    def _stalled(self, now: float) -> str | None:
        assert self.process is not None
        reading = self.process.reading()
        return None if reading is None else self._watchdog.check(reading, now, awaited=True)

    def _exited(self, how: str) -> None:
        assert self.process is not None
        process, self.process = self.process, None
        if process.channel is not None:
            process.channel.close()
        if self.state in (SpareState.OFF, SpareState.WAITING):
            log.info("the spare worker, pid %d, has ended", process.child.pid)
        else:
            self._failed(f"pid {process.child.pid} died ({how}), see {process.child.files[1]}")
        self._on_change()

    def _failed(self, how: str) -> None:
        self._deaths += 1
        if self._deaths > len(self._backoff):
            self.state = SpareState.OFF
            log.error(
                "spare worker: %s. That was the last of %d in a row: there will be none "
                "until the next start, and loads take longer",
                how,
                self._deaths,
            )
            return
        pause = self._backoff[self._deaths - 1]
        self.state, self._due = SpareState.WAITING, asyncio.get_running_loop().time() + pause
        log.warning("spare worker: %s; another one in %g s", how, pause)
