"""From a parsed request to its tokens: a lease, a worker's stream, and what a death means.

`Relay.start` takes a lease and hands the request to the granted worker; the `Generation` it
returns yields frames until exactly one end: an `End` frame or an error of the contract.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Generic, TypeVar

from supervisor.errors import (
    BulkheadError,
    InternalError,
    QueueFull,
    ShuttingDown,
    WorkerCrashed,
    restore,
)
from supervisor.wire.codec import ProtocolError, TornFrame
from supervisor.wire.frames import (
    Acquire,
    Died,
    Embed,
    Embedded,
    End,
    Failed,
    Fault,
    FromEngine,
    Generate,
    Granted,
    Inquire,
    Progress,
    Refused,
    Report,
    ToGateway,
    Token,
    Vector,
)
from supervisor.wire.stream import FrameStream, connect

log = logging.getLogger("bulkhead.gateway")

F = TypeVar("F")

_ANSWER_SECONDS = 10.0
"""Over the hold: how long the supervisor may take to answer before it counts as gone."""
_CAUSE_SECONDS = 2.0
"""Between a worker's EOF and the supervisor's word on it; without one the worker is not dead but
faulty, and must be put down."""
_FAULT_SECONDS = 10.0
_RETRY_SECONDS = 0.02


class Generation:
    """One running request. `model` is the served name, `worker` is `name#generation`."""

    def __init__(
        self, model: str, worker: str, lease: FrameStream[ToGateway], work: FrameStream[FromEngine]
    ) -> None:
        self.model = model
        self.worker = worker
        self._lease = lease
        self._work = work
        self._ended = False
        self._death = asyncio.create_task(self._await_death())
        self._verdict: asyncio.Task[BulkheadError] | None = None
        """One inquiry into an early end, however often a caller's patience runs out meanwhile."""

    async def receive(self) -> Progress | Token | End:
        """The next frame. Raises a BulkheadError when the request can't go on.

        Safe to cancel and call again. Nothing may be asked for after an End or an error.
        """
        while not isinstance(frame := await self._receive(), (Progress, Token, End)):
            continue
        return frame

    async def receive_vector(self) -> Vector | Embedded:
        """As `receive`, of an `Embed`: its vectors, then Embedded."""
        while not isinstance(frame := await self._receive(), (Vector, Embedded)):
            continue
        return frame

    async def _receive(self) -> FromEngine:
        try:
            frame = await self._work.receive()
        except TornFrame as torn:
            raise await self._cause(str(torn)) from None
        except ProtocolError as fault:
            self._lease.send(Fault(str(fault)))
            raise await self._word(_FAULT_SECONDS) from None
        match frame:
            case Failed(code, message, param, retry_after):
                raise restore(code, message, param=param, retry_after=retry_after)
            case None:
                raise await self._cause("the connection closed before the end frame")
            case _:
                return frame

    def close(self) -> None:
        """Give the place back; to a worker that still generates this is a cancel."""
        self._death.cancel()
        if self._verdict is not None:
            self._verdict.cancel()
        self._work.close()
        self._lease.close()

    async def _await_death(self) -> BulkheadError:
        """What the supervisor says about the worker's end. Ends the stream, so that a worker that
        hangs instead of dying can't keep the client."""
        try:
            frame = await self._lease.receive()
        except ProtocolError as error:
            frame = None
            log.error("the supervisor broke the protocol: %s", error)
        self._work.close()
        if isinstance(frame, Died):
            return restore(
                frame.code, frame.message, param=frame.param, retry_after=frame.retry_after
            )
        return _supervisor_gone()

    async def _cause(self, symptom: str) -> BulkheadError:
        """The worker's stream ended early: the supervisor knows why, if the worker has died."""
        if self._verdict is None:
            self._verdict = asyncio.create_task(self._inquire(symptom))
        return await asyncio.shield(self._verdict)

    async def _inquire(self, symptom: str) -> BulkheadError:
        done, _ = await asyncio.wait([self._death], timeout=_CAUSE_SECONDS)
        if not done:
            self._lease.send(Fault(symptom))
        return await self._word(_FAULT_SECONDS)

    async def _word(self, seconds: float) -> BulkheadError:
        done, _ = await asyncio.wait([self._death], timeout=seconds)
        if done:
            return self._death.result()
        return WorkerCrashed(f"The worker {self.worker} stopped answering. Retry the request.")


