"""Bodies as Anthropic's clients send them, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

from gateway.anthropic.request import MessagesRequest, parse_messages
from gateway.openai.validation import parse_object
from supervisor.errors import BulkheadError, ClientError
from supervisor.wire.frames import Chat, Generate

SECRET = "what-the-client-said"
SEED = 77
"""The seed of all requests: Anthropic's API has none."""
USER = {"role": "user", "content": "hello"}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


def parsed(**members: Any) -> MessagesRequest:
    """A request with these members, nulls and all."""
    body = {"model": "m", "max_tokens": 2000, "messages": [USER], **members}
    return parse_messages(parse_object(json.dumps(body).encode()))


def generate(**members: Any) -> Generate:
    """What the worker is asked for."""
    (request,) = parsed(**members).choices("r", 1.5, SEED)
    return request


def chat(**members: Any) -> Chat:
    """The prompt of it."""
    prompt = generate(**members).prompt
    assert isinstance(prompt, Chat)
    return prompt


def said(*messages: Any, **members: Any) -> list[dict[str, Any]]:
    """The messages that a template gets."""
    return chat(messages=list(messages), **members).messages


def refusal(**members: Any) -> BulkheadError:
    with pytest.raises(ClientError) as caught:
        generate(**members)
    assert SECRET not in caught.value.message
    return caught.value


def sdk_types(*kinds: Any) -> set[str]:
    """What `type` may be in these types of the SDK, which may be unions."""
    told: set[str] = set()
    for kind in kinds:
        if is_typeddict(kind):
            told |= _words(get_type_hints(kind).get("type"))
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            told |= _words(kind.model_fields["type"].annotation)
        else:
            told |= sdk_types(*get_args(kind))
    return told


def _words(hint: Any) -> set[str]:
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return {word for each in get_args(hint) for word in _words(each)}
