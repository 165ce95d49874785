"""gateway.openai.messages and gateway.openai.tools: a conversation in the shape that templates take, and calls."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from gateway.openai.render import Collected, Renderer, usage
from gateway.openai.tools import TOOLS_MAX
from gateway.openai.validation import NESTING_MAX
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Call, Calling, Chat, End, Token
from tests.helpers.openai_bodies import SECRET, USER, chat, nested, refusal, schema_format

CALLED: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a": 1}'},
}


def of_chat(*messages: Any) -> list[dict[str, Any]]:
    prompt = chat(messages=list(messages)).prompt
    assert isinstance(prompt, Chat)
    return prompt.messages


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_message_passes_as_it_is(role: str) -> None:
    message = {"role": role, "content": "text", "name": "ann", "tool_call_id": "call_1"}
    assert of_chat(message) == [message]


def test_a_developer_is_a_system_to_templates() -> None:
    assert of_chat({"role": "developer", "content": "x"}) == [{"role": "system", "content": "x"}]


def test_what_frameworks_note_in_an_answer_changes_nothing_when_it_comes_back() -> None:
    """litellm#25595: a conversation of many turns ended with 400."""
    noted = {"provider_specific_fields": {"reasoning": SECRET}, "annotations": [], "thinking": 1}
    function = {**CALLED["function"], "note": SECRET}
    call = {**CALLED, "function": function, "index": 0, "extra_content": {"signature": SECRET}}
    message = {"role": "assistant", "content": "x", "tool_calls": [call], **noted}
    assert of_chat(message) == [{"role": "assistant", "content": "x", "tool_calls": [CALLED]}]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert of_chat({"role": "user", "content": parts}) == [{"role": "user", "content": "one two"}]
    assert of_chat({"role": "user", "content": []}) == [{"role": "user", "content": ""}]


def test_what_is_said_about_a_text_part_changes_nothing() -> None:
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    assert of_chat({"role": "user", "content": [part]}) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "said",
    [
        {"content": [{"type": "refusal", "refusal": "no"}]},
        {"content": None, "refusal": "no"},
        {"refusal": "no"},
        {"content": "no", "refusal": None},
    ],
)
def test_a_refusal_is_text_to_the_model(said: dict[str, Any]) -> None:
    assert of_chat({"role": "assistant", **said}) == [{"role": "assistant", "content": "no"}]


def test_an_assistant_may_have_said_nothing() -> None:
    assert of_chat({"role": "assistant", "content": None}) == [{"role": "assistant", "content": ""}]
    assert of_chat({"role": "assistant"}) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize("arguments", ['{"a": 1}', "", "not JSON"])
