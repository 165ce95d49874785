"""Bodies as OpenAI's clients send them, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.openai.chat import parse_chat
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.validation import parse_object
from supervisor.errors import BulkheadError, ClientError
from supervisor.wire.frames import Generate

SECRET = "what-the-client-said"
SEED = 77
"""The seed of requests that bring none."""
USER = {"role": "user", "content": "hello"}


def chats(**members: Any) -> list[Generate]:
    """What the worker is asked for by a chat with these members, nulls and all."""
    raw = parse_object(json.dumps({"model": "m", "messages": [USER], **members}).encode())
    return parse_chat(raw).choices("r", 1.5, SEED)


def completions(**members: Any) -> list[Generate]:
    raw = parse_object(json.dumps({"model": "m", "prompt": "hello", **members}).encode())
    return COMPLETION_BODY.parse(raw).choices("r", 1.5, SEED)


def chat(**members: Any) -> Generate:
    (request,) = chats(**members)
    return request


def completion(**members: Any) -> Generate:
    (request,) = completions(**members)
    return request


ENDPOINTS = pytest.mark.parametrize("ask", [chat, completion])


def refusal(ask: Any, members: dict[str, Any]) -> BulkheadError:
    with pytest.raises(ClientError) as caught:
        ask(**members)
    assert SECRET not in caught.value.message
    return caught.value


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}


def nested(levels: int) -> Any:
    tree: Any = SECRET
    for _ in range(levels):
        tree = {"items": tree}
    return tree


NEUTRAL_CHAT: dict[str, list[Any]] = {
    "functions": [[]],
    "function_call": ["none", "auto"],
    "modalities": [["text"]],
    "audio": [],
    "moderation": [],
    "web_search_options": [],
}
NEUTRAL_TEXT: dict[str, list[Any]] = {"suffix": [""]}
