"""What a running request keeps: of each of its choices, and of its time on one worker."""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import Sequence

from msgspec.structs import replace

from supervisor.wire.frames import (
    Accepted,
    Died,
    Embed,
    Embedded,
    End,
    Failed,
    FromEngine,
    Generate,
    Granted,
    Token,
    Vector,
)
from supervisor.wire.stream import FrameStream

AT_ONCE = 32
"""Choices of one request that a worker is given at the same time: as many as it decodes at once."""

Work = FrameStream[FromEngine]


class Unreachable(Exception):
    """The granted worker goes on refusing connections, or its time is over."""


def choices_at_once(files: int) -> int:
    """`AT_ONCE`, or fewer where a process may open only so many `files`.

    A choice takes two descriptors of its worker and one of ours, so that the 32 requests which run
    on a worker unless configured otherwise take an eighth of its descriptors at most.
    """
    if files == resource.RLIM_INFINITY:
        return AT_ONCE
    return max(1, min(AT_ONCE, files // 512))


class Choice:
    """One choice's request, and what has come of its output."""

    def __init__(self, request: Generate | Embed) -> None:
        self.request = request
        self.emitted: list[int] = []
        self.vectors = 0
        self.echoed = False
        self.ended = False
        self.backlog: deque[FromEngine] = deque()
        """Noted, not yet handed out: what an earlier worker had sent."""
        self.skip = 0
        """Vectors that this worker repeats."""

    def rest(self) -> Generate | Embed:
        """The request for what is still to come."""
        if isinstance(self.request, Embed):
            self.skip = self.vectors
            return self.request
        return replace(self.request, emitted=tuple(self.emitted)) if self.emitted else self.request

    def note(self, frame: FromEngine) -> bool:
        """Keep what a resumption needs; whether the frame is news."""
        match frame:
            case Token():
                self.emitted.append(frame.id)
            case Vector():
                if self.skip:
                    self.skip -= 1
                    return False
                self.vectors += 1
            case Accepted(text=text) if text:
                first, self.echoed = not self.echoed, True
                return first
            case End() | Embedded() | Failed():
                self.ended = True
        return True


class Attempt:
    """The request's time on one worker."""

    def __init__(
        self, granted: Granted, works: dict[int, Work], choices: Sequence[Choice], told: int
    ) -> None:
        """`told` is the request's position as far as the supervisor knows."""
        self.granted = granted
        self.works = works
        """By the choice's number; of those that it was given and that have not ended."""
        self.awaited = max(0, granted.until - told)
        """Tokens that each choice has to make here before `Passed` is told; 0 = nothing is."""
        self._begun_at = told
        self._all = [(choice, len(choice.emitted)) for choice in choices]
        self._given = [self._all[number] for number in works]
        self.going = asyncio.Event()
        """Not set while the output pauses although the worker lives."""
        self.going.set()
        self.faulty = False
        self.told = False
        """Whether the reader knows that it has ended early."""
        self.over: asyncio.Task[Died | None] | None = None
        self.verdict: asyncio.Task[Died] | None = None
        """One inquiry into an early end, however often a reader's patience runs out meanwhile."""
        self.recovery: asyncio.Task[None] | None = None

    async def news(self, seconds: float) -> None:
        """Raises Unreachable once the worker's end is known."""
        assert self.over is not None
        await asyncio.wait([self.over], timeout=seconds)
        self.check()

    @property
    def is_over(self) -> bool:
        """Whether the worker's end is known."""
        return self.over is not None and self.over.done()

    def check(self) -> None:
        """Raises Unreachable when the worker's end is known."""
        if self.is_over:
            raise Unreachable("it is gone")

    @property
    def passed(self) -> bool:
        """Whether each choice that the worker was given at first has what is awaited, or has ended."""
        return all(
            choice.ended or len(choice.emitted) >= start + self.awaited
            for choice, start in self._given
        )

    def position(self) -> int:
        """Where the request stands, for the supervisor. Of several choices some may have made many
        tokens while others made none: what has not passed is not where it had to get."""
        made = sum(len(choice.emitted) - start for choice, start in self._all)
        reached, until = self._begun_at + made, self.granted.until
        return min(reached, until - 1) if self.awaited else max(reached, until)

    def hang_up(self) -> None:
        for work in self.works.values():
            work.close()
