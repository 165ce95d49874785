"""gpt-oss' harmony format: messages with a channel each, between control tokens.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>

analysis is reasoning, final and commentary to nobody are the text, a message to functions.NAME is a
call. Control tokens are never shown. <|return|> and <|call|> usually end the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Literal

from worker.output.parts import AnswerParts, CallPlace
from worker.output.text import StringSearch
from worker.output.tools.calls import Rereading
from worker.output.tools.json_calls import (
    ArgumentsReader,
    BrokenCall,
    JSONReader,
    call_json_reader,
)
from worker.output.tools.json_scanner import NotJSON, sendable

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_MARKS = StringSearch(MARKS)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_ADDRESSED = re.compile(r"\bto=\Z")
_LONGEST_HEADER = 512
"""Characters. A header is a role, a channel, a recipient and a type; more than that is text."""

_Part = Literal["start", "header", "reasoning", "text", "call", "arguments"]


class HarmonyParser:
    """An `AnswerParser`. `calling` False: messages to functions are text."""

    def __init__(self, answer: AnswerParts, *, calling: bool) -> None:
        self._answer = answer
        self._calling = calling
        self._part: _Part = "start"
        self._held = ""
        self._header = ""
        self._recipient = ""
        self._arguments: JSONReader | None = None
        self._rereading = Rereading(MARKS)

    @property
    def reasoning(self) -> bool:
        return self._part == "reasoning"

    @property
    def call_place(self) -> CallPlace:
        if not self._calling or self._part not in ("start", "header"):
            return ""
        header = (self._header + self._held).rpartition("<|start|>")[2]
        if _RECIPIENT.search(header):
            return ""
        return "recipient" if _ADDRESSED.search(header) else "header"

    def feed(self, text: str) -> None:
        while text and not self._answer.stopped:
            if self._part == "start":
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
        if self._part == "call" and cut and self._answer.calls.demanded:
            self._answer.calls.cut(self._name)
        elif self._part == "call":
            # The end of the answer stands for <|call|>.
            self._no_call(held) if cut or held.strip() else self._empty_call()
        elif self._part == "arguments":
            assert self._arguments is not None
            told = self._arguments.finish(cut)
            if not told:
                rest = self._lose_arguments(self._arguments.raw)
                self.feed(rest)
                self.finish(cut)
        elif self._part in ("start", "header"):
            header = self._header + held
            if "<|channel|>" not in header and not _RECIPIENT.search(header):
                self._answer.text(_without_marks(header), verbatim=True)
        else:
            self._emit(held)

    def _begin(self, text: str) -> str:
        """How the answer begins: a header, or, with a grammar, text right away."""
        stripped = text.lstrip()
        self._held = ""
        if any(mark.startswith(stripped) for mark in (*MARKS, "to=")):
            self._held = text  # as yet
            return ""
        heads = ("to=", "<|start|>", "<|channel|>", "<|message|>")
        self._part = "header" if stripped.startswith(heads) else "text"
        return text

    def _scan(self, text: str) -> str:
        found = _MARKS.find(text)
        if found is None:
            decided, self._held = _MARKS.split(text)
            self._emit(decided)
            return ""
        self._held = ""
        self._emit(text[: found.start])
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
            if not (self._calling and self._answer.calls.knows(self._name)):
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
                name = sendable(self._name)
            except NotJSON:
                name = ""
            if name:
                self._answer.pause()
                calls = self._answer.calls
                self._arguments = call_json_reader(calls, ArgumentsReader(calls, name), MARKS)
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

    @property
    def _name(self) -> str:
        return self._recipient.removeprefix("functions.")

    def _empty_call(self) -> None:
        self._answer.pause()
        self._answer.calls.add(self._name, "{}")
        self._part = "text"

    def _no_call(self, text: str) -> None:
        """It looked like a call, but its message is none: it is text, with the name it was for."""
        self._part = "text"
        self._answer.text(f"to={self._recipient} {text}", verbatim=True)

    def _lose_arguments(self, raw: str) -> str:
        """They are none. Returns what has to be read again."""
        lost, again = self._rereading.split(raw)
        self._no_call(lost)
        return again

    def _read_arguments(self, text: str) -> str:
        assert self._arguments is not None
        try:
            complete, rest = self._arguments.feed(text)
        except BrokenCall as broken:
            if not broken.opened:
                return self._lose_arguments(self._arguments.raw) + broken.rest
            complete, rest = True, broken.rest
        if complete:
            self._part = "text"
            self._answer.marker()
        return rest

    def _emit(self, text: str) -> None:
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


def harmony_rules(names: Sequence[str], marker: Callable[[str], str]) -> tuple[list[str], str]:
    """The grammar of a call that is demanded, in llguidance's Lark: rules for `calls`, and what an
    `object` is, the arguments of the tool `names[i]` being `args{i}`. `marker` spells a mark.

    One call is all that the model writes, for the mark at its end is an end of sequence.
    """
    start, channel, constrain, message = map(
        marker, ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>")
    )
    heads = [json.dumps(f"commentary to=functions.{name} ") for name in names]
    return [
        f'calls: ({start} "assistant")? {channel} object',
        f'type: {constrain} "json" {message}',
    ], " | ".join(f"{head} type args{i}" for i, head in enumerate(heads))


def _without_marks(text: str) -> str:
    for mark in (*MARKS, "<|constrain|>"):
        text = text.replace(mark, "")
    return text
