"""One request's place on a model, from its coming to its end, as the scheduler sees it.

Plain data; the other modules of this room change it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from supervisor.errors import BulkheadError
from supervisor.scheduler.death import Fault


class Purpose(enum.Enum):
    """What a lease is for."""

    REQUEST = enum.auto()
    LOAD = enum.auto()
    """A person wants the model loaded and no place on it."""


class Suspicion(enum.Enum):
    """Whether a request may have killed its last worker."""

    CLEAR = enum.auto()
    SUSPECT = enum.auto()
    """Something points at it, and it waits to be the only one on trial."""
    ON_PROBATION = enum.auto()
    """It is on trial: all others in its worker, if there are any, have passed the places of their
    deaths, and it has not yet."""


@dataclass(slots=True)
class Lease:
    """One request's place: waiting, granted, or expected to return to the queue."""

    id: int
    request_id: str
    deadline: float
    """When waiting ends, monotonic seconds."""
    purpose: Purpose = Purpose.REQUEST
    hold: float = 0.0
    """Seconds that it waits for each of its places."""
    digest: bytes = b""
    """Equal requests have equal ones."""
    asked: str = ""
    """The model it wanted, where its fallback serves it."""
    keep_alive: float | None = None
    """What it says of `Model.keep_alive`, until that is noted; None = nothing."""
    places: int = 1
    """Choices of it that have not ended, each of which takes a place."""
    at_once: int = 0
    """How many of them it can use at a time, 0 = all."""
    allowed: int = 0
    """How many it may have on the worker, while it is granted."""
    held: int = 0
    """How many it may still have there: more than `allowed` until some have ended."""
    suspicion: Suspicion = Suspicion.CLEAR
    position: int = 0
    """Tokens of its output when last heard of."""
    start: int = 0
    """Tokens that it had when it got its place."""
    until: int = 0
    """Tokens at which it is past the place of its last death."""
    awaited: bool = False
    """Whether it has a place again after a death, and is not past that yet."""
    error: BulkheadError | None = None
    """What ended its last worker: what it is told if it can't go on. None = it had no worker yet,
    or has it still."""
    unproductive: int = 0
    """Interruptions since its last new token."""
    interruptions: int = 0
    """In all."""
    deaths: int = 0
    """Those that may have been the fault of somebody in the worker."""
    stuck: int = 0
    """As many of them as came since it was last past the place of one."""
    accused_among: frozenset[int] = frozenset()
    """All that were in the worker when it died as the only one on trial, and not alone."""

    @property
    def wants(self) -> int:
        """Places that it can use now."""
        return min(self.places, self.at_once or self.places)


@dataclass(slots=True)
class UndecidedDeath:
    """A worker has died, and what that means for those who were in it is decided once all of them
    have returned, or will not, and the cause is known."""

    inside: list[Lease]
    """All of them, also those who have left since."""
    sequences: int
    """Places that they had, of which one request may have had several."""
    fault: Fault | None = None
    """None until the process is reaped."""
    lowers: bool = False
    """Whether fewer may run at once since then."""
