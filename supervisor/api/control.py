"""The control socket: answers frames of the gateway, and holds a lease for each connection."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import ParamSpec, Protocol

from supervisor.api.events import EventFeed
from supervisor.errors import BulkheadError
from supervisor.processes.counter import CounterDown, CounterProcess
from supervisor.scheduler import refusals
from supervisor.scheduler.effects import (
    Effect,
    EndLease,
    Grant,
    Interrupt,
    Loaded,
    Refuse,
    SetPlaces,
)
from supervisor.scheduler.pool import Pool
from supervisor.state.paths import StateDir
from supervisor.wire import control_frames, frames
from supervisor.wire.codec import ProtocolError
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.supervisor")

Connection = FrameStream[control_frames.ToSupervisor]
ToLease = Grant | SetPlaces | Refuse | EndLease | Interrupt | Loaded
P = ParamSpec("P")


class Shell(Protocol):
    """What the control socket calls of the dispatcher, on the event loop."""

    def handle(
        self, event: Callable[P, Iterable[Effect] | None], *args: P.args, **more: P.kwargs
    ) -> None:
        """Have the pool decide about one event, and carry out what follows. Raises nothing."""

    async def before_load(self, model: str) -> None:
        """The model is about to be asked for: see whether its files have changed. Returns soon,
        whatever the disk does."""

    async def before_count(self, model: str) -> Path:
        """The folder with the model's files. Returns soon, whatever the disk does. Raises
        BulkheadError where nothing can be counted."""

    def returned(self, lease: int, position: int, prompt_tokens: int, hold: float) -> None:
        """The gateway tells how far an interrupted request had come, which asks to go on, and how
        long it waits for that from now on, if that has changed."""

    def left(self, lease: int) -> None:
        """The connection of a lease has closed."""


class Control:
    """Turns frames into events of the pool. A connection has one lease at most.

    Whatever changes the pool goes through `shell`. `keyed` gives a request's digest under the
    quarantine's key, from which no request can be guessed; `counter` counts tokens; `health` gives
    the object that `/health` shows; `about` what is known of the models' files; `crashes` one crash
    report, or the list of all for "", and raises NotFound. `gateway_serves` is called when the
    gateway accepts requests.
    """

    def __init__(
        self,
        pool: Pool,
        feed: EventFeed,
        state: StateDir,
        shell: Shell,
        *,
        keyed: Callable[[bytes], bytes],
        counter: CounterProcess,
        health: Callable[[], bytes],
        about: Callable[[], bytes],
        crashes: Callable[[str], Awaitable[bytes]],
        gateway_serves: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._feed = feed
        self._state = state
        self._shell = shell
        self._keyed = keyed
        self._counter = counter
        self._health = health
        self._about = about
        self._read_crashes = crashes
        self._gateway_serves = gateway_serves
        self._leases: dict[int, Connection] = {}
        self._counting: set[Connection] = set()
        """Those of the counter's users."""

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
            case Grant(_, model, worker, generation, until, asked, places):
                path = str(self._state.worker_socket(model, generation))
                return control_frames.Granted(model, worker, path, until, asked, places)
            case SetPlaces(_, places):
                return control_frames.Places(places)
            case Refuse(_, error):
                return _refused(error)
            case EndLease(_, error) | Interrupt(_, error):
                may_return = isinstance(effect, Interrupt)
                return control_frames.Died(
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
                    case control_frames.Acquire() if lease is None:
                        lease = await self._acquire(frame, connection)
                    case control_frames.Manage() if lease is None:
                        lease = await self._manage(frame, connection)
                    case control_frames.Warm() if lease is None:
                        lease = await self._warm(frame, connection)
                    case control_frames.Expire(model):
                        connection.send(self._expire(model))
                    case control_frames.WatchEvents():
                        if not self._feed.join(connection):
                            connection.send(_refused(refusals.too_many_watchers()))
                    case control_frames.Return(position, prompt_tokens, hold) if lease is not None:
                        self._shell.returned(lease, position, prompt_tokens, hold)
                    case control_frames.Holds(held, left) if lease is not None:
                        self._shell.handle(self._pool.holds, lease, held, left, time.monotonic())
                    case control_frames.Passed() if lease is not None:
                        self._shell.handle(self._pool.passed, lease, time.monotonic())
                    case control_frames.WorkerFault(reason) if lease is not None:
                        log.error("a gateway's request met a faulty worker: %s", reason)
                        self._shell.handle(self._pool.fault, lease, reason, time.monotonic())
                    case control_frames.UseCounter(model) if connection not in self._counting:
                        connection.send(await self._use_counter(model, connection))
                    case control_frames.WorkerFault(reason) if connection in self._counting:
                        self._counter.fault(reason)
                    case control_frames.Inquire(model, files):
                        connection.send(self._report(model, files))
                    case control_frames.AskCrashes(name):
                        connection.send(await self._crashes(name))
                    case control_frames.Serving():
                        self._gateway_serves()
                    case _:
                        log.error("the gateway broke the protocol: %s", type(frame).__name__)
                        return
        except ProtocolError as error:
            log.error("the gateway broke the protocol: %s", error)
        except Exception:
            log.exception("a connection of the gateway's has to be closed")
        finally:
            self._feed.leave(connection)
            if connection in self._counting:
                self._counting.remove(connection)
                self._counter.leave()
            if lease is not None:
                self._shell.left(lease)
                del self._leases[lease]

    async def _use_counter(
        self, asked: str, connection: Connection
    ) -> control_frames.Counter | control_frames.Refused:
        """From now on the connection uses the counter, whatever the answer is."""
        self._counting.add(connection)
        self._counter.enter()
        try:
            model = self._pool.state.resolve(asked).name
            folder = await self._shell.before_count(model)
            socket = await self._counter.ready()
        except BulkheadError as error:
            return _refused(error)
        except CounterDown as error:
            return _refused(refusals.no_counter(str(error), error.seconds))
        return control_frames.Counter(model, str(folder), str(socket))

    def counter_died(self, how: str, kill_reason: str) -> None:
        """Tell those whose counts are lost with it."""
        error = refusals.counter_died(how, kill_reason)
        for connection in self._counting:
            connection.send(
                control_frames.Died(error.code, error.message, error.param, error.retry_after)
            )

    async def _acquire(self, frame: control_frames.Acquire, connection: Connection) -> int | None:
        """The new lease; None if the pool has failed, see `_open_lease`."""
        with contextlib.suppress(BulkheadError):  # the pool refuses it in a moment
            await self._shell.before_load(self._pool.state.resolve(frame.model).name)
        digest, now = self._keyed(frame.digest), time.monotonic()
        hold, acquire = frame.hold_seconds, self._pool.acquire
        return self._open_lease(
            connection,
            acquire,
            frame.request_id,
            frame.model,
            hold,
            now,
            digest,
            frame.keep_alive,
            frame.places,
            frame.at_once,
        )

    def _open_lease(
        self,
        connection: Connection,
        event: Callable[P, tuple[int, list[Effect]]],
        *args: P.args,
        **more: P.kwargs,
    ) -> int | None:
        """The lease of that event, which this connection holds. If the pool has failed, there is
        none, and the connection is closed."""
        lease: int | None = None

        @functools.wraps(event)  # the log names the event
        def open_lease(*args: P.args, **more: P.kwargs) -> list[Effect]:
            nonlocal lease
            lease, effects = event(*args, **more)
            self._leases[lease] = connection  # before the effects: they are told over it
            return effects

        self._shell.handle(open_lease, *args, **more)
        if lease is None:
            connection.close()
        return lease

    async def _manage(self, frame: control_frames.Manage, connection: Connection) -> int | None:
        """What a person asks for. Returns the lease of a load, which waits."""
        try:
            name = self._pool.state.resolve(frame.model).name
        except BulkheadError as error:
            connection.send(_refused(error))
            return None
        log.info("asked by hand (%s): %s %s", frame.request_id, frame.action, name)
        if frame.action == "load":
            await self._shell.before_load(name)
            hold, now = frame.hold_seconds, time.monotonic()
            return self._open_lease(connection, self._pool.load, frame.request_id, name, hold, now)
        pool = self._pool
        asked = {"unload": pool.unload, "pin": pool.pin, "unpin": pool.unpin}
        self._shell.handle(asked[frame.action], name, time.monotonic())
        connection.send(self._managed(name))
        return None

    async def _warm(self, frame: control_frames.Warm, connection: Connection) -> int | None:
        """The lease of a load that a client asks for, which waits."""
        with contextlib.suppress(BulkheadError):  # the pool refuses it in a moment
            await self._shell.before_load(self._pool.state.resolve(frame.model).name)
        hold, now, warm = frame.hold_seconds, time.monotonic(), self._pool.warm
        return self._open_lease(
            connection, warm, frame.request_id, frame.model, hold, now, frame.keep_alive
        )

    def _expire(self, model: str) -> control_frames.Managed | control_frames.Refused:
        try:
            name = self._pool.state.resolve(model).name
        except BulkheadError as error:
            return _refused(error)
        self._shell.handle(self._pool.expire, name, time.monotonic())
        return self._managed(name)

    def _managed(self, name: str) -> control_frames.Managed:
        model = self._pool.models[name]
        return control_frames.Managed(name, model.state.value, model.pinned)

    async def _crashes(self, name: str) -> control_frames.Crashes | control_frames.Refused:
        try:
            return control_frames.Crashes(await self._read_crashes(name))
        except BulkheadError as error:
            return _refused(error)

    def _report(self, model: str, files: bool) -> control_frames.Report | control_frames.Refused:
        try:
            name = self._pool.state.resolve(model).name if model else ""
        except BulkheadError as error:
            return _refused(error)
        accepting, told = not self._pool.state.shutting_down, self._about() if files else b""
        return control_frames.Report(accepting, self._health(), name, told)


def _refused(error: BulkheadError) -> control_frames.Refused:
    return control_frames.Refused(error.code, error.message, error.param, error.retry_after)
