"""Anthropic's answers, whole and streamed. Pure.

An answer is one message of content blocks: thoughts, text, calls. In a stream one block is open at
a time, and its deltas follow each other.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from gateway.anthropic.errors import error_event
from gateway.dialect import AnswerHead, ChoiceBuffer, Usage, arguments_object
from gateway.openai.sse import EVENT_STREAM, in_one_line, named_event, recoveries_comment
from gateway.openai.thoughts import seal
from supervisor.errors import BulkheadError
from supervisor.wire.frames import Call, End, Token

_json = msgspec.json.Encoder().encode
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_MARK = "\0"
"""Stands in a delta for what a token will bring."""

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class MessagesRenderer:
    """The `Renderer` of Anthropic's messages."""

    content_type = EVENT_STREAM

    def __init__(
        self, head: AnswerHead, request_id: str, *, max_tokens: int, shows_thoughts: bool = True
    ) -> None:
        """With `max_tokens` 0 the message is empty, whatever a worker says."""
        self._request_id = request_id
        self._max_tokens = max_tokens
        self._shows_thoughts = shows_thoughts
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": head.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._blocks = 0
        """How many have begun."""
        self._open: Literal["", "thinking", "text", "tool_use"] = ""
        self._call = -1
        """Number of the open block's call, or of the last one."""
        self._arguments_told = False
        self._hidden: list[str] = []
        """The open block's thought, which the client does not want to see."""
        self._around: list[bytes] = []
        """The delta of the open block of text, or of a thought that is shown, cut where its text
        belongs: most deltas are of these, and are encoded once."""
        self._end: End | None = None

    def begin(self, prompt_tokens: int) -> bytes:
        """The message without content, and the ping that Anthropic's streams begin with."""
        usage = _usage(Usage(prompt=prompt_tokens))
        return _event("message_start", message={**self._message, "usage": usage}) + _PING

    def echo(self, choice: int, text: str) -> None:
        """A message has no echo."""

    def token(self, choice: int, token: Token) -> bytes:
        """The events of one token; none while nothing became final with it."""
        if self._around and not token.calls:
            said, other = token.text, token.reasoning
            if self._open == "thinking":
                said, other = other, said
            if not other:
                return _encoded(said).join(self._around) if said else b""
        if self._max_tokens == 0:
            return b""
        events = self._thought(token.reasoning) if token.reasoning else b""
        if token.text:
            events += self._text(token.text)
        for call in token.calls:
            events += self._called(call)
        return events

    def finish(self, choice: int, end: End) -> bytes:
        """The end of the open block."""
        self._end = end
        return self._close(cut=end.finish_reason == "length")

    def done(self, usage: Usage, recoveries: int) -> bytes:
        """Why the message ends, and its usage. The recoveries are told before its last event, at
        which SDKs stop to read."""
        assert self._end is not None
        reason = self._stop_reason(self._end.finish_reason, self._end.stop, usage.completion)
        delta = {"stop_reason": reason, "stop_sequence": self._end.stop or None}
        last = _event("message_delta", delta=delta, usage=_usage(self._counted(usage)))
        return last + recoveries_comment(recoveries) + _event("message_stop")

    def ping(self) -> bytes:
        return _PING

    def error(self, error: BulkheadError) -> bytes:
        return error_event(error, self._request_id)

    def answer(self, choices: Sequence[ChoiceBuffer], usage: Usage) -> bytes:
        """The whole message. A call that was cut before its arguments were whole is left out: as
        long as it is not whole it is no call, and `max_tokens` says why."""
        (choice,) = choices
        reason = self._stop_reason(choice.reason, choice.stop, usage.completion)
        told = {"stop_reason": reason, "stop_sequence": choice.stop or None}
        content = self._content(choice) if self._max_tokens else []
        counted = _usage(self._counted(usage))
        return _json({**self._message, **told, "content": content, "usage": counted})

    def _content(self, choice: ChoiceBuffer) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        if thought := "".join(choice.reasoning):
            shown, hidden = (thought, "") if self._shows_thoughts else ("", thought)
            content.append({"type": "thinking", "thinking": shown, "signature": seal(hidden)})
        if choice.text:
            content.append({"type": "text", "text": choice.text})
        cut = choice.reason == "length"
        for _, (name, pieces) in sorted(choice.calls.items()):
            arguments = "".join(pieces)
            if cut and arguments_object(arguments) is None:
                continue
            given = msgspec.Raw(arguments.encode() or b"{}")
            content.append({"type": "tool_use", "id": _call_id(), "name": name, "input": given})
        return content

    def _thought(self, text: str) -> bytes:
        events = self._begin("thinking", {"thinking": "", "signature": ""})
        if not self._shows_thoughts:
            self._hidden.append(text)
            return events
        return events + self._more("thinking", text)

    def _text(self, text: str) -> bytes:
        return self._begin("text", {"text": ""}) + self._more("text", text)

    def _more(self, kind: Literal["thinking", "text"], text: str) -> bytes:
        """The delta of the open block."""
        if not self._around:
            delta = self._delta({"type": f"{kind}_delta", kind: _MARK})
            self._around = delta.split(_json(_MARK))
        return _encoded(text).join(self._around)

    def _called(self, call: Call) -> bytes:
        events = b""
        if call.index != self._call:
            events = self._close()
            self._call = call.index
            block = {"id": _call_id(), "name": call.name, "input": {}}
            events += self._begin("tool_use", block)
        if not call.arguments:
            return events
        self._arguments_told = True
        return events + self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _begin(self, kind: Literal["thinking", "text", "tool_use"], block: dict[str, Any]) -> bytes:
        """The events that come before the next delta of such a block."""
        if self._open == kind:
            return b""
        events = self._close()
        self._open = kind
        self._blocks += 1
        return events + _event(
            "content_block_start", index=self._blocks - 1, content_block={"type": kind, **block}
        )

    def _close(self, *, cut: bool = False) -> bytes:
        """The last events of the open block. `cut`: by the length, so that arguments may be
        missing."""
        events = b""
        match self._open:
            case "":
                return b""
            case "thinking":
                signature = seal("".join(self._hidden))
                events = self._delta({"type": "signature_delta", "signature": signature})
            case "tool_use" if not (self._arguments_told or cut):
                # Some clients read the pieces alone, and none is no object.
                events = self._delta({"type": "input_json_delta", "partial_json": "{}"})
        self._open, self._around, self._hidden = "", [], []
        self._arguments_told = False
        return events + _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, delta: dict[str, str]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _stop_reason(self, reason: str, stop: str, completion: int) -> StopReason:
        if self._max_tokens == 0:
            return "max_tokens"
        match reason:
            case "length" if completion < self._max_tokens:
                return "model_context_window_exceeded"
            case "length":
                return "max_tokens"
            case "tool_calls":
                return "tool_use"
        return "stop_sequence" if stop else "end_turn"

    def _counted(self, usage: Usage) -> Usage:
        return usage if self._max_tokens else usage._replace(completion=0, reasoning=0)


def _usage(usage: Usage) -> dict[str, Any]:
    """Cached tokens are not among the `input_tokens`, as at Anthropic's."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _event(kind: str, **members: Any) -> bytes:
    return named_event(kind, _json({"type": kind, **members}))


def _encoded(text: str) -> bytes:
    return in_one_line(_json(text))


def _call_id() -> str:
    return f"toolu_{secrets.token_hex(12)}"
