"""What the pool asks to be done, in order. Plain values, so that a test can compare them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from supervisor.errors import BulkheadError
from supervisor.scheduler.model import LearnedLimit


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for this incarnation; then call `started` or `exited`."""

    model: str
    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Send SIGTERM, or SIGKILL, to this incarnation; with `stacks` it is to say first what it is
    doing."""

    model: str
    generation: int
    kill: bool
    stacks: bool = False


@dataclass(frozen=True, slots=True)
class Shrink:
    """Tell this incarnation to give back what it only keeps for later: its caches."""

    model: str
    generation: int


@dataclass(frozen=True, slots=True)
class Lend:
    """This incarnation may hold so many bytes more. They are charged."""

    model: str
    generation: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Recall:
    """This incarnation is to give back so many bytes of its loan, idle ones; with `park` also those
    of its youngest live sequences. `repaid` with this `number` is awaited."""

    model: str
    generation: int
    number: int
    bytes: int
    park: bool = False


@dataclass(frozen=True, slots=True)
class LimitSequences:
    """At most so many sequences decode at once in this incarnation; 0 = as configured."""

    model: str
    generation: int
    sequences: int


@dataclass(frozen=True, slots=True)
class MayPrefill:
    """This incarnation may go on with heavy prefills, or is to stop and `wants_prefill` is
    awaited."""

    model: str
    generation: int
    allowed: bool


@dataclass(frozen=True, slots=True)
class LeaseEffect:
    """What somebody who holds a lease is told."""

    lease: int


@dataclass(frozen=True, slots=True)
class Grant(LeaseEffect):
    """With `until`, `passed` is awaited when its output has that many tokens, or has ended."""

    model: str
    worker: str
    generation: int
    until: int = 0
    asked: str = ""
    """The model that was wanted, where `model` is its fallback."""
    places: int = 1
    """Choices of it that may be on the worker at once."""


@dataclass(frozen=True, slots=True)
class SetPlaces(LeaseEffect):
    """From now on so many choices may be on the worker at once; `held` is awaited as they end."""

    places: int


@dataclass(frozen=True, slots=True)
class Loaded(LeaseEffect):
    """What `load` asked for is done. The lease has ended with it."""

    model: str
    worker: str


@dataclass(frozen=True, slots=True)
class Refuse(LeaseEffect):
    error: BulkheadError


@dataclass(frozen=True, slots=True)
class EndLease(LeaseEffect):
    """The worker that this lease was granted is gone, and the lease with it."""

    error: BulkheadError


@dataclass(frozen=True, slots=True)
class Interrupt(LeaseEffect):
    """The worker that this lease was granted is gone, or has to go: `returned` is awaited."""

    error: BulkheadError


@dataclass(frozen=True, slots=True)
class QuarantineRequest:
    """A request alone kills its workers, and is refused for a while: write that down."""

    model: str
    request_id: str


@dataclass(frozen=True, slots=True)
class RememberLimit:
    """What was learned of a model's limits is to outlive this process; None = nothing limits it."""

    model: str
    limit: LearnedLimit | None


@dataclass(frozen=True, slots=True)
class RememberExcess:
    """By so many bytes the model's workers outgrow what their loads are charged: that is to outlive
    this process."""

    model: str
    bytes: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line for the log: a decision that a person may want explained, with its figures."""

    text: str
    level: int = logging.INFO


def warning(text: str) -> LogLine:
    """A line that a person should see."""
    return LogLine(text, logging.WARNING)


Effect = (
    Spawn
    | Stop
    | Shrink
    | Lend
    | Recall
    | LimitSequences
    | MayPrefill
    | Grant
    | SetPlaces
    | Loaded
    | Refuse
    | EndLease
    | Interrupt
    | QuarantineRequest
    | RememberLimit
    | RememberExcess
    | LogLine
)
