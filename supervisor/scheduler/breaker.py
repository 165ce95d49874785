"""When a model that keeps dying is no longer loaded for everyone who asks. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

BACKOFF_FIRST = 5.0
"""Seconds of the first pause; each failed probe doubles it."""
CROWD_GRACE = 2
"""Deaths more that are allowed while recovery separates a crowd: with one of them that kills at
once four deaths find it, and a fifth says that it is the model."""


class Breaker:
    """Counts one model's deaths without any token between them.

    `restarts` of them within `window` seconds open it; so does each one that follows, until a
    token comes. `jitter` gives numbers from 0 to 1: machines that crashed together should not all
    load together.
    """

    def __init__(
        self, restarts: int, window: float, longest: float, jitter: Callable[[], float]
    ) -> None:
        """`longest` bounds the pause, in seconds."""
        self._restarts = restarts
        self._window = window
        self._longest = longest
        self._jitter = jitter
        self._deaths: deque[float] = deque(maxlen=max(1, restarts) + CROWD_GRACE)
        self.trips = 0
        """How often it has opened since the last progress."""

    def died(self, now: float, *, crowd: bool = False) -> float | None:
        """A death; how long to pause, or None when the model may be loaded at once. With a `crowd`
        there are several who were interrupted, and one of them may be at fault."""
        self._deaths.append(now)
        recent = [at for at in self._deaths if at > now - self._window]
        allowed = self._restarts + (CROWD_GRACE if crowd else 0)
        if not self.trips and len(recent) < allowed:
            return None
        pause: float = min(self._longest, BACKOFF_FIRST * 2**self.trips)
        self.trips += 1
        return pause * (0.75 + 0.25 * self._jitter())

    @property
    def doubts(self) -> bool:
        """Whether there were deaths since the last token, so that the next one is news."""
        return bool(self._deaths)

    def progressed(self) -> None:
        """A token came, or a person asked to try again."""
        self._deaths.clear()
        self.trips = 0