class _Ahead(Generic[F]):
    """One connection to each socket, opened ahead of the next request, which saves it the way there.

    A worker's socket is its own, so there are as many connections as workers that live.
    """

    def __init__(self, frames: Any) -> None:
        self._frames = frames
        self._open: dict[str, FrameStream[F]] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}

    def take(self, path: str) -> FrameStream[F] | None:
        """The connection, if there is one that nobody has closed. The caller owns it now."""
        stream = self._open.pop(path, None)
        return None if stream is None or stream.ended else stream

    def refill(self, path: str) -> None:
        """Open the next one meanwhile."""
        if path not in self._open and path not in self._opening:
            self._opening[path] = asyncio.create_task(self._connect(path))

    def close(self) -> None:
        for task in self._opening.values():
            task.cancel()
        for stream in self._open.values():
            stream.close()

    async def _connect(self, path: str) -> None:
        for other in [known for known, stream in self._open.items() if stream.ended]:
            del self._open[other]
        try:
            self._open[path] = await connect(path, self._frames)
        except OSError:
            return  # the next request will find out for itself
        finally:
            del self._opening[path]


class Relay:
    """Connects to the supervisor's control socket and to workers, once for each request."""

    def __init__(self, control: str) -> None:
        self._control = control
        self._leases: _Ahead[ToGateway] = _Ahead(ToGateway)
        self._workers: _Ahead[FromEngine] = _Ahead(FromEngine)

    async def start(self, request: Generate | Embed, model: str, hold: float) -> Generation:
        """Wait up to `hold` seconds for a worker and give it the request. Raises BulkheadError.

        Cancelling gives the place back.
        """
        lease = await self._connect()
        try:
            lease.send(Acquire(request.request_id, model, hold))
            granted = await self._answer(lease, hold + _ANSWER_SECONDS)
            if not isinstance(granted, Granted):
                raise InternalError("The supervisor gave an unexpected answer.")
            work = await self._work(granted, lease)
        except BaseException:
            lease.close()
            raise
        try:
            work.send(request)
        except ProtocolError as error:
            work.close()
            lease.close()
            log.error("%s cannot be sent: %s", request.request_id, error)
            raise InternalError("The request could not be passed on to the model.") from None
        # Not before: this request's own frames go first.
        self._leases.refill(self._control)
        self._workers.refill(granted.socket)
        return Generation(granted.model, granted.worker, lease, work)

    async def close(self) -> None:
        """Let go of the connections kept ahead."""
        self._leases.close()
        self._workers.close()

    async def report(self, model: str = "") -> Report:
        """The supervisor's view of the world. Raises BulkheadError, ModelNotFound among them."""
        stream = await self._connect()
        try:
            stream.send(Inquire(model))
            answer = await self._answer(stream, _ANSWER_SECONDS)
        finally:
            stream.close()
        if not isinstance(answer, Report):
            raise InternalError("The supervisor gave an unexpected answer.")
        return answer

    async def _connect(self) -> FrameStream[ToGateway]:
        if (ahead := self._leases.take(self._control)) is not None:
            return ahead
        try:
            return await connect(self._control, ToGateway)
        except OSError:
            raise _supervisor_gone() from None

    async def _answer(self, stream: FrameStream[ToGateway], seconds: float) -> ToGateway:
        try:
            async with asyncio.timeout(seconds):
                answer = await stream.receive()
        except TimeoutError:
            log.error("the supervisor did not answer within %.0f s", seconds)
            raise _supervisor_gone() from None
        except ProtocolError as error:
            log.error("the supervisor broke the protocol: %s", error)
            raise InternalError("The supervisor gave an unreadable answer.") from None
        _raise_refusal(answer)
        assert answer is not None
        return answer

    async def _work(
        self, granted: Granted, lease: FrameStream[ToGateway]
    ) -> FrameStream[FromEngine]:
        """Connect to the granted worker.

        It may have died since, of which the lease tells; a full backlog passes; only a worker that
        goes on refusing is faulty. What this process lacks is not the worker's fault.
        """
        if (ahead := self._workers.take(granted.socket)) is not None:
            return ahead
        deadline = asyncio.get_running_loop().time() + _CAUSE_SECONDS
        while True:
            try:
                return await connect(granted.socket, FromEngine)
            except (BlockingIOError, ConnectionRefusedError, FileNotFoundError) as error:
                symptom = f"it does not accept connections: {error.strerror}"
            except OSError as error:
                log.error("cannot connect to worker %s: %s", granted.worker, error.strerror)
                raise QueueFull(
                    "The server has too many connections open at the moment. Try again shortly."
                ) from None
            if asyncio.get_running_loop().time() > deadline:
                log.warning("worker %s: %s", granted.worker, symptom)
                lease.send(Fault(symptom))
                await self._answer(lease, _FAULT_SECONDS)
                raise InternalError("The supervisor gave an unexpected answer.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_SECONDS):
                    _raise_refusal(await lease.receive())


def _raise_refusal(answer: ToGateway | None) -> None:
    match answer:
        case None:
            raise _supervisor_gone()
        case Refused(code, message, param, retry_after) | Died(code, message, param, retry_after):
            raise restore(code, message, param=param, retry_after=retry_after)


def _supervisor_gone() -> ShuttingDown:
    return ShuttingDown("The server is restarting. Try again shortly.")
