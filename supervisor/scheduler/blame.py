"""Who killed the worker: suspects, trials, verdicts. Pure.

Whoever runs in a worker that dies is a suspect, and comes back alone: nobody shares a worker with
the one that kills it for longer than it takes to find out. A request that dies twice alone, before
it has got past where it had been, is guilty: it and its equals are refused for a while. All others
go on.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

PROBATION = 3
"""Tokens past its furthest earlier position after which a suspect is cleared. An engine is at most
two ahead of what it has told when it dies; more would have every other suspect wait for longer."""
STRIKES = 2
"""Deaths alone that make a request guilty."""
QUARANTINE_SECONDS = 3600.0
_RECORDS = 1000
"""Digests that are remembered; the oldest are forgotten first."""


class Fault(enum.Enum):
    """Whose fault a worker's death may have been."""

    REQUEST = enum.auto()
    """One of those in it."""
    MEMORY = enum.auto()
    """All of them together, or one."""
    OUTSIDE = enum.auto()
    """Somebody else's: nobody is suspected."""


@dataclass(slots=True)
class _Record:
    strikes: int
    expires: float
    guilty: bool = False


class BlameRecords:
    """Strikes and verdicts by digest. Times are seconds of one clock, whichever the caller has."""

    def __init__(self) -> None:
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def strike(self, digest: bytes, now: float) -> int:
        """The request, or an equal one, died alone without getting further; how often by now."""
        record = self._known(digest, now) or _Record(0, 0.0)
        record.strikes, record.expires = record.strikes + 1, now + QUARANTINE_SECONDS
        self._records[digest] = record
        self._records.move_to_end(digest)
        if len(self._records) > _RECORDS:
            self._records.popitem(last=False)
        return record.strikes

    def convict(self, digest: bytes) -> None:
        """Its last strike is a verdict."""
        self._records[digest].guilty = True

    def clear(self, digest: bytes) -> None:
        """The request got past where it had been."""
        self._records.pop(digest, None)

    def strikes(self, digest: bytes, now: float) -> int:
        """Deaths alone that are remembered."""
        record = self._known(digest, now)
        return 0 if record is None else record.strikes

    def guilty(self, digest: bytes, now: float) -> bool:
        """Whether a verdict is in force."""
        record = self._known(digest, now)
        return record is not None and record.guilty

    def restore(self, verdicts: Iterable[tuple[bytes, float]]) -> None:
        """Verdicts of an earlier run: digests and when they expire."""
        for digest, expires in verdicts:
            self._records[digest] = _Record(STRIKES, expires, guilty=True)

    def verdicts(self, now: float) -> list[tuple[bytes, float]]:
        """All that are in force: digests and when they expire."""
        return [
            (digest, record.expires)
            for digest, record in self._records.items()
            if record.guilty and record.expires > now
        ]

    def _known(self, digest: bytes, now: float) -> _Record | None:
        record = self._records.get(digest)
        if record is not None and record.expires <= now:
            del self._records[digest]
            return None
        return record
