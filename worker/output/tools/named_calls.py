"""Calls written as a name, a marker and a JSON object: Mistral's `name[ARGS]{…}` and Kimi K2's
`functions.name:0<|tool_call_argument_begin|>{…}`. The arguments are passed on as they come."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from worker.output.text import StringSearch
from worker.output.tools.calls import CallCollector, CallReader, ReaderEnd
from worker.output.tools.json_calls import ArgumentsReader, BrokenCall
from worker.output.tools.json_scanner import NotJSON, sendable

_LONGEST_HEADER = 256
"""Characters. What is longer than any name is text, and text should not wait."""


@dataclass(frozen=True)
class NamedCallForm:
    """`start` (`skipped`… header `opening` {…})… `end`."""

    start: str
    end: str
    opening: str
    name: re.Pattern[str]
    """Matches a header; its group is the name."""
    plausible: re.Pattern[str]
    """Matches a header's beginning."""
    skipped: tuple[str, ...]


MISTRAL = NamedCallForm(
    start="[TOOL_CALLS]",
    end="",
    opening="[ARGS]",
    name=re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\S*\s*)?"),
    plausible=re.compile(r"\s*[\w.-]*\s*(?:\[[\w\s\]-]*(?:\[[A-Z]*)?)?"),
    skipped=("[TOOL_CALLS]",),
)
KIMI_K2 = NamedCallForm(
    start="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
    opening="<|tool_call_argument_begin|>",
    name=re.compile(r"\s*(?:functions\.)?(\S+?):\d+\s*"),
    plausible=re.compile(r"\s*[^\s{]*\s*(?:<[^\s{]*)?"),
    skipped=("<|tool_call_begin|>", "<|tool_call_end|>"),
)


class NamedCallsReader:
    """A `CallReader` of one section of such calls.

    `other` reads what does not begin as this form does, for models that know two.
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
        self._markers = StringSearch((form.opening, form.end, *form.skipped))
        self._first = True
        self._raw = ""
        """Everything since the start or the last complete call, but for what is in `_header`."""
        self._header = ""
        self._arguments: ArgumentsReader | None = None

    def feed(self, text: str) -> ReaderEnd | None:
        while text:
            if self._instead is not None:
                return self._instead.feed(text)
            if self._arguments is not None:
                ended, text = self._read(self._arguments, text)
            else:
                ended, text = self._find_header(text)
            if ended:
                return ended
        return None

    @property
    def object_expected(self) -> bool:
        return self._instead is not None and self._instead.object_expected

    def finish(self, cut: bool) -> str:
        if self._instead is not None:
            return self._instead.finish(cut)
        if self._arguments is not None and self._arguments.cut():
            return ""
        lost = self._lost() + self._header
        # Markers between calls are no text.
        return lost if self._first or self._header.strip() else ""

    def _lost(self) -> str:
        return self._form.start + self._raw if self._first else self._raw

    def _read(self, reading: ArgumentsReader, text: str) -> tuple[ReaderEnd | None, str]:
        try:
            complete, rest = reading.feed(text)
        except BrokenCall as broken:
            if broken.opened:
                return ReaderEnd("", broken.rest), ""
            self._arguments = None
            return self._give_up(broken.rest)
        if complete:
            self._arguments, self._raw, self._first = None, "", False
            if self._calls.full:
                return ReaderEnd("", rest), ""
        else:
            self._raw += text  # counts only while nothing but space has come
        return None, rest

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
            try:
                self._arguments = ArgumentsReader(self._calls, sendable(name[1] if name else ""))
            except NotJSON:
                name = None
            if name is None:
                self._arguments = None
                return self._give_up(text)
        elif header.strip():
            return self._give_up(text)
        elif marker == self._form.end:
            return ReaderEnd(self._lost() + header + marker if self._first else "", rest), ""
        self._raw += header + marker
        return None, rest

    def _give_up(self, text: str) -> tuple[ReaderEnd | None, str]:
        """From `text` on it is no call of this form."""
        if not self._first or self._other is None:
            # One letter at least is behind, or the same text would be found a call again.
            raw = self._lost()
            return ReaderEnd(raw, text) if raw else ReaderEnd(text[:1], text[1:]), ""
        self._instead = self._other()
        return None, self._raw + text
