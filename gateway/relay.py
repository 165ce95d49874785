"""From a parsed request to its tokens: a lease, a worker's stream, and what a death means.

`Relay.start` takes a lease and hands the request to the granted worker; the `Generation` it
returns yields frames until exactly one end: an `End` frame of every choice, or an error of the
contract.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from gateway.ahead import Ahead
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
    Accepted,
    Acquire,
    Action,
    AskCrashes,
    Crashes,
    Died,
    Embed,
    Embedded,
    End,
    Failed,
    Fault,
    FromEngine,
    Generate,
    Granted,
    Happened,
    Inquire,
    Manage,
    Managed,
    Progress,
    Refused,
    Report,
    ToGateway,
    Token,
    Vector,
    Watch,
)
from supervisor.wire.stream import FrameStream, connect

log = logging.getLogger("bulkhead.gateway")

_ANSWER_SECONDS = 10.0
"""Over the hold: how long the supervisor may take to answer before it counts as gone."""
_CAUSE_SECONDS = 2.0
"""Between a worker's EOF and the supervisor's word on it; without one the worker is not dead but
faulty, and must be put down."""
_FAULT_SECONDS = 10.0
_RETRY_SECONDS = 0.02
_MERGED_MAX = 256
"""Frames of all choices that may wait unread before their sockets are no longer read."""


Event = Accepted | Progress | Token | End


class Generation:
    """One running request. `model` is the served name, `worker` is `name#generation`.

    Each of its choices is a stream of the worker's; all of them hold one lease.
    """

    def __init__(
        self,
        request_id: str,
        model: str,
        worker: str,
        lease: FrameStream[ToGateway],
        works: Sequence[FrameStream[FromEngine]],
    ) -> None:
        self.model = model
        self.worker = worker
        self._request_id = request_id
        self._prompt_tokens = 0
        self._lease = lease
        self._works = works
        self._faulty = False
        self._death = asyncio.create_task(self._await_death())
        self._verdict: asyncio.Task[BulkheadError] | None = None
        """One inquiry into an early end, however often a caller's patience runs out meanwhile."""
        self._merged: asyncio.Queue[tuple[int, Event] | BaseException] = asyncio.Queue(_MERGED_MAX)
        self._pumps: list[asyncio.Task[None]] = []
        if len(works) > 1:  # a single stream is read as it comes, with no task between
            self._pumps = [asyncio.create_task(self._pump(choice)) for choice in range(len(works))]

    async def receive(self) -> tuple[int, Event]:
        """The next frame of any choice, with the choice's number. An `Accepted` only if it has a
        text. Raises a BulkheadError when the request can't go on: of all choices at once.

        Safe to cancel and call again. Nothing may be asked for after the End of every choice, or
        after an error.
        """
        if not self._pumps:
            return 0, await self._receive(0)
        item = await self._merged.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def _pump(self, choice: int) -> None:
        """One task a choice carries its frames, at the pace of the reader. Its end or its error is
        the last thing it brings."""
        try:
            while True:
                frame = await self._receive(choice)
                await self._merged.put((choice, frame))
                if isinstance(frame, End):
                    return
        except Exception as error:  # noqa: BLE001
            # A bug of ours as well: the reader must not wait for ever.
            await self._merged.put(error)

    async def receive_vector(self) -> Vector | Embedded:
        """As `receive`, of an `Embed`: its vectors, then Embedded."""
        while not isinstance(frame := await self._frame(0), (Vector, Embedded)):
            continue
        return frame

    async def _receive(self, choice: int) -> Event:
        while True:
            frame = await self._frame(choice)
            if isinstance(frame, (Token, Progress, End)):
                return frame
            if isinstance(frame, Accepted) and frame.text:
                return frame

    async def _frame(self, choice: int) -> FromEngine:
        try:
            frame = await self._works[choice].receive()
        except TornFrame as torn:
            raise await self._cause(str(torn)) from None
        except ProtocolError as fault:
            self._blame(str(fault))
            raise await self._word(_FAULT_SECONDS) from None
        match frame:
            case Failed(code, message, param, retry_after):
                raise restore(code, message, param=param, retry_after=retry_after)
            case None:
                raise await self._cause("the connection closed before the end frame")
            case Accepted(prompt_tokens):
                self._prompt_tokens += prompt_tokens
        return frame

    def close(self) -> None:
        """Give the place back; to a worker that still generates this is a cancel."""
        self._death.cancel()
        if self._verdict is not None:
            self._verdict.cancel()
        for pump in self._pumps:
            pump.cancel()
        self._hang_up()
        self._lease.close()

    def _hang_up(self) -> None:
        for work in self._works:
            work.close()

    def _blame(self, symptom: str) -> None:
        """Tell the supervisor once that the worker is faulty, whatever more follows from it."""
        if not self._faulty:
            self._faulty = True
            self._lease.send(Fault(symptom))

    async def _await_death(self) -> BulkheadError:
        """What the supervisor says about the worker's end. Ends the stream, so that a worker that
        hangs instead of dying can't keep the client."""
        try:
            frame = await self._lease.receive()
        except ProtocolError as error:
            frame = None
            log.error("the supervisor broke the protocol: %s", error)
        self._hang_up()
        if isinstance(frame, Died):
            log.warning(
                "%s was in worker %s when it died, with %d prompt tokens",
                self._request_id,
                self.worker,
                self._prompt_tokens,
            )
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
            self._blame(symptom)
        return await self._word(_FAULT_SECONDS)

    async def _word(self, seconds: float) -> BulkheadError:
        done, _ = await asyncio.wait([self._death], timeout=seconds)
        if done:
            return self._death.result()
        return WorkerCrashed(f"The worker {self.worker} stopped answering. Retry the request.")


