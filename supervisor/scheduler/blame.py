"""Which requests kill their worker: deaths counted by digest, and who is quarantined. Pure.

A death counts against a request that was the only one in the worker which had not got past the
place of its last death. One that has such a death is tried again with the worker to itself. If it
dies there, too, it is quarantined: it and its equals are refused for a while. All others go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

PROBATION_TOKENS = 3
"""Tokens past its furthest earlier position after which a request has passed the place of its last
death. An engine is at most two ahead of what it has told when it dies; more would have every other
suspect wait for longer."""
DEATHS_MAX = 2
"""Counted deaths, the last one truly alone, after which a request is quarantined."""
QUARANTINE_SECONDS = 3600.0
_RECORDS = 1000
"""Digests that are remembered; the oldest are forgotten first."""


@dataclass(slots=True)
class _Record:
    deaths: int
    expires: float
    alone: bool = False
    """Whether nobody else was in the worker at the last of them."""
    quarantined: bool = False


class BlameRecords:
    """Deaths and quarantines by digest. Times are seconds of one clock, whichever the caller
    has."""

    def __init__(self) -> None:
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def add_death(self, digest: bytes, now: float, *, alone: bool) -> int:
        """The request, or an equal one, died as the only one on trial without getting further, and
        as the only one at all if it was `alone`; how often by now."""
        record = self._known(digest, now) or _Record(0, 0.0)
        record.deaths, record.expires = record.deaths + 1, now + QUARANTINE_SECONDS
        record.alone = alone
        self._records[digest] = record
        self._records.move_to_end(digest)
        if len(self._records) > _RECORDS:
            self._records.popitem(last=False)
        return record.deaths

    def quarantine(self, digest: bytes) -> None:
        """Refuse this request until its record expires. It must have a death."""
        self._records[digest].quarantined = True

    def clear(self, digest: bytes) -> None:
        """The request got past where it had been."""
        self._records.pop(digest, None)

    def deaths(self, digest: bytes, now: float) -> int:
        """Those that are remembered."""
        record = self._known(digest, now)
        return 0 if record is None else record.deaths

    def is_guilty(self, digest: bytes, now: float) -> bool:
        """Whether its deaths are enough, if it is not the model's own fault."""
        record = self._known(digest, now)
        return record is not None and record.deaths >= DEATHS_MAX and record.alone

    def is_quarantined(self, digest: bytes, now: float) -> bool:
        """Whether the request is refused."""
        record = self._known(digest, now)
        return record is not None and record.quarantined

    def restore(self, quarantined: Iterable[tuple[bytes, float]]) -> None:
        """Quarantines of an earlier run: digests and when they expire."""
        for digest, expires in quarantined:
            self._records[digest] = _Record(DEATHS_MAX, expires, alone=True, quarantined=True)

    def quarantined(self, now: float) -> list[tuple[bytes, float]]:
        """All that are refused: digests and when that expires."""
        return [
            (digest, record.expires)
            for digest, record in self._records.items()
            if record.quarantined and record.expires > now
        ]

    def _known(self, digest: bytes, now: float) -> _Record | None:
        record = self._records.get(digest)
        if record is not None and record.expires <= now:
            del self._records[digest]
            return None
        return record
