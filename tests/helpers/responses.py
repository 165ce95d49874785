"""Responses as clients send and read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from openai.types.responses import ResponseError, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.dialect import AnswerHead, ChoiceBuffer, Usage
from gateway.openai.validation import parse_object
from gateway.responses.render import ResponseRenderer
from gateway.responses.request import ParsedResponse, parse_response
from supervisor.errors import PreviousResponseNotFound
from supervisor.wire.frames import Chat, End, Generate, Token

SEED = 77
"""The seed of requests that bring none."""
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Known:
    """Conversations and items that can be referred to."""

    def __init__(
        self,
        conversations: Mapping[str, Sequence[Any]] = {},
        items: Mapping[str, Any] = {},
    ) -> None:
        self._conversations = conversations
        self._items = items

    def conversation(self, response_id: str) -> list[Any]:
        if response_id not in self._conversations:
            raise PreviousResponseNotFound("not found", param="previous_response_id")
        return list(self._conversations[response_id])

    def items(self, item_ids: Iterable[str]) -> dict[str, Any]:
        return {each: self._items[each] for each in item_ids if each in self._items}


NOTHING = Known()


def parsed(known: Known = NOTHING, **members: Any) -> ParsedResponse:
    """A body with these members, nulls and all."""
    body = {"model": "m", **members}
    return parse_response(parse_object(json.dumps(body).encode()), known)


def asked(known: Known = NOTHING, **members: Any) -> Generate:
    """What the worker is asked for."""
    (request,) = parsed(known, **members).choices("r", 1.5, SEED)
    return request


def prompt(known: Known = NOTHING, **members: Any) -> Chat:
    made = asked(known, **members).prompt
    assert isinstance(made, Chat)
    return made


def messages(*items: Any, known: Known = NOTHING, **members: Any) -> list[dict[str, Any]]:
    """What the model reads of these items."""
    return prompt(known, input=list(items), **members).messages


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def call(name: str, call_id: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {
        "type": "function_call",
        "name": name,
        "call_id": call_id,
        "arguments": arguments,
        **more,
    }


def output(call_id: str, text: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object"}, **more}


def read_events(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each as the SDK's own type takes it, and numbered without a gap."""
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        # One line to everybody: Python's idea of a line's end has all others in it.
        name, line = block.splitlines()
        event = json.loads(line.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        _check(event)
        events.append(event)
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    return events


def _check(event: dict[str, Any]) -> None:
    if event["type"] == "response.failed":
        # The SDK's type knows OpenAI's own codes alone, which the SDK itself does not look at.
        error = event["response"]["error"]
        assert set(error) == set(ResponseError.model_fields) - {"misalignment"}
        told = error | {"code": "server_error"}
        event = event | {"response": event["response"] | {"error": told}}
    _EVENT.validate_json(msgspec.json.encode(event), strict=True)


def renderer(
    keep: Callable[[dict[str, Any]], None] | None = None, **members: Any
) -> ResponseRenderer:
    return ResponseRenderer(parsed(**members), AnswerHead(1700000000.5, "m", 1), keep)


def streamed(tokens: Sequence[Token], end: End, **members: Any) -> list[dict[str, Any]]:
    """All events of an answer."""
    made = renderer(**members)
    data = made.begin(0) + b"".join(made.token(0, each) for each in tokens)
    data += made.finish(0, end)
    return read_events(data + made.done(Usage.of([end], 1), 0))


def whole(tokens: Sequence[Token], end: End, **members: Any) -> dict[str, Any]:
    made = renderer(**members)
    choice = ChoiceBuffer(logprobs=any(each.logprobs for each in tokens))
    for each in tokens:
        choice.add(each)
    choice.reason = end.finish_reason
    answer: dict[str, Any] = json.loads(made.answer([choice], Usage.of([end], 1)))
    return answer


def without_ids(tree: Any) -> Any:
    """`tree` without what is made up anew for every answer."""
    if isinstance(tree, list):
        return [without_ids(each) for each in tree]
    if isinstance(tree, dict):
        made_up = ("id", "call_id", "item_id")
        return {name: without_ids(each) for name, each in tree.items() if name not in made_up}
    return tree
