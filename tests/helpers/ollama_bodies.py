"""Bodies as Ollama's clients send them, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.ollama.requests import OllamaRequest, parse_chat_body, parse_generate_body
from gateway.openai.validation import parse_object
from supervisor.errors import BulkheadError, ClientError
from supervisor.wire.frames import Generate

SEED = 77
USER = {"role": "user", "content": "hello"}


def raw(**members: Any) -> dict[str, Any]:
    return parse_object(json.dumps(members).encode())


def parsed_chat(**members: Any) -> OllamaRequest:
    return parse_chat_body(raw(**{"model": "m", "messages": [USER], **members}))


def parsed_generate(**members: Any) -> OllamaRequest:
    return parse_generate_body(raw(**{"model": "m", "prompt": "hello", **members}))


def chat(**members: Any) -> Generate:
    """What the worker is asked for by a chat with these members, nulls and all."""
    (request,) = parsed_chat(**members).choices("r", 1.5, SEED)
    return request


def generate(**members: Any) -> Generate:
    (request,) = parsed_generate(**members).choices("r", 1.5, SEED)
    return request


def refusal(ask: Any, **members: Any) -> BulkheadError:
    with pytest.raises(ClientError) as caught:
        ask(**members)
    return caught.value
