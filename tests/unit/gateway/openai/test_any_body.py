"""gateway.openai: any JSON is a request that can be sent, or a 400."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.openai.chat import ChatRequest, parse_chat
from gateway.openai.completions import COMPLETION_BODY, CompletionRequest
from gateway.openai.messages import MESSAGES_MAX
from gateway.openai.validation import parse_object
from supervisor.errors import ClientError
from supervisor.wire.codec import encode
from tests.helpers.openai_bodies import (
    NEUTRAL_CHAT,
    NEUTRAL_TEXT,
    SEED,
    USER,
    chat,
    nested,
    schema_format,
)

patient = settings(deadline=None, max_examples=100)
words = st.sampled_from(
    [
        *ChatRequest.__struct_fields__,
        *CompletionRequest.__struct_fields__,
        *NEUTRAL_CHAT,
        *NEUTRAL_TEXT,
        *("role", "content", "type", "text", "name", "include_usage", "user", "assistant"),
        *("function", "json_schema", "schema", "parameters", "tool_calls", "arguments", "id"),
        *("allowed_tools", "required", "auto", "json_object"),
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | words
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | st.text(max_size=4), inner, max_size=5)
        | st.fixed_dictionaries({"role": leaves, "content": inner})
        | st.fixed_dictionaries({"type": words, "function": inner})
    ),
    max_leaves=12,
)
functions = st.fixed_dictionaries(
    {"name": words | leaves}, optional={"parameters": trees, "strict": leaves}
)
tools = st.fixed_dictionaries({"type": st.just("function"), "function": functions | trees})
messages = st.fixed_dictionaries({"role": words, "content": trees}) | st.fixed_dictionaries(
    {"role": st.just("assistant"), "tool_calls": st.lists(tools, max_size=3)}
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(messages, max_size=3) | trees,
        "prompt": trees | st.lists(st.integers(-1, 2**33), max_size=3),
        "max_tokens": leaves,
        "n": leaves,
        "stop": trees,
        "temperature": leaves,
        "stream_options": trees,
        "tools": st.lists(tools, max_size=3) | trees,
        "tool_choice": words | tools | trees,
        "logit_bias": st.dictionaries(st.integers().map(str) | st.text(max_size=3), leaves),
        "chat_template_kwargs": trees,
        "response_format": trees
        | st.builds(schema_format, trees)
        | st.fixed_dictionaries({"type": words, "json_schema": trees}),
    },
) | st.dictionaries(words, trees, max_size=4)


@pytest.mark.parametrize("parse", [parse_chat, COMPLETION_BODY.parse])
@patient
@given(tree=bodies | trees)
def test_any_json_is_a_sendable_request_or_a_400(parse: Any, tree: Any) -> None:
    with contextlib.suppress(ClientError):
        requests = parse(parse_object(json.dumps(tree).encode())).choices("r", 1.5, SEED)
        assert all(encode(request) for request in requests)


@pytest.mark.parametrize(
    "members",
    [
        {"messages": [USER] * (MESSAGES_MAX + 1)},
        {"messages": [{"role": "user", "content": nested(900)}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 10_001}]},
        {"metadata": nested(900)},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(900)}}]},
        {"tool_choice": nested(900)},
        {"chat_template_kwargs": nested(900)},
        {"stop": ["x" * 2_000_000]},
    ],
)
def test_what_is_far_too_much_is_accepted_or_a_400(members: dict[str, Any]) -> None:
    with contextlib.suppress(ClientError):
        assert encode(chat(**members))
