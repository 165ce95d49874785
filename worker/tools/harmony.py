"""gpt-oss' harmony format: messages with a channel each, between control tokens.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>

analysis is reasoning, final and commentary to nobody are the text, a message to functions.NAME is a
call. Control tokens are never shown. <|return|> and <|call|> usually end the answer.
"""

from __future__ import annotations

import re
from typing import Literal

from worker.text import Needles
from worker.tools.answer import Answer
from worker.tools.jsontext import NotJSON, sendable
from worker.tools.marked import Bare
from worker.tools.objects import Arguments, Broken

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_MARKS = Needles(MARKS)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_LONGEST_HEADER = 512
"""Characters. A header is a role, a channel, a recipient and a type; more than that is text."""

_Part = Literal["start", "header", "reasoning", "text", "call", "arguments"]


class Harmony:
    """A `Machine`. `calling` False: messages to functions are text."""

    def __init__(self, answer: Answer, *, calling: bool, bare: Bare | None) -> None:
        self._answer = answer
        self._calling = calling
        self._bare = bare
        self._part: _Part = "start"
        self._held = ""
        self._header = ""
        self._recipient = ""
        self._arguments: Arguments | None = None
        self._reader = None if bare is None else bare.read()
        """Reads forced calls, if that is how the answer begins."""
        self._reading = False

    @property
    def reasoning(self) -> bool:
        return self._part == "reasoning"

    @property
    def gate(self) -> str | None:
        return self._recipient.removeprefix("functions.") if self._part == "call" else None

    def feed(self, text: str) -> None:
        while text and not self._answer.stopped:
            if self._reading:
                assert self._reader is not None
                ended = self._reader.feed(text)
                if ended is None:
                    return
                self._reading, text = False, ended.rest
                self._end_forced(ended.lost)
            elif self._part == "start":
                text = self._begin(self._held + text)
            elif self._part == "call":
                text = self._begin_arguments(self._held + text)
            elif self._part == "arguments":
                text = self._read_arguments(text)
            else:
                text = self._scan(self._held + text)

    def finish(self, cut: bool) -> None:
        if self._answer.stopped:
            return
        held, self._held = self._held, ""
        if self._reading:
            assert self._reader is not None
            self._end_forced(self._reader.finish(cut))
        elif self._part == "call":
            # The end of the answer stands for <|call|>.
            self._no_call(held) if cut or held.strip() else self._empty_call()
        elif self._part == "arguments":
            assert self._arguments is not None
            self._arguments.cut()
        elif self._part in ("start", "header"):
            header = self._header + held
            if "<|channel|>" not in header and not _RECIPIENT.search(header):
                self._answer.text(_without_marks(header), verbatim=True)
        else:
            self._tell(held)

    def _begin(self, text: str) -> str:
        """How the answer begins: a header, forced calls, or, with a grammar, text right away."""
        stripped = text.lstrip()
        self._held = ""
        if self._bare is not None and stripped.startswith(self._bare.letter):
            self._reading = True
            return stripped
        if any(mark.startswith(stripped) for mark in (*MARKS, "to=")):
            self._held = text  # as yet
            return ""
        heads = ("to=", "<|start|>", "<|channel|>", "<|message|>")
        self._part = "header" if stripped.startswith(heads) else "text"
        return text

    def _end_forced(self, lost: str) -> None:
        self._part = "text"
        if lost:
            self._answer.text(lost, verbatim=True)
        else:
            self._answer.marker()

    def _scan(self, text: str) -> str:
        found = _MARKS.find(text)
        if found is None:
            keep = _MARKS.undecided(text)
            self._held = text[len(text) - keep :]
            self._tell(text[: len(text) - keep])
            return ""
        self._held = ""
        self._tell(text[: found.start])
        mark, rest = MARKS[found.which], text[found.end :]
        if self._part == "header":
            if mark == "<|message|>":
                self._begin_message()
            else:
                self._header += mark
        elif not self._answer.stopped:
            self._begin_header(mark)
        return rest

    def _begin_header(self, mark: str) -> None:
        self._answer.marker(joint="\n")
        # Between messages there is nothing, so what stands there can only be a header.
        self._part, self._header = "header", mark if mark == "<|channel|>" else ""

    def _begin_message(self) -> None:
        header, self._header = self._header, ""
        # A header that was broken off by another one counts for nothing.
        header = header.rpartition("<|start|>")[2]
        channel = _CHANNEL.search(header)
        recipient = _RECIPIENT.search(header)
        self._recipient = recipient[1] if recipient else ""
        if self._recipient:
            self._part = "call"
            if not self._calling:
                self._no_call("")
        elif channel and channel[1] == "analysis":
            self._part = "reasoning"
        else:
            self._part = "text"

    def _begin_arguments(self, text: str) -> str:
        stripped = text.lstrip()
        self._held = ""
        if stripped.startswith("{"):
            try:
                name = sendable(self._recipient.removeprefix("functions."))
            except NotJSON:
                name = ""
            if name:
                self._answer.pause()
                self._arguments = Arguments(self._answer.calls, name)
                self._part = "arguments"
                return stripped
        for mark in MARKS:
            if stripped.startswith(mark):
                self._empty_call()
                return stripped
            if mark.startswith(stripped):
                self._held = text
                return ""
        self._no_call("")
        return text

    def _empty_call(self) -> None:
        self._answer.pause()
        self._answer.calls.add(self._recipient.removeprefix("functions."), "{}")
        self._part = "text"

    def _no_call(self, text: str) -> None:
        """It looked like a call, but its message is none: it is text, with the name it was for."""
        self._part = "text"
        self._answer.text(f"to={self._recipient} {text}", verbatim=True)

    def _read_arguments(self, text: str) -> str:
        assert self._arguments is not None
        try:
            complete, rest = self._arguments.feed(text)
        except Broken as broken:
            complete, rest = True, broken.rest
        if complete:
            self._part = "text"
            self._answer.marker()
        return rest

    def _tell(self, text: str) -> None:
        if self._part == "reasoning":
            self._answer.reason(text)
        elif self._part == "header":
            self._header += text
            if len(self._header) > _LONGEST_HEADER:
                header, self._header = self._header, ""
                self._part = "text"
                self._answer.text(_without_marks(header), verbatim=True)
        else:
            self._answer.text(text)


def _without_marks(text: str) -> str:
    for mark in (*MARKS, "<|constrain|>"):
        text = text.replace(mark, "")
    return text
