"""One running request: its tokens, whichever workers they come from.

A `Generation` holds a lease and, in each of its lives, one connection a choice to the worker that
was granted. When that worker dies, or has to go, the request returns to its lease with the tokens
that have come so far, and the next worker goes on behind them: to whoever calls `receive` it is a
pause. Frames are noted before they are handed out, so that nothing is told twice or lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from gateway.relay.attempt import AT_ONCE, Attempt, Choice, Unreachable, Work
from supervisor.errors import BulkheadError, InternalError, ShuttingDown, WorkerCrashed, restore
from supervisor.wire.codec import ProtocolError, TornFrame
from supervisor.wire.frames import (
    Accepted,
    Continue,
    Died,
    Embed,
    Embedded,
    End,
    Failed,
    FromEngine,
    Generate,
    Granted,
    Passed,
    Pause,
    Progress,
    Refused,
    Return,
    ToGateway,
    Token,
    Unpause,
    Vector,
    WorkerFault,
)
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.gateway")

ANSWER_SECONDS = 10.0
"""Over the hold: how long the supervisor may take to answer before it counts as gone."""
_CAUSE_SECONDS = 2.0
"""Between a worker's EOF and the supervisor's word on it; without one the worker is not dead but
faulty, and must be put down."""
_FAULT_SECONDS = 10.0
_MERGED_MAX = 256
"""Frames of all choices that may wait unread before their sockets are no longer read."""


class Recovering:
    """What `receive` says when the output pauses until other requests, or another worker, are
    ready for it."""


RECOVERING: Final = Recovering()

Event = Accepted | Progress | Token | End | Recovering
Lease = FrameStream[ToGateway]
News = Callable[[float], Awaitable[None]]
"""Waits for up to so many seconds; raises what it hears of the worker's end."""
Connect = Callable[[Granted, News], Awaitable[Work]]
"""Connects to a granted worker. Raises Unreachable, or what the news raise meanwhile."""


class Interrupted(Exception):
    """The granted worker has died, and the request may return."""

    def __init__(self, died: Died) -> None:
        super().__init__(died.message)
        self.died = died


