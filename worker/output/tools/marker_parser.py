"""Answers whose parts stand between markers: <think>…</think>, <tool_call>…</tool_call>.

mlx-lm's `make_text_state_machine` has the same transitions, but strips the markers of what turns
out to be no call, so it is not used itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.output.parts import AnswerParts, CallPlace
from worker.output.text import StringSearch
from worker.output.tools.calls import CallReader, ReaderEnd, Rereading


@dataclass(frozen=True)
class UnmarkedCalls:
    """Calls without a marker: an answer that begins with `letter` is given to `read`'s reader."""

    letter: str
    read: Callable[[], CallReader]


class MarkerParser:
    """An `AnswerParser`. States: "normal", "reasoning", "tool", and others, whose text is
    markup."""

    def __init__(
        self,
        answer: AnswerParts,
        transitions: Mapping[str, tuple[StringSearch, tuple[tuple[str, str], ...]]],
        state: str,
        read: Callable[[], CallReader] | None,
        unmarked: UnmarkedCalls | None,
    ) -> None:
        """`read` makes the reader of what follows the marker of a call; None = no marker leads to
        "tool"."""
        self._answer = answer
        self._transitions = transitions
        self._state = state
        self._make_reader = read
        self._unmarked = unmarked
        self._opening = unmarked is not None
        """Whether the next letter that is no space may begin unmarked calls."""
        self._reader: CallReader | None = None
        self._at_marker = False
        """Whether the marker that the reader was made for is the last that came."""
        self._held = ""
        self._markup = ""
        self._rereading = Rereading(
            sorted({m for _, edges in transitions.values() for m, to in edges if to == "tool"})
        )

    @property
    def reasoning(self) -> bool:
        return self._state == "reasoning" and self._reader is None

    @property
    def call_place(self) -> CallPlace:
        if self._reader is not None:
            if self._at_marker:
                return "thought" if self._state == "reasoning" else "section"
            return "object" if self._reader.object_expected else ""
        may_begin = self._opening and self._unmarked is not None and self._unmarked.letter == "{"
        return "object" if may_begin else ""

    def feed(self, text: str) -> None:
        while text and not self._answer.stopped:
            if self._reader is not None:
                self._at_marker = False
                ended = self._reader.feed(text)
                if ended is None:
                    return
                text = self._leave_call(ended)
            elif self._opening:
                text = self._open(self._held + text)
            else:
                text = self._scan(self._held + text)

    def finish(self, cut: bool) -> None:
        if self._answer.stopped:
            return
        while self._reader is not None and not self._answer.stopped:
            self.feed(self._leave_call(self._reader.finish(cut)))
        self._emit(self._held, verbatim=False)
        self._held = ""
        if self._markup.strip():
            self._answer.text(self._markup, verbatim=True)

    def _open(self, text: str) -> str:
        stripped = text.lstrip()
        if not stripped:
            self._held = text
            return ""
        self._opening, self._held = False, ""
        if self._unmarked is not None and stripped[0] == self._unmarked.letter:
            self._reader = self._unmarked.read()
            self._markup += text[: len(text) - len(stripped)]
            return stripped
        return text

    def _scan(self, text: str) -> str:
        """Text up to the next marker; returns what is behind it."""
        search, edges = self._transitions.get(self._state, _NO_EDGES)
        found = search.find(text)
        if found is None:
            decided, self._held = search.split(text)
            self._emit(decided, verbatim=False)
            return ""
        self._held = ""
        self._emit(text[: found.start], verbatim=False)
        rest = text[found.end :]
        if self._answer.stopped:
            return rest
        marker, target = edges[found.which]
        if target == "text":
            self._state, self._markup = "normal", ""
            self._answer.text(marker, verbatim=True)
        elif target == "tool":
            assert self._make_reader is not None
            self._answer.pause()
            self._reader, self._at_marker = self._make_reader(), True
        else:
            self._answer.marker()
            self._opening = self._unmarked is not None and target == "normal" != self._state
            self._state, self._markup = target, ""
        return rest

    def _leave_call(self, ended: ReaderEnd) -> str:
        self._reader = None
        space, self._markup = self._markup, ""
        lost, again = self._rereading.split(ended.lost)
        if lost:
            self._emit(space + lost, verbatim=True)
        else:
            self._state = "normal"
            self._answer.marker()
        return again + ended.rest

    def _emit(self, text: str, *, verbatim: bool) -> None:
        if self._state == "normal" or (verbatim and self._state != "reasoning"):
            self._answer.text(text, verbatim=verbatim)
        elif self._state == "reasoning":
            self._answer.reason(text)
        else:
            self._markup += text


class ReasoningParser:
    """An `AnswerParser` of thinking alone, whose end somebody else knows: then it is told to
    finish.

    The end marker at its very end is none of it, nor is a start marker that opens it once more.
    """

    reasoning = True
    call_place: CallPlace = ""

    def __init__(self, answer: AnswerParts, start: str, end: str) -> None:
        self._answer = answer
        self._start, self._end = start, end
        # The whole marker waits as well as a part of it, for whether it is one is known by tokens.
        self._search = StringSearch((f"{end}.",))
        self._opening = True
        self._held = ""

    def feed(self, text: str) -> None:
        text = self._held + text
        if self._opening:
            begins = text.lstrip()
            if len(begins) < len(self._start) and self._start.startswith(begins):
                self._held = text
                return
            self._opening = False
            text = begins.removeprefix(self._start)
        decided, self._held = self._search.split(text)
        self._answer.reason(decided)

    def finish(self, cut: bool) -> None:
        held, self._held = self._held, ""
        self._answer.reason(held if cut else held.removesuffix(self._end))


_NO_EDGES: tuple[StringSearch, tuple[tuple[str, str], ...]] = (StringSearch(()), ())
