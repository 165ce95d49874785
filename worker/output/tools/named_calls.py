"""Calls written as a name, a marker and a JSON object: Mistral's `name[ARGS]{…}` and Kimi K2's
`functions.name:0<|tool_call_argument_begin|>{…}`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from worker.output.text import StringSearch
from worker.output.tools.calls import REREAD, CallCollector, CallReader, ReaderEnd
from worker.output.tools.json_calls import (
    ArgumentsReader,
    BrokenCall,
    JSONReader,
    call_json_reader,
)
from worker.output.tools.json_scanner import NotJSON, sendable

_LONGEST_HEADER = 256
"""Characters. What is longer than any name is text, and text should not wait."""


@dataclass(frozen=True)
class NamedCallForm:
    """`start` (`skipped`… header `opening` {…} `call_end`)… `end`."""

    start: str
    end: str
    call_end: str
    opening: str
    name: re.Pattern[str]
    """Matches a header; its group is the name."""
    plausible: re.Pattern[str]
    """Matches a header's beginning."""
    skipped: tuple[str, ...]


MISTRAL = NamedCallForm(
    start="[TOOL_CALLS]",
    end="",
    call_end="",
    opening="[ARGS]",
    name=re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\S*\s*)?"),
    plausible=re.compile(r"\s*[\w.-]*\s*(?:\[[\w\s\]-]*(?:\[[A-Z]*)?)?"),
    skipped=("[TOOL_CALLS]",),
)
KIMI_K2 = NamedCallForm(
    start="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
    call_end="<|tool_call_end|>",
    opening="<|tool_call_argument_begin|>",
    name=re.compile(r"\s*(?:functions\.)?(\S+?):\d+\s*"),
    plausible=re.compile(r"\s*[^\s{]*\s*(?:<[^\s{]*)?"),
    skipped=("<|tool_call_begin|>", "<|tool_call_end|>"),
)


class NamedCallsReader:
    """A `CallReader` of one section of such calls.

    `other` reads what does not begin as this form does, for models that know two. What is no call
    in a section that has an end is text, and the next call in it is one all the same.
    """

    def __init__(
        self,
        calls: CallCollector,
        form: NamedCallForm,
        other: Callable[[], CallReader] | None = None,
    ) -> None:
        self._calls = calls
        self._form = form
        self._other = other
        self._instead: CallReader | None = None
        self._ends = tuple(end for end in (form.end, *form.skipped) if end)
        self._markers = StringSearch((form.opening, *self._ends))
        self._after_call = StringSearch(self._ends)
        self._left = REREAD
        self._first = True
        """Whether no call is complete yet."""
        self._raw = ""
        """Everything since the start or the last call, but for what is in `_header`."""
        self._header = ""
        self._arguments: JSONReader | None = None
        self._broken = False
        """Whether a call is being read that is none."""
        self._text = ""
        """Of the section, up to the last call that is none."""

    def feed(self, text: str) -> ReaderEnd | None:
        while text:
            if self._instead is not None:
                return self._instead.feed(text)
            if self._broken:
                ended, text = self._skip(text)
            elif self._arguments is not None:
                ended, text = self._read(self._arguments, text)
            else:
                ended, text = self._find_header(text)
            if ended:
                return ended
        return None

    @property
    def object_expected(self) -> bool:
        return self._instead is not None and self._instead.object_expected

    def finish(self, cut: bool) -> ReaderEnd:
        if self._instead is not None:
            return self._instead.finish(cut)
        if self._arguments is not None:
            told, raw = self._arguments.finish(cut), self._arguments.raw
            self._arguments = None
            if told:
                return ReaderEnd(self._text, "")
            if not self._form.end:
                return ReaderEnd(self._lost() + raw, "")
            return self.feed(self._break(raw)) or self.finish(cut)
        # Markers between calls are no text.
        is_text = self._first or self._broken or self._header.strip()
        return ReaderEnd(self._lost() + self._header if is_text else self._text, "")

    def _lost(self) -> str:
        """What is text if the call that is being read is none."""
        start = self._form.start if self._first and not self._text else ""
        return self._text + start + self._raw

    def _read(self, reading: JSONReader, text: str) -> tuple[ReaderEnd | None, str]:
        try:
            complete, rest = reading.feed(text)
        except BrokenCall as broken:
            self._arguments = None
            if broken.opened:
                return ReaderEnd(self._text, broken.rest), ""
            raw = reading.raw
            if not self._form.end:
                return ReaderEnd(self._lost() + raw, broken.rest), ""
            return None, self._break(raw) + broken.rest
        if complete:
            self._arguments, self._raw, self._first = None, "", False
            if self._calls.full:
                return ReaderEnd(self._text, rest), ""
        return None, rest

    def _break(self, raw: str) -> str:
        """The arguments `raw` are none. Returns what has to be read again: a string without an end
        may have taken the call's end and other calls for its own."""
        self._text, self._raw, self._broken = self._lost(), "", True
        self._left -= len(raw)
        if self._left >= 0:
            return raw
        self._text += raw
        return ""

    def _skip(self, text: str) -> tuple[ReaderEnd | None, str]:
        """The rest of a call that is none."""
        text = self._header + text
        found = self._after_call.find(text)
        if found is None:
            decided, self._header = self._after_call.split(text)
            self._text += decided
            return None, ""
        ends_call = text[found.start : found.end] == self._form.call_end
        end = found.end if ends_call else found.start
        self._text += text[:end]
        self._header, self._broken = "", False
        return None, text[end:]

    def _find_header(self, text: str) -> tuple[ReaderEnd | None, str]:
        text = self._header + text
        found = self._markers.find(text)
        header = text[: found.start] if found else text
        if len(header) > _LONGEST_HEADER or not self._form.plausible.fullmatch(header):
            self._header = ""
            return self._give_up(text)
        if not found:
            self._header = text
            return None, ""
        marker, rest, self._header = text[found.start : found.end], text[found.end :], ""
        if marker == self._form.opening:
            name = self._form.name.fullmatch(header)
            if name is None or not self._calls.knows(name[1]):
                return self._give_up(text)
            try:
                reader = ArgumentsReader(self._calls, sendable(name[1]))
            except NotJSON:
                return self._give_up(text)
            self._arguments = call_json_reader(self._calls, reader, self._ends)
        elif header.strip():
            return self._give_up(text)
        elif marker == self._form.end:
            return ReaderEnd(
                self._lost() + header + marker if self._first else self._text, rest
            ), ""
        ends_call = marker == self._form.call_end and not self._first
        self._raw = "" if ends_call else self._raw + header + marker
        return None, rest

    def _give_up(self, text: str) -> tuple[ReaderEnd | None, str]:
        """From `text` on it is no call of this form."""
        if not self._first or self._text or self._other is None:
            # One letter at least is behind, or the same text would be found a call again.
            lost = self._lost()
            return ReaderEnd(lost, text) if lost else ReaderEnd(text[:1], text[1:]), ""
        self._instead = self._other()
        return None, self._raw + text
