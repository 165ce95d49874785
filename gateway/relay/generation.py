"""One running request: its tokens, whichever workers they come from.

A `Generation` holds a lease. In each `Attempt` it has one connection a choice to the worker that
was granted. When that worker dies, or has to go, the request returns to its lease with the tokens
that have come so far, and the next worker continues behind them: to whoever calls `receive` it is a
pause. Frames are noted when they arrive, so that none is lost or handed out twice, and what the
request has reached depends on no reader: its place is given back with the last frame, however long
the client takes to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from gateway.relay.attempt import (
    FAULT_SECONDS,
    Attempt,
    ChoiceState,
    WorkerStream,
    WorkerUnreachable,
)
from gateway.relay.control import (
    ANSWER_SECONDS,
    ControlStream,
    WorkerDied,
    raise_refusal,
    receive_answer,
    unexpected_answer,
    unsendable,
)
from supervisor.errors import restore
from supervisor.wire.codec import ProtocolError, TornFrame
from supervisor.wire.control_frames import (
    Died,
    Granted,
    Holds,
    Passed,
    Places,
    Return,
    WorkerFault,
)
from supervisor.wire.frames import (
    Accepted,
    Embed,
    Embedded,
    End,
    Failed,
    FromEngine,
    Generate,
    Progress,
    PromptLogprobs,
    Token,
    Vector,
)
from supervisor.wire.stream import UNREAD_FRAMES

log = logging.getLogger("bulkhead.gateway")

_MERGED_MAX = UNREAD_FRAMES
"""Frames of several choices that may wait unread before they stay in their streams, which hold as
many together."""
_UNREAD_LEAST = 2**10
"""Frames of one choice that may, however many there are."""
RECOVERY_SECONDS = 3600.0
"""How long the supervisor may take to find another worker after a death. It refuses those whose
turn cannot come; the others wait for as long as all do that go before them."""


class OutputPaused:
    """What `receive` returns when the output pauses until another worker is ready."""


PAUSED: Final = OutputPaused()

Event = Accepted | Progress | PromptLogprobs | Token | End | OutputPaused
WaitForEnd = Callable[[float], Awaitable[None]]
"""Waits up to so many seconds, and raises what becomes known of the worker's end meanwhile."""
Connect = Callable[[Granted, WaitForEnd], Awaitable[WorkerStream]]
"""Connects to a granted worker. Raises WorkerUnreachable, and what the wait for its end raises."""


