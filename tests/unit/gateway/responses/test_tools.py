"""gateway.responses.tools: flat names, and what a choice demands."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.responses.tools import HOSTED_TOOLS, CalledTool
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Calling
from tests.helpers.openai_bodies import SECRET, nested, refusal
from tests.helpers.responses import asked, function, parsed, prompt

LONG = "n" * 60


def namespace(name: str, *tools: Any, **more: Any) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "tools": list(tools), **more}


def custom(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "custom", "name": name, **more}


def shown(*tools: Any, **members: Any) -> list[dict[str, Any]]:
    """The functions that the model is shown."""
    return [each["function"] for each in prompt(tools=list(tools), **members).tools]


def names(*tools: Any, **members: Any) -> list[str]:
    return [each["name"] for each in shown(*tools, **members)]


def calling(*tools: Any, **members: Any) -> Calling | None:
    return asked(tools=list(tools), **members).calling


# ── what the model is shown ──────────────────────────────────────────────────────────────────────


def test_functions() -> None:
    schema = {"type": "object", "properties": {"a": {"default": None}}}
    given = function("f", description="d", parameters=schema, strict=None)
    assert shown(given) == [{"name": "f", "description": "d", "parameters": schema}]
    bare = {"type": "function", "name": "f"}
    assert shown(bare)[0]["parameters"] == {"type": "object", "properties": {}}
    more = {"output_schema": {}, "allowed_callers": ["direct"], "defer_loading": True}
    assert names({**bare, **more, "async": True, "cache_control": {}}) == ["f"]


@pytest.mark.parametrize(("strict", "told"), [(True, True), (False, False), (None, None)])
def test_a_default_promises_nothing_that_a_schema_could_break(strict: Any, told: Any) -> None:
    assert shown(function("f", strict=strict))[0].get("strict") == told
    made = calling(function("f", strict=strict), stream=True)
    assert made is not None
    # Calls whose arguments may have to be mended are told when they are whole.
    assert made.growing == (strict is True)
    made = calling(function("f", strict=strict))
    assert made is not None
    assert not made.growing


def test_custom_tools() -> None:
    (made,) = shown(custom("patch", description="d", format={"type": "text"}))
    assert (made["name"], made["description"]) == ("patch", "d")
    assert made["parameters"]["required"] == ["input"]
    assert made["strict"]
    assert parsed(tools=[custom("patch")]).names.called("patch") == CalledTool("patch", None, True)


def test_grammars_of_custom_tools() -> None:
    digits = {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}
    (made,) = shown(custom("count", format=digits))
    assert made["parameters"]["properties"]["input"]["pattern"] == "^(?:[0-9]+)$"
    recursive = {"type": "grammar", "syntax": "lark", "definition": 'start: "(" start ")" | "x"'}
    tools = [custom("count", format=digits), namespace("n", custom("nest", format=recursive))]
    assert parsed(tools=tools).ignored == ("tools[1].tools[0].format",)


def test_a_namespace_is_flattened() -> None:
    tools = [
        function("look"),
        namespace("team", function("ask", description="Ask."), custom("say"), description="T."),
        namespace("mcp__git__", function("log")),
    ]
    assert names(*tools) == ["look", "team__ask", "team__say", "mcp__git__log"]
    # What the namespace says stands before what its first tool says.
    assert [each.get("description") for each in shown(*tools)] == [None, "T.\n\nAsk.", None, None]
    told = parsed(tools=tools).names
    assert told.called("team__ask") == CalledTool("ask", "team", False)
    assert told.called("team__say") == CalledTool("say", "team", True)
    assert told.called("look") == CalledTool("look", None, False)
    assert told.flat("team", "ask") == "team__ask"
    assert told.flat("gone", "ask") == "gone__ask"


def test_flat_names_are_short_and_no_two_are_the_same() -> None:
    tools = [
        function("a__b"),
        namespace("a", function("b")),
        namespace("a.", function("b")),
        namespace("a b", function("b")),
        namespace(LONG, function("one" + LONG), function("two" + LONG)),
        namespace(LONG + "2", function("one" + LONG)),
        namespace("日本", function("f")),
        namespace("中国", function("f")),
    ]
    made = names(*tools)
    assert made[0] == "a__b"
    assert len(set(made)) == len(made) == 9
    assert all(len(each) <= 64 for each in made)
    assert all(each.isascii() and each.replace("_", "").isalnum() for each in made)
    assert made == names(*tools)  # prompts that are the same stay so
    told = parsed(tools=tools).names
    assert told.called(made[5]) == CalledTool("two" + LONG, LONG, False)
    assert told.called(made[7]) == CalledTool("f", "日本", False)


@pytest.mark.parametrize("kind", [*sorted(HOSTED_TOOLS), "web_search_preview_2025_03_11"])
def test_hosted_tools_are_dropped_and_named(kind: str) -> None:
    hosted = {"type": kind, "external_web_access": True, "anything": None}
    made = parsed(tools=[hosted, function("f"), hosted])
    assert names(hosted, function("f"), hosted) == ["f"]
    assert made.ignored == (f"tools.{kind}",)
    assert names(hosted) == []
    assert calling(hosted) is None
    for demanded in ({"type": kind}, {"type": kind, "name": "x"}):
        error = refusal(asked, {"tools": [hosted], "tool_choice": demanded})
        assert (type(error), error.param) == (UnsupportedValue, "tool_choice")
        assert "run it in the client" in error.message


# ── choices ──────────────────────────────────────────────────────────────────────────────────────

TOOLS = [function("look"), namespace("team", function("ask")), custom("patch")]
ALL = ("look", "team__ask", "patch")
CHOICES: list[tuple[Any, Calling | None]] = [
    (None, Calling("auto", ALL, growing=False)),
    ("auto", Calling("auto", ALL, growing=False)),
    ({"type": "auto"}, Calling("auto", ALL, growing=False)),
    ("none", None),
    ("required", Calling("required", ALL, growing=False)),
    ({"type": "function", "name": "look"}, Calling("required", ("look",), False, growing=False)),
    (
        {"type": "function", "function": {"name": "look"}},
        Calling("required", ("look",), False, growing=False),
    ),
    ({"type": "custom", "name": "patch"}, Calling("required", ("patch",), False, growing=False)),
    *(
        (chosen, Calling("required", ("team__ask",), False, growing=False))
        for chosen in (
            {"type": "function", "name": "ask", "namespace": "team"},
            {"type": "function", "name": "ask"},
            {"type": "function", "name": "team__ask"},
        )
    ),
    (
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "custom", "name": "patch"}, {"type": "function", "name": "look"}],
        },
        Calling("required", ("look", "patch"), True, (0, 2), growing=False),
    ),
    (
        {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "web_search"}, {"type": "namespace", "name": "team"}],
        },
        Calling("auto", ("team__ask",), True, (1,), growing=False),
    ),
    ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, None),
]


@pytest.mark.parametrize(("choice", "made"), CHOICES)
def test_choices(choice: Any, made: Calling | None) -> None:
    assert calling(*TOOLS, tool_choice=choice) == made


def test_one_call_at_a_time() -> None:
    made = calling(*TOOLS, parallel_tool_calls=False)
    assert made is not None
    assert not made.parallel


def test_a_name_without_its_namespace_must_be_plain() -> None:
    tools = [namespace("a", function("f")), namespace("b", function("f"))]
    error = refusal(asked, {"tools": tools, "tool_choice": {"type": "function", "name": "f"}})
    assert (type(error), error.param) == (InvalidValue, "tool_choice.name")


BAD: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    ({"tools": SECRET}, InvalidType, "tools"),
    ({"tools": [SECRET]}, InvalidType, "tools[0]"),
    ({"tools": [{}]}, MissingParameter, "tools[0].type"),
    ({"tools": [{"type": SECRET}]}, UnsupportedValue, "tools[0].type"),
    ({"tools": [{"type": "hosted"}]}, UnsupportedValue, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, MissingParameter, "tools[0].name"),
    ({"tools": [function(SECRET + "!")]}, InvalidValue, "tools[0].name"),
    ({"tools": [function("n" * 65)]}, InvalidValue, "tools[0].name"),
    ({"tools": [function("f\n")]}, InvalidValue, "tools[0].name"),
    ({"tools": [function("f", x=1)]}, UnsupportedParameter, "tools[0].x"),
    ({"tools": [function("f"), function("f")]}, InvalidValue, "tools[1].name"),
    ({"tools": [function("f", parameters=nested(200))]}, InvalidValue, "tools[0].parameters"),
    ({"tools": [function("f", parameters=SECRET)]}, InvalidType, "tools[0].parameters"),
    ({"tools": [function("f")] * 129}, InvalidValue, "tools"),
    (
        {"tools": [namespace("t", function("f"), function("f"))]},
        InvalidValue,
        "tools[0].tools[1].name",
    ),
    ({"tools": [namespace("t", {"type": SECRET})]}, UnsupportedValue, "tools[0].tools[0].type"),
    (
        {"tools": [namespace("t", function("f", parameters=nested(200)))]},
        InvalidValue,
        "tools[0].tools[0].parameters",
    ),
    (
        {"tools": [namespace(n, *(function(f"f{i}") for i in range(300))) for n in "ab"]},
        InvalidValue,
        "tools",
    ),
    ({"tools": [custom("c", format={"type": SECRET})]}, UnsupportedValue, "tools[0].format.type"),
    (
        {"tools": [custom("c", format={"type": "grammar", "syntax": "regex", "definition": "("})]},
        InvalidValue,
        "tools[0].format.definition",
    ),
    ({"tool_choice": "required"}, InvalidValue, "tool_choice"),
    ({"tool_choice": SECRET}, UnsupportedValue, "tool_choice"),
    ({"tool_choice": {"type": SECRET}}, UnsupportedValue, "tool_choice.type"),
    ({"tool_choice": {"type": "function"}}, MissingParameter, "tool_choice.name"),
    ({"tool_choice": {"type": "function", "name": SECRET}}, InvalidValue, "tool_choice.name"),
    ({"tool_choice": {"type": "custom"}}, MissingParameter, "tool_choice.name"),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": SECRET}]}},
        UnsupportedValue,
        "tool_choice.tools[0].type",
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom"}]}},
        MissingParameter,
        "tool_choice.tools[0].name",
    ),
    *(
        (
            {
                "tools": [function("f")],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": mode,
                    "tools": [{"type": "namespace", "name": SECRET}],
                },
            },
            InvalidValue,
            "tool_choice.tools[0].name",
        )
        for mode in ("auto", "required")
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "mcp"}]}},
        UnsupportedValue,
        "tool_choice",
    ),
    (
        {
            "tools": [function("f")],
            "tool_choice": "required",
            "text": {"format": {"type": "json_object"}},
        },
        UnsupportedValue,
        "text.format",
    ),
]


@pytest.mark.parametrize(("members", "kind", "param"), BAD)
def test_what_is_wrong_is_named(
    members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(asked, members)
    assert (type(error), error.param) == (kind, param)
