"""The control socket: answers frames of the gateway, and holds a lease for each connection.

This room alone, beside those that build the supervisor, calls the scheduler's `Pool`: its job is to
turn frames into the pool's events.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Protocol

from supervisor.api.events import EventFeed
from supervisor.errors import BulkheadError
from supervisor.scheduler import refusals
from supervisor.scheduler.effects import Effect, EndLease, Grant, Interrupt, Loaded, Refuse, Unpause
from supervisor.scheduler.pool import Pool
from supervisor.state.paths import StateDir
from supervisor.wire import frames
from supervisor.wire.codec import ProtocolError
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.supervisor")

Connection = FrameStream[frames.ToSupervisor]
ToLease = Grant | Unpause | Refuse | EndLease | Interrupt | Loaded


class Shell(Protocol):
    """What the control socket calls of the supervisor, on the event loop."""

    def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out what the pool has decided."""

    def before_load(self, model: str) -> None:
        """The model is about to be asked for: see whether its files have changed."""

    def keyed(self, digest: bytes) -> bytes:
        """A request's digest under the quarantine's key, from which no request can be guessed."""

    def gateway_serves(self) -> None:
        """The gateway accepts requests."""

    def health(self) -> bytes:
        """The object that `/health` shows."""

    def returned(self, lease: int, position: int, prompt_tokens: int) -> None:
        """The gateway tells how far an interrupted request had come."""

    def left(self, lease: int) -> None:
        """The connection of a lease has closed."""

    async def crashes(self, name: str) -> bytes:
        """One crash report, or the list of all for "". Raises NotFound."""


class Control:
    """Turns frames into events of the pool. A connection has one lease at most."""

    def __init__(self, pool: Pool, feed: EventFeed, state: StateDir, shell: Shell) -> None:
        self._pool = pool
        self._feed = feed
        self._state = state
        self._shell = shell
        self._leases: dict[int, Connection] = {}

    def tell(self, effect: ToLease) -> None:
        """Send what was decided about a lease over its connection."""
        self._leases[effect.lease].send(self._frame(effect))

    def _frame(self, effect: ToLease) -> frames.Frame:
        match effect:
            case Grant(_, model, worker, generation, until, then_pause, asked):
                path = str(self._state.worker_socket(model, generation))
                return frames.Granted(model, worker, path, until, then_pause, asked)
            case Unpause():
                return frames.Unpause()
            case Refuse(_, error):
                return _refused(error)
            case EndLease(_, error) | Interrupt(_, error):
                may_return = isinstance(effect, Interrupt)
                return frames.Died(
                    error.code, error.message, error.param, error.retry_after, may_return
                )
            case Loaded(_, model):
                return self._managed(model)

    async def serve(self, connection: Connection) -> None:
        """Answer one connection until it closes, which ends its lease."""
        lease: int | None = None
        try:
            while (frame := await connection.receive()) is not None:
                match frame:
                    case frames.Acquire() if lease is None:
                        lease = self._acquire(frame, connection)
                    case frames.Manage() if lease is None:
                        lease = self._manage(frame, connection)
                    case frames.WatchEvents():
                        if not self._feed.join(connection):
                            connection.send(_refused(refusals.too_many_watchers()))
                    case frames.Return(position, prompt_tokens) if lease is not None:
                        self._shell.returned(lease, position, prompt_tokens)
                        self._shell.perform(self._pool.returned(lease, position, time.monotonic()))
                    case frames.Passed() if lease is not None:
                        self._shell.perform(self._pool.passed(lease, time.monotonic()))
                    case frames.WorkerFault(reason) if lease is not None:
                        log.error("a gateway's request met a faulty worker: %s", reason)
                        self._shell.perform(self._pool.fault(lease, reason, time.monotonic()))
                    case frames.Inquire(model):
                        connection.send(self._report(model))
                    case frames.AskCrashes(name):
                        connection.send(await self._crashes(name))
                    case frames.Serving():
                        self._shell.gateway_serves()
                    case _:
                        log.error("the gateway broke the protocol: %s", type(frame).__name__)
                        return
        except ProtocolError as error:
            log.error("the gateway broke the protocol: %s", error)
        finally:
            self._feed.leave(connection)
            if lease is not None:
                self._shell.left(lease)
                self._shell.perform(self._pool.release(lease, time.monotonic()))
                del self._leases[lease]

    def _acquire(self, frame: frames.Acquire, connection: Connection) -> int:
        with contextlib.suppress(BulkheadError):  # the pool refuses it in a moment
            self._shell.before_load(self._pool.resolve(frame.model).spec.name)
        lease, effects = self._pool.acquire(
            frame.request_id,
            frame.model,
            frame.hold_seconds,
            time.monotonic(),
            self._shell.keyed(frame.digest),
        )
        self._leases[lease] = connection
        self._shell.perform(effects)
        return lease

    def _manage(self, frame: frames.Manage, connection: Connection) -> int | None:
        """What a person asks for. Returns the lease of a load, which waits."""
        now = time.monotonic()
        try:
            name = self._pool.resolve(frame.model).spec.name
        except BulkheadError as error:
            connection.send(_refused(error))
            return None
        log.info("asked by hand (%s): %s %s", frame.request_id, frame.action, name)
        if frame.action == "load":
            self._shell.before_load(name)
            lease, effects = self._pool.load(frame.request_id, name, frame.hold_seconds, now)
            self._leases[lease] = connection
            self._shell.perform(effects)
            return lease
        actions = {"unload": self._pool.unload, "pin": self._pool.pin, "unpin": self._pool.unpin}
        self._shell.perform(actions[frame.action](name, now))
        connection.send(self._managed(name))
        return None

    def _managed(self, name: str) -> frames.Managed:
        entry = self._pool.entries[name]
        return frames.Managed(name, entry.state.value, entry.pinned)

    async def _crashes(self, name: str) -> frames.Crashes | frames.Refused:
        try:
            return frames.Crashes(await self._shell.crashes(name))
        except BulkheadError as error:
            return _refused(error)

    def _report(self, model: str) -> frames.Report | frames.Refused:
        try:
            name = self._pool.resolve(model).spec.name if model else ""
        except BulkheadError as error:
            return _refused(error)
        return frames.Report(not self._pool.shutting_down, self._shell.health(), name)


def _refused(error: BulkheadError) -> frames.Refused:
    return frames.Refused(error.code, error.message, error.param, error.retry_after)
