"""The spare: a worker process that has imported mlx-lm and waits for the next load.

It is no model, and nobody waits for it: it starts when nothing else does, imports at the lowest
priority, and is the first to go when memory is short. Whoever takes it gives it a model. While there
is none that is ready, workers are started as if there were no such thing.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import signal
from collections.abc import Callable, Iterable

from supervisor.processes.watchdog import Watchdog
from supervisor.processes.worker import Owner, WorkerProcess
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Model
from supervisor.scheduler.pressure import Level
from supervisor.wire import frames
from supervisor.wire.codec import ProtocolError

log = logging.getLogger("bulkhead.supervisor")

ROLE = "spare"
BYTES = 150 * 10**6
"""What the budget keeps for it: 80 MB on Linux; Metal needs some more."""
_IMPORT_SECONDS = 600.0
"""At the lowest priority an import may take its time on a busy machine."""
_BACKOFF_SECONDS = (1.0, 10.0)
"""After the first and the second death in a row. The third is the last."""
_REAP_SECONDS = 5.0
_STALL_SECONDS = 5.0
"""A loop that has stood still for so long will not load a model."""


class SpareState(enum.StrEnum):
    OFF = "off"
    WAITING = "waiting"
    """There is none yet: something loads, memory is short, or the last one has died."""
    IMPORTING = "importing"
    READY = "ready"


def is_calm(models: Iterable[Model], level: Level) -> bool:
    """Whether an import would be in nobody's way: memory is plenty, nothing loads, and nobody's
    recovery is under way."""
    return level is Level.NORMAL and not any(
        model.state is State.LOADING
        or model.returning
        or any(lease.error is not None for lease in model.waiting.values())
        for model in models
    )


class Spare:
    """At most one process, started with `start` and called on the event loop.

    OFF at first. Nothing is signalled by halves: a spare holds nothing that an end could spoil, so
    it is killed whenever it has to go.
    """

    def __init__(
        self,
        start: Callable[[Owner], WorkerProcess],
        on_change: Callable[[], None],
        *,
        backoff: tuple[float, ...] = _BACKOFF_SECONDS,
    ) -> None:
        self.standing = SpareState.OFF
        self.process: WorkerProcess | None = None
        """Lives, or is being killed (OFF and WAITING)."""
        self._start = start
        self._on_change = on_change
        self._backoff = backoff
        self._deaths = 0
        """Unasked, since one was taken."""
        self._due = 0.0
        """When the next may start, or the import must be over; monotonic seconds."""
        self.greeting: asyncio.Task[None] | None = None
        """Ends once it has said that it is ready, or can't any more."""
        self._watchdog = Watchdog(_STALL_SECONDS)
        """Of the one that is ready."""

    def allow(self) -> None:
        """There may be one from now on."""
        self.standing = SpareState.WAITING

    def tend(self, now: float, *, calm: bool) -> None:
        """Start one if there is none and it would be in nobody's way; see that the one that is ready
        moves. Called every `watchdog.LOOK_SECONDS`."""
        if (
            self.standing is SpareState.WAITING
            and calm
            and self.process is None
            and now >= self._due
        ):
            self._begin(now)
        elif self.standing is SpareState.IMPORTING and now >= self._due:
            log.error("the spare worker takes too long and is killed")
            self._kill()
        elif self.standing is SpareState.READY and (how := self._stalled(now)):
            log.error("the spare worker has stalled and is killed: %s", how)
            self._doom(now)
            self._kill()

    def take(self) -> WorkerProcess | None:
        """The spare, which the caller must hand over to its new owner; None = start one yourself."""
        if self.standing is not SpareState.READY:
            return None
        process, self.process = self.process, None
        self.standing, self._deaths, self._due = SpareState.WAITING, 0, 0.0
        return process

    def drop(self, why: str) -> None:
        """It must go, for the time being."""
        if self.standing in (SpareState.IMPORTING, SpareState.READY):
            log.info("the spare worker goes: %s", why)
            self.standing, self._due = SpareState.WAITING, 0.0
            self._kill()

    def forbid(self) -> None:
        """It goes for good."""
        self.standing = SpareState.OFF
        self._kill()

    async def ended(self) -> None:
        """Return once there is no process, or the kernel does not let go of it."""
        if self.process is not None:
            try:
                await asyncio.wait_for(self.process.gone.wait(), _REAP_SECONDS)
            except TimeoutError:
                log.error("the spare worker, pid %d, does not end", self.process.child.pid)

    def _begin(self, now: float) -> None:
        try:
            self.process = self._start(Owner(self._dying, self._exited))
        except OSError as error:
            self._failed(f"it could not be started: {error.strerror}")
            return
        self.standing, self._due = SpareState.IMPORTING, now + _IMPORT_SECONDS
        self.greeting = asyncio.get_running_loop().create_task(self._greet(self.process))
        self._on_change()

    async def _greet(self, process: WorkerProcess) -> None:
        """It says one thing before it has a model."""
        channel = await process.connect()
        try:
            hello = await channel.receive()
        except ProtocolError as error:
            log.error("the spare worker is no good: bad message: %s", error)
            process.child.signal(signal.SIGKILL)
            return
        if isinstance(hello, frames.Hello) and self.standing is SpareState.IMPORTING:
            self.standing, self._watchdog = SpareState.READY, Watchdog(_STALL_SECONDS)
            log.info("a spare worker is ready, pid %d", process.child.pid)

    def _kill(self) -> None:
        if self.process is not None:
            self.process.child.signal(signal.SIGKILL)

    def _dying(self, how: str) -> None:
        if self.standing is SpareState.READY:
            self._doom(asyncio.get_running_loop().time())

    def _doom(self, now: float) -> None:
        """Nobody must take it; its end follows, which is a death."""
        self.standing, self._due = SpareState.IMPORTING, now + _REAP_SECONDS

    def _stalled(self, now: float) -> str | None:
        assert self.process is not None
        reading = self.process.reading()
        return None if reading is None else self._watchdog.look(reading, now, awaited=True)

    def _exited(self, how: str) -> None:
        assert self.process is not None
        process, self.process = self.process, None
        if process.channel is not None:
            process.channel.close()
        if self.standing in (SpareState.OFF, SpareState.WAITING):
            log.info("the spare worker, pid %d, has ended", process.child.pid)
        else:
            self._failed(f"pid {process.child.pid} died ({how}), see {process.child.files[1]}")
        self._on_change()

    def _failed(self, how: str) -> None:
        self._deaths += 1
        if self._deaths > len(self._backoff):
            self.standing = SpareState.OFF
            log.error(
                "spare worker: %s. That was the last of %d in a row: there will be none "
                "until the next start, and loads take longer",
                how,
                self._deaths,
            )
            return
        pause = self._backoff[self._deaths - 1]
        self.standing, self._due = SpareState.WAITING, asyncio.get_running_loop().time() + pause
        log.warning("spare worker: %s; another one in %g s", how, pause)
