"""What the scheduler is told of a worker's end that nobody asked for. Plain values.

`supervisor.crashes` finds out why a worker died and fills these in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fault(enum.Enum):
    """Whose fault a worker's death may have been."""

    REQUEST = enum.auto()
    """One of those in it."""
    MEMORY = enum.auto()
    """All of them together, or one: it ran out of memory."""
    OUTSIDE = enum.auto()
    """Somebody else's: nobody is suspected."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why a worker died, as far as it is known when the news comes."""

    report: str
    """The id of the crash report."""
    summary: str
    """For "The worker died (SIGABRT: …)"."""
    advice: str
    """What to do about it, in whole sentences."""
    fault: Fault = Fault.REQUEST
    permanent: bool = False
    """A new worker would die of it again until somebody changes something."""
    retry_helps: bool = True
    """Whether a request that was inside may succeed unchanged on a new worker."""
    unexplained: bool = False
    """A SIGKILL that nothing explains: want of memory where memory is short, else anybody's."""
    cause: str = ""
    """The slug that reports and events have for it. Nothing is decided by it."""
