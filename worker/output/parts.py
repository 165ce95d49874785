"""Where the parts of an answer go as they are told apart: its text, its reasoning, its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from worker.output.text import StopStrings
from worker.output.tools.calls import CallCollector

CallPlace = Literal["", "section", "thought", "object", "header", "recipient"]
"""Where a call may begin with the next letter. "section": the marker of calls is complete, and
nothing has come behind it; "thought": the same within reasoning; "object": a call object may begin
that no marker announces. "header": a header of harmony's, where `to=` may come; "recipient": behind
that. "" = nowhere."""


class AnswerParser(Protocol):
    """Tells the parts of an answer apart. It stops reading when the answer is `stopped`."""

    @property
    def reasoning(self) -> bool: ...
    @property
    def call_place(self) -> CallPlace:
        """Where the text so far has led, as a call is concerned."""

    def feed(self, text: str) -> None: ...
    def finish(self, cut: bool) -> None: ...


class AnswerParts:
    """Collects what may be shown.

    White space before a marker (of reasoning, of a call) and blank lines behind it belong to
    neither side: they are dropped at the answer's beginning and end, and where text goes on behind
    a marker, the space before the marker stays between the two. So white space at the end of the
    text waits for what follows it. What a line begins with is the text's: code is indented.

    Stop strings are looked for in the text alone: reasoning is no part of the answer (a stop such
    as "\\n\\n" would end most of them before the answer begins), and calls are no text.
    """

    def __init__(self, stops: Sequence[str], calls: CallCollector, *, behind_marker: bool) -> None:
        self.calls = calls
        self._stops = StopStrings(stops)
        self._text: list[str] = []
        self._space = ""
        self._shown = False
        self._behind_marker = behind_marker
        self._indent = ""
        """White space behind a marker, since the last line break."""
        self._reasoning: list[str] = []
        self._reasoning_space = ""
        self._reasoning_begins = True
        self._reasoned = False

    @property
    def stopped(self) -> bool:
        return self._stops.stopped or self.calls.full

    @property
    def stop(self) -> str:
        """The stop string that came, if one did."""
        return self._stops.found

    def text(self, text: str, *, verbatim: bool = False) -> None:
        """More of the text. `verbatim`: no marker stands before it, it only looked like one."""
        if self._behind_marker:
            text, self._indent = self._indent + text, ""
            body = text.lstrip()
            if not (body or verbatim):
                self._indent = _last_line(text)
                return
            if not verbatim:
                text = _last_line(text[: len(text) - len(body)]) + body
        if not text:
            return
        self._behind_marker = False
        self._show(self._stops.feed(text))

    def marker(self, joint: str = "") -> None:
        """A marker stands here. `joint` separates the texts before and behind it."""
        self._show(self._stops.flush())
        self._behind_marker, self._indent = True, ""
        if not self._shown:
            self._space = ""
        elif joint:
            self._space = joint
        if self._reasoned:
            self._reasoning_space = "\n"
        self._reasoning_begins = True

    def pause(self) -> None:
        """A call may begin here: the text before it waits for nothing."""
        self._show(self._stops.flush())

    def reason(self, text: str) -> None:
        """More of the reasoning."""
        if self._reasoning_begins:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            self._reasoning.append(self._reasoning_space + body)
            self._reasoning_begins, self._reasoned = False, True
            self._reasoning_space = text[len(body) :]
        else:
            self._reasoning_space += text

    def finish(self) -> None:
        """Nothing follows."""
        self._show(self._stops.flush())
        if self._space and not self._behind_marker and not self._stops.stopped:
            self._text.append(self._space)
        self._space = ""

    def take_text(self) -> str:
        text = "".join(self._text)
        self._text.clear()
        return text

    def take_reasoning(self) -> str:
        text = "".join(self._reasoning)
        self._reasoning.clear()
        return text

    def drop(self) -> None:
        """Discard what was collected."""
        self._text.clear()
        self._reasoning.clear()
        self.calls.take()

    def _show(self, text: str) -> None:
        if self._stops.stopped:
            # A stop string ends the text right before itself, space included.
            self._text.append(self._space + text)
            self._space = ""
            return
        body = text.rstrip()
        if body:
            self._text.append(self._space + body)
            self._shown = True
            self._space = text[len(body) :]
        else:
            self._space += text


def _last_line(text: str) -> str:
    return text[max(text.rfind("\n"), text.rfind("\r")) + 1 :]
