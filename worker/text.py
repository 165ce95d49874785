"""From tokens to text that may be shown: detokenizer and stop strings, as one replayable state.

Stops match text, not tokens: one string has many tokenizations. Nothing here depends on time or on
how tokens were batched, so feeding the same tokens again gives the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """mlx-lm's StreamingDetokenizer, as far as it is used here."""

    def add_token(self, token: int) -> None: ...
    def finalize(self) -> None: ...
    @property
    def last_segment(self) -> str: ...


class TextStream:
    """The text of one choice.

    Text that could still turn out to be the start of a stop string is held back until the next
    tokens decide. The stop string itself and everything after it are never shown.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that became final with this token; "" while a character is cut in half."""
        self._detokenizer.add_token(token)
        return self._advance(self._detokenizer.last_segment)

    def finish(self) -> str:
        """The text that was still held back, now that no token follows."""
        self._detokenizer.finalize()
        shown = self._advance(self._detokenizer.last_segment)
        held, self._held = self._held, ""
        return shown if self.stopped else shown + held

    def _advance(self, segment: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return segment
        text = self._held + segment
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            # The one that is complete first, as if the text came letter by letter: how it was
            # tokenized must not decide.
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