class Generation:
    """One running request. `model` is the served name, `worker` is `name#generation`, `socket` that
    worker's.

    Each of its choices has a stream of the worker's, at most `at_once` of them at a time and no
    more than have a place, under one lease.
    """

    def __init__(
        self,
        choices: Sequence[Generate | Embed],
        lease: ControlStream,
        hold: float,
        connect: Connect,
        at_once: int,
    ) -> None:
        """`lease` has asked for a place and waits `hold` seconds for each."""
        self.model = self.worker = self.socket = ""
        self.asked = ""
        """The model that was wanted, where `model` is its fallback."""
        self.recoveries = 0
        """How often another worker has gone on with it."""
        self._id = choices[0].request_id
        self._choices = [ChoiceState(request) for request in choices]
        self._at_once = min(at_once, len(choices))
        self._given = 0
        """How many choices a worker has been given or is about to be, the first ones; the others
        wait."""
        self._lease = lease
        self._hold = hold
        self._returned = False
        """Whether it has asked for another place."""
        self._longer_hold = 0.0
        """Seconds that it waits from its next death on; 0 = as before."""
        self._connect = connect
        self.position = 0
        """Tokens of all choices."""
        self._known_position = 0
        """The position as far as the supervisor knows; with several choices it may be less."""
        self.prompt_tokens = 0
        """Of one choice."""
        self._attempt: Attempt
        self._merged: asyncio.Queue[tuple[int, Event] | BaseException] = asyncio.Queue(_MERGED_MAX)
        self._ahead: tuple[int, Event] | BaseException | None = None
        """What comes next of that, if it has been looked at."""
        self._pumps: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Wait for a worker and hand it the request. Raises BulkheadError."""
        await self._start_attempt()
        if len(self._choices) > 1:  # a single stream is read as it comes, with no task between
            self._pumps = [asyncio.create_task(self._pump(each)) for each in range(self._given)]
            self._use_places(self._attempt.places)  # which may be more by now

    def wait_longer(self, hold: float) -> None:
        """After each further death wait `hold` seconds for a place, if that is longer."""
        self._longer_hold = max(self._hold, hold)

    async def receive(self) -> tuple[int, Event]:
        """The next frame of any choice, with the choice's number. Raises BulkheadError when the
        request can't go on, which ends all choices.

        Safe to cancel and call again. Nothing may be asked for after the End of every choice, or
        after an error.
        """
        if not self._pumps:
            return 0, await self._receive_only()
        item, self._ahead = self._ahead or await self._merged.get(), None
        if isinstance(item, BaseException):
            raise item
        return item

    def take(self) -> tuple[int, Token] | None:
        """As `receive`, if the next frame is a token that is there already; None = ask that."""
        if not self._pumps:
            token = self._take_only()
            return None if token is None else (0, token)
        if self._ahead is None:
            if self._merged.empty():
                return None
            self._ahead = self._merged.get_nowait()
        if isinstance(self._ahead, BaseException) or not isinstance(self._ahead[1], Token):
            return None
        choice, token = self._ahead[0], self._ahead[1]
        self._ahead = None
        return choice, token

    async def receive_vector(self) -> Vector | Embedded:
        """As `receive`, of an `Embed`: its vectors, then Embedded."""
        while not isinstance(frame := await self._frame(0), (Vector, Embedded)):
            continue
        return frame

    def close(self) -> None:
        """Give the place back; to a worker that still generates this is a cancel."""
        for pump in self._pumps:
            pump.cancel()
        if hasattr(self, "_attempt"):
            self._attempt.close()
        for choice in self._choices:
            choice.let_go()
        self._lease.close()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────

    async def _pump(self, choice: int) -> None:
        """Merge a choice's frames at the reader's pace, then those of one that waits for its turn.

        The last item is an error, or the end of the last choice.
        """
        try:
            while True:
                event = await self._receive(choice)
                await self._merged.put((choice, event))
                if not isinstance(event, End):
                    continue
                if (stream := self._attempt.streams.pop(choice, None)) is not None:
                    stream.close()
                self._tell_places()
                if self._given == len(self._choices):
                    return
                choice = self._given
                self._given += 1
        except Exception as error:  # noqa: BLE001
            # A bug of ours as well: the reader must not wait for ever.
            await self._merged.put(error)

    def _tell_places(self) -> None:
        """A choice has ended: the others may have its place, unless fewer are allowed by now."""
        attempt, left = self._attempt, sum(not choice.ended for choice in self._choices)
        attempt.look_for_place()
        if left and not attempt.has_ended:
            most = min(attempt.places, self._at_once, left)
            self._lease.send(Holds(max(attempt.running, most), left))

    def _use_places(self, places: int) -> None:
        """So many choices may be on the worker at once from now on."""
        self._attempt.places = places
        self._attempt.look_for_place()
        waiting = range(self._given, len(self._choices))
        alive = sum(not pump.done() for pump in self._pumps)
        for number in waiting[: max(0, min(places, self._at_once) - alive)]:
            self._given += 1
            self._pumps.append(asyncio.create_task(self._pump(number)))

    async def _receive(self, choice: int) -> Event:
        while True:
            frame = await self._frame(choice)
            if isinstance(frame, (Token, Accepted, Progress, PromptLogprobs, End, OutputPaused)):
                return frame

    def _take_only(self) -> Token | None:
        """The only choice's next frame, if it is a token that is there already."""
        stream = self._attempt.streams.get(0)
        if stream is None or self._choices[0].backlog:
            return None
        return stream.take(Token)

    async def _receive_only(self) -> Event:
        """As `_receive`, of the only choice. Nearly every wait is for a token of a worker that
        lives, and takes no more than this."""
        stream = self._attempt.streams.get(0)
        if stream is not None and stream.is_empty and not self._choices[0].backlog:
            await stream.arrival()
            if (token := self._take_only()) is not None:
                return token
        return await self._receive(0)

    async def _frame(self, number: int) -> FromEngine | OutputPaused:
        """The choice's next frame that repeats no earlier one."""
        choice = self._choices[number]
        while True:
            if choice.backlog:
                frame = choice.backlog.popleft()
            else:
                attempt = self._attempt
                received, symptom = await self._from_worker(attempt, number)
                if received is None:
                    if await self._wait_for_recovery(attempt, symptom):
                        return PAUSED
                    continue
                frame = received
            if isinstance(frame, Failed):
                raise restore(
                    frame.code, frame.message, param=frame.param, retry_after=frame.retry_after
                )
            return frame

    async def _from_worker(self, attempt: Attempt, number: int) -> tuple[FromEngine | None, str]:
        """A frame; or None and the symptom that no more will come."""
        try:
            stream = attempt.streams.get(number) or await self._give_choice(attempt, number)
            frame = await stream.receive()
        except (TornFrame, WorkerUnreachable) as early:
            return None, str(early)
        except ProtocolError as fault:
            attempt.report_fault(str(fault))
            return None, str(fault)
        return frame, "the connection closed before the end frame"

    def _note(self, attempt: Attempt, choice: ChoiceState, frame: FromEngine) -> FromEngine | None:
        """As `ChoiceState.note`, when a frame arrives. Tell the supervisor when all choices have
        passed, and give the place back when all have ended."""
        if isinstance(frame, Token):
            self.position += 1
        elif isinstance(frame, Accepted):
            self.prompt_tokens = frame.prompt_tokens
        new = choice.note(frame)
        if attempt.awaited and attempt.passed and not isinstance(frame, Failed):
            attempt.awaited = 0
            self._lease.send(Passed())
        if choice.ended and self._is_complete:
            self._lease.finish()
        return new

    @property
    def _is_complete(self) -> bool:
        """Whether the last frame of every choice has come."""
        return all(each.ended for each in self._choices)

    def _give(self, attempt: Attempt, number: int, stream: WorkerStream) -> None:
        """Send what is left of the choice. Raises ProtocolError where it is too much for a
        frame."""
        choice = self._choices[number]
        attempt.streams[number] = stream
        stream.unread_frames = max(_UNREAD_LEAST, UNREAD_FRAMES // self._at_once)
        stream.note_arrivals(partial(self._note, attempt, choice))
        stream.send(choice.remaining())

    def _keep(self, attempt: Attempt) -> None:
        """The attempt has ended: keep what it has brought and nobody has received."""
        for number, stream in attempt.streams.items():
            self._choices[number].backlog.extend(stream.drain())
        self._known_position = attempt.position()

    # ── from one worker to the next ──────────────────────────────────────────────────────────────

    async def _start_attempt(self) -> None:
        """Wait for a worker and give it what is left of the choices. Raises BulkheadError."""
        while True:
            wait = RECOVERY_SECONDS if self._returned else self._hold + ANSWER_SECONDS
            granted = await receive_answer(self._lease, wait)
            if not isinstance(granted, Granted):
                raise unexpected_answer()
            places = min(self._at_once, granted.places or len(self._choices))
            begun = range(self._given or places)
            given = [number for number in begun if not self._choices[number].ended][:places]
            attempt = Attempt(self._lease, granted, given, self._choices, self._known_position)
            try:
                for number in given:
                    self._give(attempt, number, await self._connect_granted(attempt))
                self._given = self._given or len(given)
            except BaseException as error:
                attempt.close_streams()
                if not isinstance(error, WorkerDied):
                    raise
                self._keep(attempt)
                self._return()
                continue
            self.model, self.worker, self.socket = granted.model, granted.worker, granted.socket
            self.asked = granted.asked
            attempt.end = asyncio.create_task(self._watch_lease(attempt))
            attempt.end.add_done_callback(attempt.look_for_place)
            self._attempt = attempt
            if self._pumps:
                self._use_places(attempt.places)
            return

    def _return(self) -> None:
        """Ask for another place."""
        self._returned = True
        self._lease.send(Return(self._known_position, self.prompt_tokens, self._longer_hold))

    async def _connect_granted(self, attempt: Attempt) -> WorkerStream:
        """Connect before the attempt begins; it is told if it may have other places meanwhile.
        Raises WorkerDied, or BulkheadError."""

        async def wait_for_end(seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while isinstance(frame := raise_refusal(await self._lease.receive()), Places):
                        attempt.places = frame.places

        granted = attempt.granted
        try:
            return await self._connect(granted, wait_for_end)
        except WorkerUnreachable as error:
            log.warning("worker %s: %s", granted.worker, error)
            self._lease.send(WorkerFault(str(error)))
            while isinstance(await receive_answer(self._lease, FAULT_SECONDS), Places):
                continue  # they crossed the word on the fault
            raise unexpected_answer() from None

    async def _give_choice(self, attempt: Attempt, number: int) -> WorkerStream:
        """Give the worker one more choice while it runs others, once that has a place. Raises
        WorkerUnreachable."""
        async with attempt.place():
            stream = await self._connect(attempt.granted, attempt.wait_for_end)
            try:
                attempt.raise_if_ended()
                self._give(attempt, number, stream)
            except BaseException as error:
                stream.close()
                if isinstance(error, ProtocolError):
                    raise unsendable(self._id, error) from None
                raise
        return stream

    async def _watch_lease(self, attempt: Attempt) -> Died | None:
        """Wait for the worker's end, which is returned; None when the supervisor is gone, or the
        output is complete.

        Closes the streams, so that nobody waits for a worker that hangs instead of dying, and
        starts the recovery if the request may return.
        """
        died: Died | None = None
        try:
            while (frame := await self._lease.receive()) is not None:
                match frame:
                    case Places(places):
                        self._use_places(places)
                    case Died():
                        died = frame
                        break
        except ProtocolError as error:
            log.error("the supervisor broke the protocol: %s", error)
        if died is not None:
            log.warning(
                "%s was in worker %s when it died, with %d prompt tokens, at token %d",
                self._id,
                attempt.granted.worker,
                self.prompt_tokens,
                self.position,
            )
            # Its last tokens may still lie in the sockets, and none of them can come again.
            for _ in range(2):
                await asyncio.sleep(0)
        attempt.close_streams()
        if self._is_complete:
            return None
        if died is not None and died.may_return:
            # Whether anybody reads or not: a client that is slow to read must not lose its answer
            # for it, nor have others wait.
            attempt.recovery = asyncio.create_task(self._recover(attempt))
            # It may fail before anybody asks.
            attempt.recovery.add_done_callback(lambda task: task.cancelled() or task.exception())
        return died

    async def _wait_for_recovery(self, attempt: Attempt, symptom: str) -> bool:
        """The worker's streams have ended early. The first call returns True once the request is
        known to return: the output pauses. Later ones return False once the recovery is over.

        Raises BulkheadError when there is none. Cancelling a call cancels neither the inquiry nor
        the recovery.
        """
        if attempt.cause is None:
            attempt.cause = asyncio.create_task(attempt.find_cause(symptom))
        died = await asyncio.shield(attempt.cause)
        if not died.may_return:
            raise restore(died.code, died.message, param=died.param, retry_after=died.retry_after)
        assert attempt.recovery is not None
        if not attempt.pause_reported:
            attempt.pause_reported = True
            return True
        await asyncio.shield(attempt.recovery)
        return False

    async def _recover(self, attempt: Attempt) -> None:
        """Have another worker go on. Raises BulkheadError."""
        self._keep(attempt)
        self._return()
        await self._start_attempt()
        self.recoveries += 1
        log.info("%s goes on in worker %s at token %d", self._id, self.worker, self.position)