class Generation:
    """One running request. `model` is the served name, `worker` is `name#generation`, `socket` that
    worker's.

    Each of its choices is a stream of the worker's, `at_once` of them at a time; all hold one lease.
    """

    def __init__(
        self,
        choices: Sequence[Generate | Embed],
        lease: Lease,
        hold: float,
        connect: Connect,
        at_once: int = AT_ONCE,
    ) -> None:
        """`lease` has asked for a place and waits `hold` seconds for each."""
        self.model = self.worker = self.socket = ""
        self.asked = ""
        """The model that was wanted, where `model` is its fallback."""
        self.recoveries = 0
        """How often another worker has gone on with it."""
        self._id = choices[0].request_id
        self._choices = [Choice(request) for request in choices]
        self._given = min(at_once, len(choices))
        """How many choices a worker has been given, the first ones; the others wait for their turn."""
        self._lease = lease
        self._hold = hold
        self._connect = connect
        self._position = 0
        """Tokens of all choices."""
        self._told = 0
        """The position as far as the supervisor knows; with several choices it may be less."""
        self._prompt_tokens = 0
        self._pausing = False
        """Whether the output pauses although its worker lives."""
        self._life: Attempt
        self._merged: asyncio.Queue[tuple[int, Event] | BaseException] = asyncio.Queue(_MERGED_MAX)
        self._pumps: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Wait for a worker and hand it the request. Raises BulkheadError."""
        await self._enter()
        if len(self._choices) > 1:  # a single stream is read as it comes, with no task between
            numbers = range(self._given)
            self._pumps = [asyncio.create_task(self._pump(choice)) for choice in numbers]

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

    async def receive_vector(self) -> Vector | Embedded:
        """As `receive`, of an `Embed`: its vectors, then Embedded."""
        while not isinstance(frame := await self._frame(0), (Vector, Embedded)):
            continue
        return frame

    def close(self) -> None:
        """Give the place back; to a worker that still generates this is a cancel."""
        for pump in self._pumps:
            pump.cancel()
        if hasattr(self, "_life"):
            for task in (self._life.over, self._life.verdict, self._life.recovery):
                if task is not None:
                    task.cancel()
            self._life.hang_up()
        self._lease.close()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────

    async def _pump(self, choice: int) -> None:
        """Carry a choice's frames at the pace of the reader, then those of one that waits. The end of
        the last, or an error, is the last thing that it brings."""
        try:
            while True:
                event = await self._receive(choice)
                await self._merged.put((choice, event))
                if not isinstance(event, End):
                    continue
                if (work := self._life.works.pop(choice, None)) is not None:
                    work.close()
                if self._given == len(self._choices):
                    return
                choice = self._given
                self._given += 1
        except Exception as error:  # noqa: BLE001
            # A bug of ours as well: the reader must not wait for ever.
            await self._merged.put(error)

    async def _receive(self, choice: int) -> Event:
        while True:
            frame = await self._frame(choice)
            if isinstance(frame, (Token, Progress, End, Recovering)):
                return frame
            if isinstance(frame, Accepted) and frame.text:
                return frame

    async def _frame(self, number: int) -> FromEngine | Recovering:
        """The choice's next frame that is news."""
        choice = self._choices[number]
        while True:
            if self._pausing:
                self._pausing = False
                return RECOVERING
            if choice.backlog:
                frame = choice.backlog.popleft()
            else:
                life = self._life
                received, symptom = await self._from_worker(life, number)
                if received is None:
                    if await self._recovers(life, symptom):
                        return RECOVERING
                    continue
                if not self._note(choice, received):
                    continue
                frame = received
            if isinstance(frame, Failed):
                raise restore(
                    frame.code, frame.message, param=frame.param, retry_after=frame.retry_after
                )
            return frame

    async def _from_worker(self, life: Attempt, number: int) -> tuple[FromEngine | None, str]:
        """A frame, or what shows that no more will come."""
        try:
            work = life.works.get(number) or await self._join(life, number)
            frame = await work.receive()
        except (TornFrame, Unreachable) as early:
            return None, str(early)
        except ProtocolError as fault:
            self._blame(life, str(fault))
            return None, str(fault)
        return frame, "the connection closed before the end frame"

    def _note(self, choice: Choice, frame: FromEngine) -> bool:
        if isinstance(frame, Token):
            self._position += 1
        elif isinstance(frame, Accepted):
            self._prompt_tokens = frame.prompt_tokens
        news = choice.note(frame)
        life = self._life
        if life.awaited and life.passed and not isinstance(frame, Failed):
            life.awaited = 0
            self._lease.send(Passed())
            if life.granted.then_pause and not life.is_over and not self._succeeded(frame):
                self._pausing = True
                life.going.clear()
                self._tell_works(Pause())
        return news

    def _succeeded(self, frame: FromEngine) -> bool:
        """Whether this is the last frame of all."""
        return isinstance(frame, (End, Embedded)) and all(each.ended for each in self._choices)

    def _tell_works(self, word: Pause | Continue) -> None:
        for number, work in self._life.works.items():
            if not self._choices[number].ended:
                work.send(word)

    # ── from one worker to the next ──────────────────────────────────────────────────────────────

    async def _enter(self) -> None:
        """Wait for a place and begin a life there. Raises BulkheadError."""
        while True:
            granted = await answer(self._lease, self._hold + ANSWER_SECONDS)
            if not isinstance(granted, Granted):
                raise InternalError("The supervisor gave an unexpected answer.")
            works: dict[int, Work] = {}
            try:
                for number, choice in enumerate(self._choices[: self._given]):
                    if not choice.ended:
                        works[number] = work = await self._reach(granted)
                        work.send(choice.rest())
            except BaseException as error:
                for work in works.values():
                    work.close()
                if not isinstance(error, Interrupted):
                    raise
                self._lease.send(Return(self._told, self._prompt_tokens))
                continue
            self.model, self.worker, self.socket = granted.model, granted.worker, granted.socket
            self.asked = granted.asked
            self._life = Attempt(granted, works, self._choices, self._told)
            self._life.over = asyncio.create_task(self._follow(self._life))
            return

    async def _reach(self, granted: Granted) -> Work:
        """Connect before the life begins. Raises Interrupted, or BulkheadError."""

        async def news(seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    granted_or_raise(await self._lease.receive())

        try:
            return await self._connect(granted, news)
        except Unreachable as error:
            log.warning("worker %s: %s", granted.worker, error)
            self._lease.send(WorkerFault(str(error)))
            await answer(self._lease, _FAULT_SECONDS)
            raise InternalError("The supervisor gave an unexpected answer.") from None

    async def _join(self, life: Attempt, number: int) -> Work:
        """Give the worker one more choice in the middle of its life, but not in a pause. Raises
        Unreachable."""
        work = await self._connect(life.granted, life.news)
        try:
            life.check()
            await life.going.wait()
            life.check()
            work.send(self._choices[number].rest())
        except BaseException as error:
            work.close()
            if isinstance(error, ProtocolError):
                raise unsendable(self._id, error) from None
            raise
        life.works[number] = work
        return work

    async def _follow(self, life: Attempt) -> Died | None:
        """What the supervisor says while the worker lives, until its end; None when the supervisor
        is gone. Ends the streams, so that a worker that hangs instead of dying keeps nobody."""
        died: Died | None = None
        try:
            while (frame := await self._lease.receive()) is not None:
                match frame:
                    case Unpause():
                        life.going.set()
                        self._tell_works(Continue())
                    case Died():
                        died = frame
                        break
        except ProtocolError as error:
            log.error("the supervisor broke the protocol: %s", error)
        if died is not None:
            log.warning(
                "%s was in worker %s when it died, with %d prompt tokens, at token %d",
                self._id,
                life.granted.worker,
                self._prompt_tokens,
                self._position,
            )
            # Its last tokens may still lie in the sockets, and none of them can come again.
            for _ in range(2):
                await asyncio.sleep(0)
        life.going.set()
        life.hang_up()
        if died is not None and died.may_return:
            # Whether anybody reads or not: a client that is slow to read must not lose its answer
            # for it, nor have others wait.
            life.recovery = asyncio.create_task(self._carry_on(life))
            # It may end before anybody asks.
            life.recovery.add_done_callback(lambda task: task.cancelled() or task.exception())
        return died

    async def _recovers(self, life: Attempt, symptom: str) -> bool:
        """The worker's streams have ended early. True the first time that this is asked; otherwise
        returns once the recovery is over. Raises BulkheadError when there is none.

        Whoever gives up waiting gives up neither the inquiry nor the recovery.
        """
        if life.verdict is None:
            life.verdict = asyncio.create_task(self._cause(life, symptom))
        died = await asyncio.shield(life.verdict)
        if not died.may_return:
            raise restore(died.code, died.message, param=died.param, retry_after=died.retry_after)
        assert life.recovery is not None
        if not life.told:
            life.told = True
            return True
        await asyncio.shield(life.recovery)
        return False

    async def _carry_on(self, life: Attempt) -> None:
        """Have another worker go on. Raises BulkheadError."""
        for number, work in life.works.items():
            choice = self._choices[number]
            choice.backlog.extend(frame for frame in work.drain() if self._note(choice, frame))
        self._pausing = False
        self._told = life.position()
        self._lease.send(Return(self._told, self._prompt_tokens))
        await self._enter()
        self.recoveries += 1
        log.info("%s goes on in worker %s at token %d", self._id, self.worker, self._position)

    async def _cause(self, life: Attempt, symptom: str) -> Died:
        """The supervisor knows why, if the worker has died. Raises BulkheadError."""
        assert life.over is not None
        done, _ = await asyncio.wait([life.over], timeout=_CAUSE_SECONDS)
        if not done:
            self._blame(life, symptom)
            done, _ = await asyncio.wait([life.over], timeout=_FAULT_SECONDS)
        if not done:
            worker = life.granted.worker
            raise WorkerCrashed(f"The worker {worker} stopped answering. Retry the request.")
        died = life.over.result()
        if died is None:
            raise supervisor_gone()
        return died

    def _blame(self, life: Attempt, symptom: str) -> None:
        """Tell the supervisor once that the worker is faulty, whatever more follows from it."""
        if not life.faulty:
            life.faulty = True
            self._lease.send(WorkerFault(symptom))


async def answer(stream: Lease, seconds: float) -> ToGateway:
    """What the supervisor says next. Raises what it refuses with, and BulkheadError for silence."""
    try:
        async with asyncio.timeout(seconds):
            frame = await stream.receive()
    except TimeoutError:
        log.error("the supervisor did not answer within %.0f s", seconds)
        raise supervisor_gone() from None
    except ProtocolError as error:
        log.error("the supervisor broke the protocol: %s", error)
        raise InternalError("The supervisor gave an unreadable answer.") from None
    return granted_or_raise(frame)


def granted_or_raise(frame: ToGateway | None) -> ToGateway:
    """Raises BulkheadError for a refusal, Interrupted for a death after which it may return."""
    match frame:
        case None:
            raise supervisor_gone()
        case Died() if frame.may_return:
            raise Interrupted(frame)
        case Refused(code, message, param, retry_after) | Died(code, message, param, retry_after):
            raise restore(code, message, param=param, retry_after=retry_after)
    return frame


def unsendable(request_id: str, error: ProtocolError) -> BulkheadError:
    log.error("%s cannot be sent: %s", request_id, error)
    return InternalError("The request could not be passed on to the model.")


def supervisor_gone() -> BulkheadError:
    return ShuttingDown("The server is restarting. Try again shortly.")
