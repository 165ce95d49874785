"""gateway.openai.chat: the parameters that completions do not have, and what templates are told."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.openai.messages import MESSAGES_MAX
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Chat, Schema
from tests.helpers.openai_bodies import SECRET, USER, chat, refusal


@pytest.mark.parametrize(
    "members",
    [
        {"stream_options": {"include_usage": None, "include_obfuscation": None}},
        {"chat_template_kwargs": dict.fromkeys(["enable_thinking", "reasoning_effort"])},
        {"response_format": {"type": None}},
        {"response_format": {"type": None, "json_schema": {"name": None, "schema": None}}},
        {"tool_choice": {"type": None, "function": {"name": None}}},
        {"reasoning": {"effort": None, "summary": None}},
        {"thinking": {"type": None, "budget_tokens": None}},
        {"options": {"temperature": None}},
        {"stream_options": {"include_usage": None, "chunk_size": None}},
        {"unheard_of": {"a": {"b": None}}},
        {"messages": [{**USER, "function_call": {"name": None, "arguments": None}}]},
        {"messages": [{**USER, "audio": {"id": None}, "tool_calls": None}]},
        {
            "messages": [
                {**USER, "name": None, "tool_calls": None, "audio": None, "function_call": None}
            ]
        },
    ],
)
def test_null_means_absent_inside_too(members: dict[str, Any]) -> None:
    assert chat(**members) == chat()


def test_null_means_absent_beside_what_is_there() -> None:
    strict = {"type": "json_schema", "json_schema": {"schema": {"const": None}, "strict": None}}
    tools = [{"type": "function", "function": {"name": "f", "x": None}, "strict": None}]
    asked = chat(response_format={**strict, "text": None}, tools=tools)
    assert asked.structure == Schema('{"const":null}', strict=False)
    assert asked.calling is not None


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
        ({"max_completion_tokens": -1}, None),
        ({"max_completion_tokens": -1, "max_tokens": 9}, None),
        ({"max_completion_tokens": 5, "max_tokens": -1}, 5),
        ({"max_completion_tokens": 5, "min_tokens": 5}, 5),
    ],
)
def test_the_newer_name_of_max_tokens_wins(members: dict[str, Any], tokens: int | None) -> None:
    assert chat(**members).max_tokens == tokens


@pytest.mark.parametrize(
    ("members", "logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities_of_a_chat(members: dict[str, Any], logprobs: int | None) -> None:
    assert chat(**members).logprobs == logprobs


BAD_CHAT: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    ({"max_completion_tokens": 0}, InvalidValue, "max_completion_tokens"),
    ({"max_completion_tokens": 4, "max_tokens": 9, "min_tokens": 5}, InvalidValue, "min_tokens"),
    ({"logprobs": 1}, InvalidType, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, InvalidValue, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, InvalidValue, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": True}, InvalidType, "top_logprobs"),
    ({"top_logprobs": 1}, InvalidValue, "top_logprobs"),
    ({"reasoning_effort": SECRET}, UnsupportedValue, "reasoning_effort"),
    ({"reasoning_effort": 5}, InvalidType, "reasoning_effort"),
    ({"chat_template_kwargs": SECRET}, InvalidType, "chat_template_kwargs"),
    *(
        (
            {"chat_template_kwargs": {name: SECRET}},
            UnsupportedParameter,
            f"chat_template_kwargs.{name}",
        )
        for name in ("add_generation_prompt", "messages", "tools", "strftime_now", "tokenize", "x")
    ),
    (
        {"chat_template_kwargs": {"enable_thinking": SECRET}},
        InvalidType,
        "chat_template_kwargs.enable_thinking",
    ),
    ({"messages": [USER] * (MESSAGES_MAX + 1)}, InvalidValue, "messages"),
    ({"echo": True}, UnsupportedParameter, "echo"),
    ({"best_of": 2}, UnsupportedParameter, "best_of"),
]


@pytest.mark.parametrize(("members", "kind", "param"), BAD_CHAT)
def test_a_bad_value_is_named(
    members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(chat, members)
    assert type(error) is kind
    assert error.param == param


@pytest.mark.parametrize(
    ("members", "template"),
    [
        ({}, {}),
        ({"reasoning_effort": "minimal"}, {"reasoning_effort": "minimal"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none"}),
        ({"chat_template_kwargs": {}}, {}),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": True}},
            {"enable_thinking": False, "thinking": True},
        ),
        (
            {"chat_template_kwargs": {"thinking_budget": 0, "date_string": "1 Jan 2026"}},
            {"thinking_budget": 0, "date_string": "1 Jan 2026"},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            {"reasoning_effort": "high"},
        ),
    ],
)
def test_what_the_template_is_told(members: dict[str, Any], template: dict[str, Any]) -> None:
    assert chat(**members).prompt == Chat([USER], [], template)


def test_as_many_messages_as_allowed() -> None:
    prompt = chat(messages=[USER] * MESSAGES_MAX).prompt
    assert isinstance(prompt, Chat)
    assert len(prompt.messages) == MESSAGES_MAX
