"""gateway.anthropic.tools: what the model is shown, and what it may do with it."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import ToolUnionParam
from anthropic.types.beta import BetaToolUnionParam

from gateway.anthropic.tools import TOOLS_MAX, offered_tools
from supervisor.errors import (
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Calling
from tests.helpers.anthropic_bodies import (
    SECRET,
    WEATHER,
    chat,
    generate,
    parsed,
    refusal,
    sdk_types,
)

SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
SCREEN = {"type": "computer_20250124", "name": "computer", "display_width_px": 9}
BASH = {"type": "bash_20250124", "name": "bash"}
SCHEMA: Any = WEATHER["input_schema"]


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "input_schema": {"type": "object"}, **more}


def test_a_tool_is_shown_as_templates_know_it() -> None:
    (tool,) = chat(tools=[WEATHER]).tools
    assert tool == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": SCHEMA,
        },
    }


def test_what_a_tool_may_have_besides() -> None:
    members = {
        "type": "custom",
        "strict": True,
        "cache_control": {"type": "ephemeral"},
        "defer_loading": True,
        "eager_input_streaming": None,
        "allowed_callers": ["direct", "code_execution_20250825"],
        "input_examples": [{"city": "Ulm", "at": None}],
        "input_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMA},
    }
    (tool,) = chat(tools=[{**WEATHER, **members}]).tools
    function = tool["function"]
    assert function["strict"] is True
    assert function["parameters"] == SCHEMA
    assert function["description"].splitlines() == [
        "Tells the weather.",
        'Example of an input: {"city":"Ulm","at":null}',
    ]


def test_nulls_of_a_schema_stay() -> None:
    schema = {"type": "object", "properties": {"a": {"default": None, "enum": [None, 1]}}}
    (tool,) = chat(tools=[{**WEATHER, "input_schema": schema}]).tools
    assert tool["function"]["parameters"] == schema


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        (None, Calling("auto", ("a", "b"), growing=False)),
        ({"type": "auto"}, Calling("auto", ("a", "b"), growing=False)),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            Calling("auto", ("a", "b"), parallel=False, growing=False),
        ),
        ({"type": "any"}, Calling("required", ("a", "b"), growing=False)),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            Calling("required", ("a", "b"), parallel=False, growing=False),
        ),
        (
            {"type": "tool", "name": "b"},
            Calling("required", ("b",), parallel=False, growing=False),
        ),
        ({"type": "none"}, None),
    ],
)
def test_choices(choice: Any, calling: Calling | None) -> None:
    request = generate(tools=[named("a"), named("b")], tool_choice=choice)
    assert request.calling == calling
    assert len(chat(tools=[named("a"), named("b")], tool_choice=choice).tools) == 2 * (
        calling is not None
    )


@pytest.mark.parametrize(
    ("stream", "strict", "growing"),
    [(True, True, True), (True, None, False), (False, True, False)],
)
def test_calls_grow_where_their_schema_holds(stream: bool, strict: Any, growing: bool) -> None:
    tools = [named("a", strict=True), named("b", strict=strict)]
    calling = generate(tools=tools, stream=stream).calling
    assert calling is not None
    assert calling.growing is growing


def test_tools_that_nobody_runs_here_are_left_out_and_named() -> None:
    tools = [SEARCH, WEATHER, SCREEN, named("late", allowed_callers=["code_execution_20260120"])]
    request = parsed(tools=tools)
    (generated,) = request.choices("r", 1.5, 1)
    assert generated.calling == Calling("auto", ("weather",), places=(1,), growing=False)
    assert request.ignored() == (
        "tools.web_search_20250305",
        "tools.computer_20250124",
        "tools.code_execution",
    )
    assert generate(tools=[SEARCH]).calling is None
    assert parsed(tools=[SEARCH], tool_choice={"type": "none"}).ignored() == (
        "tools.web_search_20250305",
    )


@pytest.mark.parametrize(
    ("choice", "kind", "param"),
    [
        ({"type": "any"}, InvalidValue, "tool_choice"),
        ({"type": "tool", "name": "web_search"}, UnsupportedValue, "tool_choice.name"),
        ({"type": "tool", "name": SECRET}, InvalidValue, "tool_choice.name"),
        ({"type": "tool"}, MissingParameter, "tool_choice.name"),
        ({"type": "must"}, UnsupportedValue, "tool_choice.type"),
        ("auto", InvalidType, "tool_choice"),
    ],
)
def test_choices_that_cannot_be_met(choice: Any, kind: Any, param: str) -> None:
    error = refusal(tools=[SEARCH], tool_choice=choice)
    assert (type(error), error.param) == (kind, param)


@pytest.mark.parametrize(
    ("tool", "kind", "param"),
    [
        ({"name": "a"}, MissingParameter, "tools[1].input_schema"),
        ({"input_schema": {}}, MissingParameter, "tools[1].name"),
        ({}, MissingParameter, "tools[1].name"),
        (named("a b"), InvalidValue, "tools[1].name"),
        (named("x" * 129), InvalidValue, "tools[1].name"),
        (named("a\n"), InvalidValue, "tools[1].name"),
        (named("weather"), InvalidValue, "tools[1].name"),
        (named("a", description=3), InvalidType, "tools[1].description"),
        (named("a", unheard_of=3), UnsupportedParameter, "tools[1].unheard_of"),
        (named("a", input_examples=[1]), InvalidType, "tools[1].input_examples[0]"),
        ({"name": "a", "input_schema": {"const": 2**70}}, InvalidValue, "tools[1].input_schema"),
        (named("a", input_examples=[{"a": 2**70}]), InvalidValue, "tools[1].input_examples"),
        (named("a", type="function"), UnsupportedValue, "tools[1].type"),
        (named("a", type=3), InvalidType, "tools[1].type"),
        (3, InvalidType, "tools[1]"),
    ],
)
def test_tools_that_are_none(tool: Any, kind: Any, param: str) -> None:
    error = refusal(tools=[WEATHER, tool])
    assert (type(error), error.param) == (kind, param)


def test_as_many_as_agents_have() -> None:
    assert len(chat(tools=[named(f"t{n}") for n in range(TOOLS_MAX)]).tools) == TOOLS_MAX
    assert refusal(tools=[named(f"t{n}") for n in range(TOOLS_MAX + 1)]).param == "tools"


# ── Anthropic's own ──────────────────────────────────────────────────────────────────────────────


def test_every_tool_of_the_sdk_is_offered_or_named() -> None:
    types = sdk_types(ToolUnionParam, BetaToolUnionParam) - {"custom"}
    assert len(types) > 20
    offered = set()
    for kind in types:
        made = offered_tools([{"type": kind, "name": "x"}], None)
        assert bool(made.tools) != bool(made.ignored), kind
        if made.tools:
            offered.add(kind.rpartition("_")[0])
    assert offered == {"bash", "text_editor", "memory"}


@pytest.mark.parametrize(
    ("kind", "name", "commands", "inserted"),
    [
        ("text_editor_20250124", "str_replace_editor", 5, "new_str"),
        ("text_editor_20250728", "str_replace_based_edit_tool", 4, "insert_text"),
        ("memory_20250818", "memory", 6, "insert_text"),
    ],
)
def test_known_tools_are_shown_in_their_form(
    kind: str, name: str, commands: int, inserted: str
) -> None:
    (tool,) = chat(tools=[{"type": kind, "name": name, "cache_control": None}]).tools
    function = tool["function"]
    assert function["name"] == name
    members = function["parameters"]["properties"]
    assert len(members["command"]["enum"]) == commands
    assert "insert" in members[inserted]["description"]


def test_bash_is_shown_in_its_form() -> None:
    request = generate(tools=[BASH], tool_choice={"type": "tool", "name": "bash"})
    assert request.calling == Calling("required", ("bash",), parallel=False, growing=False)
    (tool,) = chat(tools=[BASH]).tools
    assert set(tool["function"]["parameters"]["properties"]) == {"command", "restart"}


def test_a_known_type_of_an_unknown_date_is_of_its_family() -> None:
    assert chat(tools=[{"type": "bash_20990101", "name": "bash"}]).tools
    assert refusal(tools=[{"type": "juggle_20250101", "name": "j"}]).param == "tools[0].type"
