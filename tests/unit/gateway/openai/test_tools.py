"""gateway.openai.tools: what the model may call, and what the answer has to be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.openai.tools import TOOLS_MAX, NamedSchema, SchemaFormat, answer_structure
from gateway.openai.validation import NESTING_MAX
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Calling, Chat, Schema
from tests.helpers.openai_bodies import SECRET, chat, nested, refusal, schema_format


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


EMPTY = {"type": "object", "properties": {}}
SHOWN = {name: tool(name, parameters=EMPTY) for name in "fgh"}


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


TOOLS = [tool("f"), tool("g"), tool("h")]


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
        ({"tool_choice": "any"}, "fgh", Calling("required", ("f", "g", "h"))),
        ({"tool_choice": {"type": "auto"}}, "fgh", Calling("auto", ("f", "g", "h"))),
        ({"tool_choice": {"type": "none"}}, "", None),
        ({"tool_choice": {"type": "required"}}, "fgh", Calling("required", ("f", "g", "h"))),
        ({"tool_choice": {"type": "any"}}, "fgh", Calling("required", ("f", "g", "h"))),
        (
            {"tool_choice": {"type": "tool", "name": "g"}},
            "fgh",
            Calling("required", ("g",), False),
        ),
        (
            {"tool_choice": {"type": "function", "name": "g"}},
            "fgh",
            Calling("required", ("g",), False),
        ),
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
    request = chat(**{"tools": TOOLS, "stream": True, **members})
    assert isinstance(request.prompt, Chat)
    assert request.prompt.tools == [SHOWN[name] for name in shown]
    assert request.calling == (calling and replace(calling, growing=False))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("strict", [(True, True), (True, None), (False, True)])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_are_told_as_they_grow_in_a_stream_whose_tools_are_all_strict(
    stream: bool, strict: tuple[bool | None, ...], choice: str
) -> None:
    """What others write may have to be mended, and is told when it is whole."""
    tools = [tool(f"f{number}", strict=each) for number, each in enumerate(strict)]
    calling = chat(tools=tools, stream=stream, tool_choice=choice).calling
    assert calling is not None
    assert calling.growing is (stream and all(strict))


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


# ── formats ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (schema_format({}), {}),
        (schema_format({"const": None}, strict=True), {"const": None}),
        (schema_format({"type": "object"}, strict=False), {"type": "object"}),
        (schema_format({"type": "array"}, strict=None, description="x"), {"type": "array"}),
        (schema_format({"é": [1, 1.5, "x", {"": True}]}), {"é": [1, 1.5, "x", {"": True}]}),
        ({"type": "json_object", "schema": {"const": None}}, {"const": None}),
        ({"type": "json_schema", "schema": {"const": 1}}, {"const": 1}),
        ({"type": "json", "value": {"enum": [None]}}, {"enum": [None]}),
    ],
)
def test_a_format_is_a_schema(wanted: Any, schema: Any) -> None:
    structure = chat(response_format=wanted).structure
    if schema is None:
        assert structure is None
    else:
        assert isinstance(structure, Schema)
        assert json.loads(structure.schema) == schema


@pytest.mark.parametrize(
    ("wanted", "kind", "param"),
    [
        (SECRET, InvalidType, "response_format"),
        ({}, MissingParameter, "response_format.type"),
        ({"type": SECRET}, UnsupportedValue, "response_format.type"),
        ({"type": "json_schema"}, MissingParameter, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": None},
            MissingParameter,
            "response_format.json_schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            MissingParameter,
            "response_format.json_schema.schema",
        ),
        (schema_format(None), MissingParameter, "response_format.json_schema.schema"),
        (schema_format(True), InvalidType, "response_format.json_schema.schema"),
        (schema_format({"minimum": 2**70}), InvalidValue, "response_format.json_schema.schema"),
        (
            schema_format(nested(NESTING_MAX + 1)),
            InvalidValue,
            "response_format.json_schema.schema",
        ),
        (
            schema_format({}, other=SECRET),
            UnsupportedParameter,
            "response_format.json_schema.other",
        ),
        ({"type": "json_object", "scheme": {}}, UnsupportedParameter, "response_format.scheme"),
        ({"type": "json_object", "schema": [SECRET]}, InvalidType, "response_format.schema"),
        (
            {"type": "json_schema", "schema": {"minimum": 2**70}},
            InvalidValue,
            "response_format.schema",
        ),
        ({"type": "json"}, MissingParameter, "response_format.value"),
        ({"type": "regex", "value": ""}, InvalidValue, "response_format.value"),
        ({"type": "regex", "value": "("}, InvalidValue, "response_format.value"),
        ({"type": "regex", "value": "(?=a)"}, UnsupportedValue, "response_format.value"),
        ({"type": "grammar", "grammar": "root ::= x"}, InvalidValue, "response_format.grammar"),
    ],
)
def test_a_bad_format_is_named_by_its_place(
    wanted: Any, kind: type[BulkheadError], param: str
) -> None:
    error = refusal(chat, {"response_format": wanted})
    assert type(error) is kind
    assert error.param == param


def test_a_schema_may_be_nested_as_deep_as_anyone_writes_them() -> None:
    assert chat(response_format=schema_format(nested(NESTING_MAX))).structure


@pytest.mark.parametrize(("strict", "kept"), [(True, True), (False, False), (None, False)])
def test_a_schema_is_a_promise_if_it_is_strict(strict: bool | None, kept: bool) -> None:
    """OpenAI's default is that it is not."""
    named = NamedSchema({"type": "array", "uniqueItems": True}, "n", strict=strict)
    structure = answer_structure(SchemaFormat(named))
    assert structure is not None
    assert structure.strict is kept
    assert json.loads(structure.schema) == named.schema