def test_calls_stay_as_the_client_sent_them(arguments: str) -> None:
    call = {**CALLED, "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [{**call, "index": 0}]}
    assert of_chat(message) == [{"role": "assistant", "content": "", "tool_calls": [call]}]


def test_no_calls_are_none() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": []}
    assert of_chat(message) == [{"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    "thoughts",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"reasoning_content": None, "reasoning": "hm"},
    ],
)
def test_reasoning_of_the_past_is_passed_on(thoughts: dict[str, Any]) -> None:
    expected = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    assert of_chat({"role": "assistant", "content": "x", **thoughts}) == [expected]
    assert of_chat({**USER, **thoughts}) == [USER]


def test_an_answer_can_be_sent_back_as_the_sdk_dumps_it() -> None:
    said = Collected()
    said.add(Token(1, "hi", reasoning="hm", calls=(Call(0, "f", '{"a": 1}'),)))
    said.end = End("tool_calls", 1, 1)
    renderer = Renderer(chat=True, id="c", created=1, model="m")
    body = renderer.answer([said], usage([said.end], 1))
    message = ChatCompletion.model_validate_json(body).choices[0].message
    assert message.tool_calls
    expected = {
        "role": "assistant",
        "content": "hi",
        "reasoning_content": "hm",
        "tool_calls": [{**CALLED, "id": message.tool_calls[0].id}],
    }
    sent = [message.model_dump(), message.model_dump(exclude_unset=True)]
    assert of_chat(*sent) == [expected] * 2


def image() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": SECRET}}


@pytest.mark.parametrize(
    ("messages", "kind", "param"),
    [
        (SECRET, InvalidType, "messages"),
        ({"role": "user"}, InvalidType, "messages"),
        ([], InvalidValue, "messages"),
        ([SECRET], InvalidType, "messages[0]"),
        ([None], InvalidType, "messages[0]"),
        ([USER, {"content": SECRET}], MissingParameter, "messages[1].role"),
        ([{"role": None, "content": SECRET}], MissingParameter, "messages[0].role"),
        ([USER, {"role": SECRET, "content": "x"}], UnsupportedValue, "messages[1].role"),
        ([{"role": "function", "name": "f", "content": "x"}], UnsupportedValue, "messages[0].role"),
        ([{"role": 5, "content": "x"}], InvalidType, "messages[0].role"),
        ([USER, {"role": "user"}], MissingParameter, "messages[1].content"),
        ([{"role": "system", "content": None}], MissingParameter, "messages[0].content"),
        ([{"role": "tool", "tool_call_id": "x"}], MissingParameter, "messages[0].content"),
        ([{"role": "user", "content": 5}], InvalidType, "messages[0].content"),
        ([{"role": "user", "content": {"text": SECRET}}], InvalidType, "messages[0].content"),
        ([{"role": "user", "content": [SECRET]}], InvalidType, "messages[0].content[0]"),
        ([{"role": "user", "content": [image()]}], UnsupportedValue, "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "file"}]}],
            UnsupportedValue,
            "messages[0].content[1]",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": SECRET}]}],
            UnsupportedValue,
            "messages[0].content[0]",
        ),
        (
            [USER, {"role": "user", "content": [{"type": "text", "text": "x"}, {"text": SECRET}]}],
            MissingParameter,
            "messages[1].content[1].type",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            InvalidType,
            "messages[0].content[0].text",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": None}]}],
            MissingParameter,
            "messages[0].content[0].text",
        ),
        ([{**USER, "name": 5}], InvalidType, "messages[0].name"),
        ([{**USER, "audio": {"id": SECRET}}], UnsupportedParameter, "messages[0].audio"),
        (
            [{"role": "assistant", "function_call": {"name": SECRET, "arguments": ""}}],
            UnsupportedParameter,
            "messages[0].function_call",
        ),
        (
            [USER, {**USER, "tool_calls": [CALLED]}],
            UnsupportedParameter,
            "messages[1].tool_calls",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": SECRET}]}],
            MissingParameter,
            "messages[0].tool_calls[0].function",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": SECRET}]}],
            UnsupportedValue,
            "messages[0].tool_calls[0].type",
        ),
        (
            [
                {
                    "role": "assistant",
                    "tool_calls": [{"type": "function", "function": {"name": "f"}}],
                }
            ],
            MissingParameter,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "f", "arguments": {"a": SECRET}}}
                    ],
                }
            ],
            InvalidType,
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_bad_message_is_named_by_its_place(
    messages: Any, kind: type[BulkheadError], param: str
) -> None:
    error = refusal(chat, {"messages": messages})
    assert type(error) is kind
    assert error.param == param
    assert f"`{param}`" in error.message


# ── tools ────────────────────────────────────────────────────────────────────────────────────────


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


EMPTY = {"type": "object", "properties": {}}
SHOWN = {name: tool(name, parameters=EMPTY) for name in "fgh"}
TOOLS = [tool("f"), tool("g"), tool("h")]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (tool("f"), SHOWN["f"]),
        (tool("f", description=None, parameters=None, strict=None), SHOWN["f"]),
        (
            tool("a.b-c_D9", description="d", parameters={"x": [None]}, strict=True),
            tool("a.b-c_D9", description="d", parameters={"x": [None]}, strict=True),
        ),
        (
            tool("x" * 64, parameters={}, strict=False),
            tool("x" * 64, parameters={}, strict=False),
        ),
    ],
)
def test_a_tool_is_shown_as_it_was_sent(given: Any, shown: Any) -> None:
    prompt = chat(tools=[given]).prompt
    assert isinstance(prompt, Chat)
    assert prompt.tools == [shown]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": [tool(name) for name in names]},
    }