class Relay:
    """Connects to the supervisor's control socket and to workers, anew for each request."""

    def __init__(self, control: str) -> None:
        self._control = control
        self._leases: Ahead[ToGateway] = Ahead(ToGateway)
        self._workers: Ahead[FromEngine] = Ahead(FromEngine)

    async def start(
        self, request: Sequence[Generate] | Generate | Embed, model: str, hold: float
    ) -> Generation:
        """Wait up to `hold` seconds for a worker and give it the request, which may have several
        choices. Raises BulkheadError.

        One lease holds them all, for which the first one's id stands; each has a connection of its
        own to the worker. Cancelling gives the place back.
        """
        choices = (request,) if isinstance(request, Generate | Embed) else request
        works: list[FrameStream[FromEngine]] = []
        lease = await self._connect()
        try:
            lease.send(Acquire(choices[0].request_id, model, hold))
            granted = await self._answer(lease, hold + _ANSWER_SECONDS)
            if not isinstance(granted, Granted):
                raise InternalError("The supervisor gave an unexpected answer.")
            for choice in choices:
                works.append(work := await self._work(granted, lease))
                work.send(choice)
        except BaseException as error:
            for work in works:
                work.close()
            lease.close()
            if isinstance(error, ProtocolError):
                log.error("%s cannot be sent: %s", choices[0].request_id, error)
                raise InternalError("The request could not be passed on to the model.") from None
            raise
        # Not before: this request's own frames go first.
        self._leases.refill(self._control)
        self._workers.refill(granted.socket)
        return Generation(choices[0].request_id, granted.model, granted.worker, lease, works)

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

    async def manage(self, request_id: str, action: Action, model: str, hold: float) -> Managed:
        """Load, unload, pin or unpin by hand; only a load waits, up to `hold` seconds. Raises
        BulkheadError. Cancelling gives the wait up, and cancels no load."""
        stream = await self._connect()
        try:
            stream.send(Manage(request_id, action, model, hold))
            answer = await self._answer(stream, hold + _ANSWER_SECONDS)
        finally:
            stream.close()
        if not isinstance(answer, Managed):
            raise InternalError("The supervisor gave an unexpected answer.")
        return answer

    async def crashes(self, name: str = "") -> bytes:
        """JSON: the crash report with that id, or the list of all. Raises BulkheadError."""
        stream = await self._connect()
        try:
            stream.send(AskCrashes(name))
            answer = await self._answer(stream, _ANSWER_SECONDS)
        finally:
            stream.close()
        if not isinstance(answer, Crashes):
            raise InternalError("The supervisor gave an unexpected answer.")
        return answer.body

    async def watch(self) -> FrameStream[ToGateway]:
        """A stream of `Happened`, which the caller closes: of all that happens from now on. Raises
        BulkheadError."""
        stream = await self._connect()
        try:
            stream.send(Watch())
            if not isinstance(await self._answer(stream, _ANSWER_SECONDS), Happened):
                raise InternalError("The supervisor gave an unexpected answer.")
        except BaseException:
            stream.close()
            raise
        return stream

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
