"""What a world knows of loans: a borrower in each worker, by its own accounts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.property.recoveries import check

ANSWER_SECONDS = 2.0
"""A recall that has not been answered for so long is given up."""
ANEW_SECONDS = 30.0
"""After that, the worker may be asked again."""


@dataclass
class Asked:
    """A recall that is under way."""

    number: int
    bytes: int
    park: bool
    at: float


@dataclass
class Borrower:
    """What a worker holds of its loan, and what it has said last."""

    lent: int = 0
    """What it may hold, Lend by Lend."""
    live: dict[float, int] = field(default_factory=dict)
    """Bytes of live sequences, by when their requests came."""
    idle: int = 0
    least: int = 0
    most: int = 0
    since: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    deaf: bool = False
    """It answers nothing any more."""
    rests_until: float = 0.0
    """It gave less than it had said, and is left alone."""
    rests_surely: bool = False
    """Or perhaps not: its answer came too late for anybody to wait for it."""
    parked: dict[float, int] = field(default_factory=dict)
    """Bytes that sequences held before they were parked."""
    said_idle: int = 0
    said_youngest: float = 0.0
    said_parkable: int = 0

    def wants(self, since: float, least: int, ahead: int) -> None:
        """A request needs so much more, or 0 where all can go on and need more soon; what is idle
        serves first."""
        own = min(self.idle, least)
        self.idle -= own
        self.live[since] = self.live.get(since, 0) + own
        self.since, self.least = since, least - own
        self.most = self.least + ahead if self.least or not least else 0

    def say(self) -> tuple[int, int, float, int, float, int]:
        """Its standing word from now on: least, most, since, idle, youngest, parkable."""
        while self.parked and not self.least:
            self.wants(min(self.parked), max(1, self.parked.pop(min(self.parked))), 0)
        self.said_idle = self.idle
        self.said_youngest = max(self.live, default=0.0)
        self.said_parkable = self.live.get(self.said_youngest, 0)
        if not self.said_parkable:
            self.said_youngest = 0.0
        return (
            self.least,
            self.most,
            self.since,
            self.said_idle,
            self.said_youngest,
            self.said_parkable,
        )

    def waits_for(self, now: float) -> int:
        """Bytes that it was asked for in time."""
        return min(self.lent, sum(a.bytes for a in self.asked if now < a.at + ANSWER_SECONDS))

    def silent(self, now: float) -> bool:
        return any(now >= each.at + ANSWER_SECONDS for each in self.asked)

    def may_be_asked(self, now: float) -> bool:
        return not self.asked and now >= self.rests_until

    def callable(self, now: float) -> int:
        return min(self.said_idle, self.lent) if self.may_be_asked(now) else 0

    def is_lent(self, size: int) -> None:
        check(self.most > 0, "lent without need")
        check(size > 0, "nothing is lent")
        check(self.least <= size <= self.most, f"{size} lent, for {self.least} to {self.most}")
        self.lent += size
        self.live[self.since] = self.live.get(self.since, 0) + size
        self.least = self.most = 0

    def is_asked(self, number: int, size: int, park: bool, now: float) -> None:
        """Ask for one thing at a time, which it is known to have."""
        self.asked = [each for each in self.asked if now < each.at + ANSWER_SECONDS + ANEW_SECONDS]
        check(not self.asked, "asked twice at once")
        check(
            park or now >= self.rests_until or not self.rests_surely,
            "asked again at once for what it did not have",
        )
        check(size > 0, "asked for nothing")
        most = self.said_idle + (self.said_parkable if park else 0)
        check(size <= most, f"asked for {size}, and has said {most}")
        self.asked.append(Asked(number, size, park, now))

    def answer(self, share: float, now: float) -> tuple[int, int]:
        """What it gives back for the first recall, and its number; a `share` of what it could."""
        asked = self.asked.pop(0)
        if asked.park:
            while self.idle < asked.bytes and self.live:
                youngest = max(self.live)
                self.parked[youngest] = self.live.pop(youngest)
                self.idle += self.parked[youngest]
        given = int(min(asked.bytes, self.idle) * share)
        self.idle -= given
        self.lent -= given
        if given < asked.bytes:
            self.rests_until = now + 1.0
            self.rests_surely = now < asked.at + ANSWER_SECONDS + ANEW_SECONDS
        self.said_idle = max(0, self.said_idle - given)
        if asked.park:
            self.said_youngest, self.said_parkable = 0.0, 0
        return given, asked.number

    def end(self, since: float) -> None:
        """A sequence ends; its cache stays, of use to nobody."""
        self.idle += self.live.pop(since, 0)
        if self.since == since:
            self.least = self.most = 0


def check_park(
    who: str, borrowers: Iterable[tuple[str, Borrower]], youngest: float, now: float
) -> None:
    """The youngest of all is parked, and for an older one; idle loans are called back as well."""
    others = [(name, each) for name, each in borrowers if name != who]
    needy = [each.since for _, each in borrowers if each.least]
    check(any(since < youngest for since in needy), f"{who} parks for nobody older")
    for name, other in others:
        younger = other.said_parkable and other.said_youngest > youngest
        check(not younger or other.asked, f"{who} parks before younger {name}")
