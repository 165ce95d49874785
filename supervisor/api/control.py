"""The control socket: answers frames of the gateway, and holds a lease for each connection."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import ParamSpec, Protocol

from supervisor.api.events import EventFeed
from supervisor.errors import BulkheadError
from supervisor.scheduler import refusals
from supervisor.scheduler.effects import Effect, EndLease, Grant, Interrupt, Loaded, Refuse, Unpause
from supervisor.scheduler.state import PoolState
from supervisor.state.paths import StateDir
from supervisor.wire import frames
from supervisor.wire.codec import ProtocolError
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.supervisor")

Connection = FrameStream[frames.ToSupervisor]
ToLease = Grant | Unpause | Refuse | EndLease | Interrupt | Loaded
P = ParamSpec("P")


class Events(Protocol):
    """What the control socket asks of the pool, always through `Shell.handle`."""

    def acquire(
        self, request_id: str, name: str, hold: float, now: float, digest: bytes
    ) -> tuple[int, list[Effect]]: ...
    def load(
        self, request_id: str, name: str, hold: float, now: float
    ) -> tuple[int, list[Effect]]: ...
    def release(self, lease_id: int, now: float) -> list[Effect]: ...
    def returned(self, lease_id: int, position: int, now: float) -> list[Effect]: ...
    def passed(self, lease_id: int, now: float) -> list[Effect]: ...
    def fault(self, lease_id: int, reason: str, now: float) -> list[Effect]: ...
    def unload(self, name: str, now: float) -> list[Effect]: ...
    def pin(self, name: str, now: float) -> list[Effect]: ...
    def unpin(self, name: str, now: float) -> list[Effect]: ...


class Shell(Protocol):
    """What the control socket calls of the supervisor, on the event loop."""

    def handle(
        self, event: Callable[P, Iterable[Effect] | None], *args: P.args, **more: P.kwargs
    ) -> None:
        """Have the pool decide about one event, and carry out what follows. Raises nothing."""

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
    """Turns frames into events of the pool. A connection has one lease at most.

    `pool` is what the pool knows, only to look at.
    """

    def __init__(
        self, events: Events, pool: PoolState, feed: EventFeed, state: StateDir, shell: Shell
    ) -> None:
        self._events = events
        self._pool = pool
        self._feed = feed
        self._state = state
        self._shell = shell
        self._leases: dict[int, Connection] = {}

    def tell(self, effect: ToLease) -> None:
        """Send what was decided about a lease over its connection."""
        self._leases[effect.lease].send(self._frame(effect))

    def drop(self, lease: int) -> None:
        """Close the connection of a lease that could not be told something, which releases it."""
        if lease in self._leases:
            self._leases[lease].close()

    def close(self) -> None:
        """Close all connections that hold leases."""
        for connection in self._leases.values():
            connection.close()

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
                        if lease is None:
                            return
                    case frames.Manage() if lease is None:
                        lease = self._manage(frame, connection)
                    case frames.WatchEvents():
                        if not self._feed.join(connection):
                            connection.send(_refused(refusals.too_many_watchers()))
                    case frames.Return(position, prompt_tokens) if lease is not None:
                        self._shell.returned(lease, position, prompt_tokens)
                        self._shell.handle(self._events.returned, lease, position, time.monotonic())
                    case frames.Passed() if lease is not None:
                        self._shell.handle(self._events.passed, lease, time.monotonic())
                    case frames.WorkerFault(reason) if lease is not None:
                        log.error("a gateway's request met a faulty worker: %s", reason)
                        self._shell.handle(self._events.fault, lease, reason, time.monotonic())
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
        except Exception:
            log.exception("a connection of the gateway's has to be closed")
        finally:
            self._feed.leave(connection)
            if lease is not None:
                self._shell.left(lease)
                self._shell.handle(self._events.release, lease, time.monotonic())
                del self._leases[lease]

    def _acquire(self, frame: frames.Acquire, connection: Connection) -> int | None:
        """The new lease; None if the pool has failed."""
        with contextlib.suppress(BulkheadError):  # the pool refuses it in a moment
            self._shell.before_load(self._pool.resolve(frame.model).name)
        digest = self._shell.keyed(frame.digest)

        lease: int | None = None

        def acquire() -> list[Effect]:
            nonlocal lease
            now, hold = time.monotonic(), frame.hold_seconds
            lease, effects = self._events.acquire(frame.request_id, frame.model, hold, now, digest)
            self._leases[lease] = connection
            return effects

        self._shell.handle(acquire)
        return lease

    def _manage(self, frame: frames.Manage, connection: Connection) -> int | None:
        """What a person asks for. Returns the lease of a load, which waits."""
        try:
            name = self._pool.resolve(frame.model).name
        except BulkheadError as error:
            connection.send(_refused(error))
            return None
        log.info("asked by hand (%s): %s %s", frame.request_id, frame.action, name)
        if frame.action == "load":
            return self._load(frame, name, connection)
        events = self._events
        asked = {"unload": events.unload, "pin": events.pin, "unpin": events.unpin}
        self._shell.handle(asked[frame.action], name, time.monotonic())
        connection.send(self._managed(name))
        return None

    def _load(self, frame: frames.Manage, name: str, connection: Connection) -> int | None:
        self._shell.before_load(name)
        lease: int | None = None

        def load() -> list[Effect]:
            nonlocal lease
            now, hold = time.monotonic(), frame.hold_seconds
            lease, effects = self._events.load(frame.request_id, name, hold, now)
            self._leases[lease] = connection
            return effects

        self._shell.handle(load)
        return lease

    def _managed(self, name: str) -> frames.Managed:
        model = self._pool.models[name]
        return frames.Managed(name, model.state.value, model.pinned)

    async def _crashes(self, name: str) -> frames.Crashes | frames.Refused:
        try:
            return frames.Crashes(await self._shell.crashes(name))
        except BulkheadError as error:
            return _refused(error)

    def _report(self, model: str) -> frames.Report | frames.Refused:
        try:
            name = self._pool.resolve(model).name if model else ""
        except BulkheadError as error:
            return _refused(error)
        return frames.Report(not self._pool.shutting_down, self._shell.health(), name)


def _refused(error: BulkheadError) -> frames.Refused:
    return frames.Refused(error.code, error.message, error.param, error.retry_after)
