"""Stop strings and markers in a text that comes in pieces.

Stop strings match text, not tokens: one string has many tokenizations. Nothing here depends on time
or on how tokens were batched, so feeding the same tokens again gives the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Match(NamedTuple):
    """Where the `which`-th needle stands in a text: `text[start:end]`."""

    end: int
    start: int
    which: int


class StringSearch:
    """Strings looked for in a text that comes in pieces."""

    def __init__(self, search: Sequence[str]) -> None:
        """Empty strings are found nowhere."""
        self._search = tuple(search)
        self._firsts = tuple({needle[0] for needle in search if needle})

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def find(self, text: str) -> Match | None:
        """The needle that is complete first, as if the text came letter by letter: how it was
        tokenized must not decide. Of two that end together the one that began first counts."""
        if not any(first in text for first in self._firsts):
            return None
        return min(
            (
                Match(at + len(needle), at, which)
                for which, needle in enumerate(self._search)
                if needle and (at := text.find(needle)) >= 0
            ),
            default=None,
        )

    def split(self, text: str) -> tuple[str, str]:
        """(what is decided, the end that may yet begin a needle) of a text that has none in it."""
        keep = max(self.overlaps(text, [len(text)] * len(self._search)), default=0)
        return text[: len(text) - keep], text[len(text) - keep :]

    def overlaps(self, text: str, most: Sequence[int]) -> list[int]:
        """How many characters at the end of `text` may begin each needle, so many at `most`."""
        if not any(first in text for first in self._firsts):
            return [0] * len(self._search)
        return [_overlap(text, *each) for each in zip(self._search, most, strict=True)]


class StopStrings:
    """Cuts a text that comes in pieces before the first stop string in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._search = StringSearch(stops)
        self._overlaps = [0] * len(stops)
        self._held = ""
        self._stops = tuple(stops)
        self.stopped = False
        self.found = ""
        """The stop string that came."""

    def feed(self, text: str) -> str:
        """What may be shown now. Text that may yet begin a stop string is held back; the string
        itself and everything after it never come out."""
        if self.stopped:
            return ""
        if not self._search:
            return text
        # An overlap grows by what is new at most. Looked for in all that is held, long stops that
        # share letters took 0.8 ms a token.
        most = [overlap + len(text) for overlap in self._overlaps]
        text = self._held + text
        if found := self._search.find(text):
            self.stopped, self.found, self._held = True, self._stops[found.which], ""
            return text[: found.start]
        self._overlaps = self._search.overlaps(text, most)
        keep = max(self._overlaps)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, now that nothing follows it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, needle: str, most: int) -> int:
    """Length of the longest proper prefix of `needle`, `most` at most, that ends `text`."""
    for length in range(min(len(text), len(needle) - 1, most), 0, -1):
        if text.endswith(needle[:length]):
            return length
    return 0
