"""The choices of a chat's answer, streamed and whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.dialect import ChoiceBuffer, new_call_id
from gateway.openai.render import logprob_object
from supervisor.wire.frames import Call, Logprobs, Token


class ChatShape:
    """The `ChoiceShape` of chats."""

    id_prefix = "chatcmpl-"
    answer_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    empty: Mapping[str, Any] = {"delta": {}}

    def __init__(self) -> None:
        self._begun = False
        self._calls: dict[int, bool] = {}
        """Number → whether any of its arguments has been sent."""

    def whole(self, choice: ChoiceBuffer) -> dict[str, Any]:
        text = choice.text
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if choice.calls and not text else text,
            "refusal": None,
        }
        if reasoning := "".join(choice.reasoning):
            message["reasoning_content"] = message["reasoning"] = reasoning
        if choice.calls:
            # Of a call that was cut before its arguments, clients must not think that it has none.
            nothing = "" if choice.reason == "length" else "{}"
            message["tool_calls"] = [
                {
                    "id": new_call_id(),
                    "type": "function",
                    "function": {"name": name, "arguments": "".join(pieces) or nothing},
                }
                for _, (name, pieces) in sorted(choice.calls.items())
            ]
        return {"message": message}

    def begin_with(self, echo: str) -> None:
        """A chat has no echo."""

    def chunk(self, token: Token) -> dict[str, Any]:
        """The token's delta.

        A delta without text has no content, the first one null: clients would begin a text for an
        empty one, and what is held back may yet be a call.
        """
        delta: dict[str, Any] = {} if self._begun else {"role": "assistant"}
        if token.reasoning:
            delta["reasoning_content"] = delta["reasoning"] = token.reasoning
        if token.text:
            delta["content"] = token.text
        elif not (self._begun or token.reasoning):
            delta["content"] = None
        if token.calls:
            delta["tool_calls"] = [self._call_delta(call) for call in _merged(token.calls)]
        self._begun = True
        return {"delta": delta}

    def rest(self, cut: bool) -> Iterable[dict[str, Any]]:
        """What strict clients need all the same: a role without a token, an object for arguments.
        `cut`: by the length, so that arguments may be missing."""
        if not self._begun:
            yield {"delta": {"role": "assistant", "content": ""}}
        for index, sent in self._calls.items():
            if not (sent or cut):
                yield {"delta": {"tool_calls": [{"index": index, "function": {"arguments": "{}"}}]}}

    def logprobs(self, tokens: Iterable[Logprobs]) -> dict[str, Any]:
        content = [
            {
                **logprob_object(each.sampled),
                "top_logprobs": [logprob_object(other) for other in each.top],
            }
            for each in tokens
        ]
        return {"content": content, "refusal": None}

    def _call_delta(self, call: Call) -> dict[str, Any]:
        """Id, type and name are told exactly once: clients concatenate what they get."""
        if call.index in self._calls:
            self._calls[call.index] |= call.arguments != ""
            return {"index": call.index, "function": {"arguments": call.arguments}}
        self._calls[call.index] = call.arguments != ""
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": new_call_id(), "type": "function", "function": function}


def _merged(calls: Sequence[Call]) -> list[Call]:
    """One piece a call: some clients look at the first of a chunk alone."""
    pieces: dict[int, Call] = {}
    for call in calls:
        if (known := pieces.get(call.index)) is not None:
            call = Call(call.index, known.name, known.arguments + call.arguments)
        pieces[call.index] = call
    return list(pieces.values())
