"""What a running request keeps: of each of its choices, and of its time on one worker."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections import deque
from collections.abc import AsyncIterator, Sequence

from msgspec.structs import replace

from gateway.relay.control import ControlStream, supervisor_gone
from supervisor.errors import WorkerCrashed
from supervisor.wire.control_frames import Died, Granted, WorkerFault
from supervisor.wire.frames import (
    Accepted,
    Embed,
    Embedded,
    End,
    Failed,
    FromEngine,
    Generate,
    PromptLogprobs,
    Text,
    Token,
    Vector,
)
from supervisor.wire.stream import FrameStream

AT_ONCE = 64
"""Choices of one request that a worker is given at the same time, if it has so many places: as many
as it decodes at once unless its `max_concurrency` is configured."""
FAULT_SECONDS = 10.0
"""How long the supervisor may take to stop a worker that was reported as faulty."""
_CAUSE_SECONDS = 2.0
"""Between a worker's EOF and the supervisor's word on it. Without one the worker is not dead but
faulty, and has to be reported."""

WorkerStream = FrameStream[FromEngine]


class WorkerUnreachable(Exception):
    """The granted worker goes on refusing connections, or its end is known."""


def choices_at_once(files: int) -> int:
    """`AT_ONCE`, or fewer where a process may open only so many `files`.

    A choice takes two descriptors of its worker and one of ours: of the worker's no request takes
    more than a 128th.
    """
    if files == resource.RLIM_INFINITY:
        return AT_ONCE
    return max(1, min(AT_ONCE, files // 256))


class ChoiceState:
    """One choice's request, and what has come of its output."""

    def __init__(self, request: Generate | Embed) -> None:
        self.request = request
        self.emitted: list[int] = []
        self.vectors = 0
        self.echoed = False
        self.scored = 0
        """Tokens of the prompt whose log probabilities have come."""
        self.ended = False
        self.backlog: deque[FromEngine] = deque()
        """Frames of an earlier worker that are not yet handed out."""
        self.skip = 0
        """Vectors that the present worker sends again."""

    def remaining(self) -> Generate | Embed:
        """The request for what is still to come."""
        if isinstance(self.request, Embed):
            self.skip = self.vectors
            return self.request
        if not (self.emitted or self.scored):
            return self.request
        return replace(self.request, emitted=tuple(self.emitted), scored=self.scored)

    def let_go(self) -> None:
        """Nothing more is asked of it: the request's content, which may be large, need not wait
        until the collector finds those who refer to it."""
        if isinstance(self.request, Embed):
            self.request = replace(self.request, inputs=())
        else:
            self.request = replace(self.request, prompt=Text(""))

    def note(self, frame: FromEngine) -> FromEngine | None:
        """Keep what a resumption needs. Returns what is new in the frame, None = nothing: a worker
        that goes on with a request repeats its first text and vectors."""
        match frame:
            case Token():
                self.emitted.append(frame.id)
            case Vector():
                if self.skip:
                    self.skip -= 1
                    return None
                self.vectors += 1
            case PromptLogprobs():
                self.scored = frame.start + len(frame.tokens)
            case Accepted(text=text) if text:
                if self.echoed:
                    return replace(frame, text="")
                self.echoed = True
            case End() | Embedded() | Failed():
                self.ended = True
        return frame


class Attempt:
    """The request's time on one worker: its connections there, and what is known of their end."""

    def __init__(
        self,
        lease: ControlStream,
        granted: Granted,
        given: Sequence[int],
        choices: Sequence[ChoiceState],
        start: int,
    ) -> None:
        """`given` are the numbers of the choices that the worker is given at first. `start` is the
        request's position, in tokens, as far as the supervisor knows."""
        self.granted = granted
        self.streams: dict[int, WorkerStream] = {}
        """By the choice's number; of the choices that the worker was given and that run."""
        self.places = granted.places or len(choices)
        """Choices that may be on the worker at once."""
        self._place_freed = asyncio.Event()
        self._coming = 0
        """Choices that have a place and no connection yet."""
        self.awaited = max(0, granted.until - start)
        """Tokens that each choice has to make here before `Passed` is sent; 0 = nothing is sent."""
        self.pause_reported = False
        """Whether the reader knows that the output pauses because this attempt has ended."""
        self.end: asyncio.Task[Died | None]
        """Set by the owner, which watches the lease. Done once the worker's end is known; a result
        of None: the supervisor is gone."""
        self.cause: asyncio.Task[Died] | None = None
        """One inquiry into an early end, however many readers give up waiting for it."""
        self.recovery: asyncio.Task[None] | None = None
        self._lease = lease
        self._start = start
        self._choices = [(choice, len(choice.emitted)) for choice in choices]
        """With the tokens that each had when the attempt began."""
        self._given = [self._choices[number] for number in given]
        self._fault_reported = False

    @property
    def running(self) -> int:
        """Choices that have a place on the worker."""
        given = sum(not self._choices[number][0].ended for number in self.streams)
        return given + self._coming

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait until one more choice may be on the worker. It counts as there from then on, and
        from the end of the context by its stream, if it has one."""
        while self.running >= self.places and not self.has_ended:
            self._place_freed.clear()
            await self._place_freed.wait()
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self.look_for_place()

    def look_for_place(self, _: object = None) -> None:
        """A choice has ended, more are allowed, or the worker is gone: who waits looks again."""
        self._place_freed.set()

    async def wait_for_end(self, seconds: float) -> None:
        """Wait up to so long. Raises WorkerUnreachable once the worker's end is known."""
        await asyncio.wait([self.end], timeout=seconds)
        self.raise_if_ended()

    @property
    def has_ended(self) -> bool:
        """Whether the worker's end is known."""
        return self.end.done()

    def raise_if_ended(self) -> None:
        """Raises WorkerUnreachable when the worker's end is known."""
        if self.has_ended:
            raise WorkerUnreachable("it is gone")

    @property
    def passed(self) -> bool:
        """Whether each choice that the worker was given at first has ended or has made the tokens
        that are awaited."""
        return all(
            choice.ended or len(choice.emitted) >= start + self.awaited
            for choice, start in self._given
        )

    def position(self) -> int:
        """Where the request stands, in tokens, for the supervisor.

        Of several choices some may have made many tokens while others made none. So a request that
        has not passed stands before the position that it had to reach, whatever the sum says.
        """
        made = sum(len(choice.emitted) - start for choice, start in self._choices)
        reached, until = self._start + made, self.granted.until
        return min(reached, until - 1) if self.awaited else max(reached, until)

    def report_fault(self, symptom: str) -> None:
        """Tell the supervisor that the worker is faulty, the first time that this is called."""
        if not self._fault_reported:
            self._fault_reported = True
            self._lease.send(WorkerFault(symptom))

    async def find_cause(self, symptom: str) -> Died:
        """Why the streams have ended early; a worker that lives is reported as faulty.

        Raises WorkerCrashed when the supervisor gives no cause, ShuttingDown when it is gone.
        """
        done, _ = await asyncio.wait([self.end], timeout=_CAUSE_SECONDS)
        if not done:
            self.report_fault(symptom)
            done, _ = await asyncio.wait([self.end], timeout=FAULT_SECONDS)
        if not done:
            worker = self.granted.worker
            raise WorkerCrashed(f"The worker {worker} stopped answering. Retry the request.")
        died = self.end.result()
        if died is None:
            raise supervisor_gone()
        return died

    def close_streams(self) -> None:
        for stream in self.streams.values():
            stream.close()

    def close(self) -> None:
        for task in (self.end, self.cause, self.recovery):
            if task is not None:
                task.cancel()
        self.close_streams()
