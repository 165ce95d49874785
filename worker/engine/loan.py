"""What the engine may hold, and what it asks for and gives back.

`Allowance.room` is the engine's own; all else is lent. It is asked for in steps, ahead of need, and
given back when it has served nothing for a while, or when the supervisor recalls it. Nothing here
measures or frees: the engine says what it uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.wire.frames import Needs, Repaid

LARGEST_STEP = 256 * 2**20
"""Bytes by which loans grow and shrink, where a model can use so much."""
LEAST_STEP = 2**20
SMALL_SHARE = 8
"""A step is this part of all that the model could ever use, if that is less."""
LARGE_SHARE = 4
"""And this part of what is in use, if that is more."""
IDLE_SECONDS = 5.0
"""What has served nothing for so long is given back."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the engine holds and wants, in bytes, each with all that work on it takes.

    `held` is what it may touch until it says something else: live sequences, and what it keeps for
    later. `live` is the part for sequences that decode or prefill; all else is idle. Without
    `least` in all some request can't go on, the oldest of which came at `since`; `ahead` in all
    would carry every sequence on for a while. `youngest` and `parkable` as in `Needs`.
    """

    held: int = 0
    live: int = 0
    least: int = 0
    ahead: int = 0
    since: float = 0.0
    youngest: float = 0.0
    parkable: int = 0


class Loan:
    """The account of one engine. All in bytes; times are monotonic seconds."""

    def __init__(self, room: int, limit: int, ever: int) -> None:
        """`limit` is the most that room and loans may become, 0 = no limit; `ever` the most that
        the model could use with all its sequences at their longest."""
        self.room = room
        self.lent = 0
        self._heard = 0
        """All that was ever lent."""
        self._most = max(room, limit) if limit else None
        self._small = max(LEAST_STEP, min(LARGEST_STEP, ever // SMALL_SHARE))
        self._told: Needs | None = Needs()
        """How the supervisor thinks that things stand, once it has heard all; None = nobody knows.
        """
        self._idle_since: float | None = None

    @property
    def budget(self) -> int:
        """What may be held."""
        return self.room + self.lent

    @property
    def final(self) -> bool:
        """Whether it can never be more."""
        return self._most is not None and self.budget >= self._most

    def step(self, in_use: int) -> int:
        return max(self._small, in_use // LARGE_SHARE)

    def lend(self, size: int) -> int:
        """Bytes of it that are more than may be held: they are to be given back at once."""
        self.lent += size
        self._heard += size
        if (told := self._told) is not None:
            # It comes off what was asked for, whatever was said since it was sent.
            self._told = _after(told, lent=size)
        self._idle_since = None
        return 0 if self._most is None else max(0, min(size, self.budget - self._most))

    def repay(self, size: int, recall: int = 0) -> Repaid:
        """Give back so many bytes, which are held no longer; all that was lent at most."""
        size = max(0, min(size, self.lent))
        self.lent -= size
        if recall:
            self._told = None  # the supervisor wants to know how things stand after it
        elif (told := self._told) is not None:
            self._told = _after(told, repaid=size)
        return Repaid(size, recall)

    def needs(self, usage: Usage) -> Needs | None:
        """What to tell the supervisor; None = nothing that matters has changed."""
        now = self._needs(usage)
        told = self._told
        if told is not None and not self._differs(now, told, self.step(usage.live)):
            return None
        self._told = now
        return now

    def _needs(self, usage: Usage) -> Needs:
        least = max(0, usage.least - self.budget)
        most = 0
        if least or usage.ahead > self.budget:
            step = self.step(usage.live)
            wanted = max(least, usage.ahead - self.budget)
            most = -(-wanted // step) * step
        if self._most is not None:
            most = max(0, min(most, self._most - self.budget))
            least = min(least, most)
        return Needs(
            least,
            most,
            usage.since if most else 0.0,
            self.idle(usage),
            usage.youngest if self.lent else 0.0,
            min(usage.parkable, self.lent),
            self._heard,
        )

    def idle(self, usage: Usage) -> int:
        """Bytes of the loan that serve no live sequence."""
        return max(0, min(self.lent, self.budget - usage.live))

    @staticmethod
    def _differs(now: Needs, told: Needs, step: int) -> bool:
        if (now.least > 0) != (told.least > 0) or (now.most > 0) != (told.most > 0):
            return True
        if now.least and (now.least, now.since) != (told.least, told.since):
            return True
        pairs = ((now.idle, told.idle), (now.parkable, told.parkable), (now.most, told.most))
        if any(abs(new - old) * 2 >= step or (new > 0) != (old > 0) for new, old in pairs):
            return True
        return now.parkable > 0 and now.youngest != told.youngest

    # ── giving back ──────────────────────────────────────────────────────────────────────────────

    def surplus(self, usage: Usage, now: float) -> int:
        """Bytes to be given back now, because they have served nothing for `IDLE_SECONDS`. A step
        is kept, for whoever comes next."""
        over = self._over(usage)
        if not over:
            self._idle_since = None
            return 0
        if self._idle_since is None:
            self._idle_since = now
        if now < self._idle_since + IDLE_SECONDS:
            return 0
        self._idle_since = None
        return over

    def due(self, now: float) -> float | None:
        """Seconds until `surplus` may have something to give back; None = it has not."""
        if self._idle_since is None:
            return None
        return max(0.0, self._idle_since + IDLE_SECONDS - now)

    def _over(self, usage: Usage) -> int:
        """Idle bytes beyond a step; those below half a step more are no matter."""
        step = self.step(usage.live)
        over = min(self.lent, self.budget - max(usage.live, usage.least)) - step
        return over if over * 2 >= step else 0


def _after(told: Needs, *, lent: int = 0, repaid: int = 0) -> Needs:
    """How things stand when so much was lent, or given back, after that was said."""
    return Needs(
        max(0, told.least - lent),
        max(0, told.most - lent),
        told.since,
        max(0, told.idle - repaid),
        told.youngest,
        told.parkable,
        told.heard,
    )