@pytest.mark.parametrize(
    ("members", "shown", "calling"),
    [
        ({}, "fgh", Calling("auto", ("f", "g", "h"))),
        ({"tool_choice": "auto"}, "fgh", Calling("auto", ("f", "g", "h"))),
        ({"parallel_tool_calls": True}, "fgh", Calling("auto", ("f", "g", "h"))),
        ({"parallel_tool_calls": False}, "fgh", Calling("auto", ("f", "g", "h"), False)),
        ({"tool_choice": "required"}, "fgh", Calling("required", ("f", "g", "h"))),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            "fgh",
            Calling("required", ("f", "g", "h"), False),
        ),
        ({"tool_choice": "none"}, "", None),
        ({"tool_choice": tool("g")}, "fgh", Calling("required", ("g",), False)),
        (
            {"tool_choice": allowed("auto", "h", "f")},
            "fh",
            Calling("auto", ("f", "h"), places=(0, 2)),
        ),
        ({"tool_choice": allowed("required", "g")}, "g", Calling("required", ("g",), places=(1,))),
        (
            {"response_format": {"type": "json_object"}},
            "fgh",
            Calling("auto", ("f", "g", "h")),
        ),
        (
            {"tool_choice": "required", "response_format": {"type": "text"}},
            "fgh",
            Calling("required", ("f", "g", "h")),
        ),
        ({"tools": []}, "", None),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, "", None),
        ({"tools": None, "tool_choice": "none"}, "", None),
    ],
)
def test_a_choice_is_what_the_model_may_do(
    members: dict[str, Any], shown: str, calling: Calling | None
) -> None:
    request = chat(**{"tools": TOOLS, **members})
    assert isinstance(request.prompt, Chat)
    assert request.prompt.tools == [SHOWN[name] for name in shown]
    assert request.calling == calling


def test_as_many_tools_as_allowed() -> None:
    calling = chat(tools=[tool(f"f{number}") for number in range(TOOLS_MAX)]).calling
    assert calling is not None
    assert len(calling.names) == TOOLS_MAX


NAME = "tools[0].function.name"
PARAMETERS = "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("members", "kind", "param"),
    [
        ({"tools": SECRET}, InvalidType, "tools"),
        ({"tools": [SECRET]}, InvalidType, "tools[0]"),
        ({"tools": [{}]}, MissingParameter, "tools[0].function"),
        ({"tools": [{"type": "function"}]}, MissingParameter, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": SECRET}]}, UnsupportedValue, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, UnsupportedValue, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, MissingParameter, NAME),
        ({"tools": [tool("")]}, InvalidValue, NAME),
        ({"tools": [tool("x" * 65)]}, InvalidValue, NAME),
        ({"tools": [tool("a b")]}, InvalidValue, NAME),
        ({"tools": [tool("a\n")]}, InvalidValue, NAME),
        ({"tools": [tool("é")]}, InvalidValue, NAME),
        ({"tools": [tool("f"), tool("f")]}, InvalidValue, "tools[1].function.name"),
        ({"tools": [tool("f", parameters=SECRET)]}, InvalidType, PARAMETERS),
        ({"tools": [tool("f", parameters=[])]}, InvalidType, PARAMETERS),
        ({"tools": [tool("f", parameters={"maximum": 2**70})]}, InvalidValue, PARAMETERS),
        ({"tools": [tool("f", parameters=nested(NESTING_MAX + 1))]}, InvalidValue, PARAMETERS),
        ({"tools": [tool("f", strict=SECRET)]}, InvalidType, "tools[0].function.strict"),
        ({"tools": [tool("f", other=1)]}, UnsupportedParameter, "tools[0].function.other"),
        ({"tools": [tool("f")] * (TOOLS_MAX + 1)}, InvalidValue, "tools"),
        ({"tool_choice": "required"}, InvalidValue, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, InvalidValue, "tool_choice"),
        ({"tool_choice": tool("f")}, InvalidValue, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": SECRET}, UnsupportedValue, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 5}, InvalidType, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": tool(SECRET)}, InvalidValue, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
            UnsupportedValue,
            "tool_choice.type",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {}}},
            MissingParameter,
            "tool_choice.function.name",
        ),
        ({"tools": TOOLS, "tool_choice": allowed("auto", SECRET)}, InvalidValue, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": allowed("auto")},
            InvalidValue,
            "tool_choice.allowed_tools.tools",
        ),
        (
            {"tools": TOOLS, "tool_choice": allowed(SECRET, "f")},
            UnsupportedValue,
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "response_format": schema_format({})},
            UnsupportedValue,
            "response_format",
        ),
        (
            {
                "tools": TOOLS,
                "tool_choice": tool("f"),
                "response_format": {"type": "json_object"},
            },
            UnsupportedValue,
            "response_format",
        ),
        ({"parallel_tool_calls": 1}, InvalidType, "parallel_tool_calls"),
    ],
)
def test_a_bad_tool_or_choice_is_named_by_its_place(
    members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(chat, members)
    assert type(error) is kind
    assert error.param == param
