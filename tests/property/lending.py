"""What a world knows of loans: a borrower in each worker, by its own accounts."""

from __future__ import annotations

from collections import deque
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
class Word:
    """How a worker says that it stands; see `LoanNeeds`."""

    least: int
    most: int
    since: float
    idle: int
    youngest: float
    parkable: int
    heard: int


@dataclass
class GivenBack:
    """By itself, or, with the number of a recall, as that asked."""

    bytes: int
    number: int


@dataclass
class Account:
    """The loan as the worker itself knows it, which hears of everything later."""

    limit: float
    """The most that it may ever hold of its loan."""
    held: int = 0
    heard: int = 0
    """All that it was ever lent."""
    live: dict[float, int] = field(default_factory=dict)
    """Bytes of live sequences, by when their requests came."""
    idle: int = 0
    least: int = 0
    most: int = 0
    since: float = 0.0
    recalls: list[Asked] = field(default_factory=list)
    """Those that it has not answered."""
    parked: dict[float, int] = field(default_factory=dict)
    """Bytes that sequences held before they were parked."""

    def wants(self, since: float, least: int, ahead: int) -> None:
        """A request needs so much more, or 0 where all can go on and need more soon; what is idle
        serves first."""
        own = min(self.idle, least)
        self.idle -= own
        self.live[since] = self.live.get(since, 0) + own
        left = int(min(self.limit - self.held, least + ahead))
        self.since, self.least = since, min(least - own, left)
        self.most = min(self.least + ahead, left) if self.least or not least else 0

    def word(self) -> Word:
        while self.parked and not self.least:
            self.wants(min(self.parked), max(1, self.parked.pop(min(self.parked))), 0)
        youngest = max(self.live, default=0.0)
        parkable = self.live.get(youngest, 0)
        return Word(
            self.least,
            self.most,
            self.since,
            self.idle,
            youngest if parkable else 0.0,
            parkable,
            self.heard,
        )

    def hears(self, said: int | Asked) -> None:
        """Of bytes that it is lent, or of a recall."""
        if isinstance(said, Asked):
            self.recalls.append(said)
            return
        self.held += said
        self.heard += said
        serves = said if self.most else 0
        self.live[self.since] = self.live.get(self.since, 0) + serves
        self.idle += said - serves
        self.least, self.most = max(0, self.least - said), max(0, self.most - said)

    def give_back(self, share: float) -> GivenBack:
        """A part of what is idle that it wants no longer."""
        size = int(self.idle * share)
        self.idle -= size
        self.held -= size
        return GivenBack(size, 0)

    def answer(self, share: float) -> GivenBack:
        """What it gives back for the first recall; a `share` of what it could."""
        asked = self.recalls.pop(0)
        if asked.park:
            while self.idle < asked.bytes and self.live:
                youngest = max(self.live)
                self.parked[youngest] = self.live.pop(youngest)
                self.idle += self.parked[youngest]
        given = int(min(asked.bytes, self.idle) * share)
        self.idle -= given
        self.held -= given
        return GivenBack(given, asked.number)

    def end(self, since: float) -> None:
        """A sequence ends; its cache stays, of use to nobody."""
        self.idle += self.live.pop(since, 0)
        if self.since == since:
            self.least = self.most = 0


@dataclass
class Borrower:
    """A worker's loan as it must be known on this side, and the words that are on their way."""

    account: Account = field(default_factory=lambda: Account(float("inf")))
    late: bool = False
    """Whether words are on their way for a while; else they are there at once."""
    down: deque[int | Asked] = field(default_factory=deque)
    """What the worker has not heard of: bytes that it is lent, and recalls."""
    up: deque[Word | GivenBack] = field(default_factory=deque)
    """What it has said and nobody has heard."""
    lent: int = 0
    """What it may hold, or has given back and nobody knows."""
    ever_lent: int = 0
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
    said_idle: int = 0
    said_youngest: float = 0.0
    said_parkable: int = 0

    # ── what is on its way ──

    def send(self, said: int | Asked) -> None:
        self.down.append(said)
        if not self.late:
            self.hear()

    def hear(self) -> None:
        """The worker hears of the first thing that it has not."""
        self.account.hears(self.down.popleft())

    @property
    def on_its_way(self) -> int:
        """Bytes that it was lent and has not heard of."""
        return sum(each for each in self.down if not isinstance(each, Asked))

    def says(self, word: Word) -> None:
        """It is heard."""
        unheard = self.ever_lent - word.heard
        self.least, self.most = max(0, word.least - unheard), max(0, word.most - unheard)
        self.since, self.said_idle = word.since, word.idle
        self.said_youngest, self.said_parkable = word.youngest, word.parkable

    def gives_back(self, back: GivenBack, now: float) -> None:
        """It is heard."""
        self._forget_old(now)
        asked = [each for each in self.asked if each.number == back.number]
        for each in asked:
            self.asked.remove(each)
            if back.bytes < self._expected(each):
                self.rests_until, self.rests_surely = now + 1.0, True
            if each.park:
                self.said_youngest, self.said_parkable = 0.0, 0
        self.lent -= back.bytes
        self.said_idle = max(0, self.said_idle - back.bytes)

    def check_agreed(self, who: str) -> None:
        """Once everything is heard both sides know the same."""
        if self.down or self.up:
            return
        own, known = self.account, (self.least, self.most, self.said_idle, self.lent)
        said = (own.least, own.most, own.idle, own.held)
        check(known == said, f"{who} stands at {said} and is known to at {known}")

    # ── what is known ──

    def _expected(self, asked: Asked) -> int:
        return min(asked.bytes if asked.park else min(asked.bytes, self.said_idle), self.lent)

    def waits_for(self, now: float) -> int:
        """Bytes that it was asked for in time, and will give as far as is known."""
        return sum(self._expected(a) for a in self.asked if now < a.at + ANSWER_SECONDS)

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
        self.ever_lent += size
        self.least, self.most = max(0, self.least - size), self.most - size
        self.send(size)
        own = self.account
        check(own.held + self.on_its_way <= own.limit, f"{size} lent beyond the limit")

    def is_asked(self, number: int, size: int, park: bool, now: float) -> None:
        """Ask for one thing at a time, which it is known to have."""
        self._forget_old(now)
        check(not self.asked, "asked twice at once")
        check(
            park or now >= self.rests_until or not self.rests_surely,
            "asked again at once for what it did not have",
        )
        check(size > 0, "asked for nothing")
        most = self.said_idle + (self.said_parkable if park else 0)
        check(size <= most, f"asked for {size}, and has said {most}")
        self.asked.append(Asked(number, size, park, now))
        self.send(self.asked[-1])

    def _forget_old(self, now: float) -> None:
        self.asked = [each for each in self.asked if now < each.at + ANSWER_SECONDS + ANEW_SECONDS]


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
