"""Calls that the model must make: their form, and what of their schemas holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from supervisor.errors import ClientError, InvalidValue, UnsupportedValue
from supervisor.wire.frames import Calling, Chat, Generate, Schema, Text
from tests.helpers.grammars import CLOSED, encode, ends, follow
from tests.property import structured
from tests.property.structured import Chooser, allowed, constraint, fault, sample, text_of, wrapper
from worker.grammar import call_rules
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.compile import ConstraintCompiler
from worker.grammar.schema import compilable

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": CLOSED}}
ODD = 'g "é'
TOOLS: list[dict[str, Any]] = [
    TOOL,
    {"type": "function", "function": {"name": ODD, "parameters": {}}},
    {"type": "function", "function": {"name": "h", "parameters": {"properties": {"b": {}}}}},
]


def calling(
    tools: Sequence[dict[str, Any]] = TOOLS,
    names: Sequence[str] = ("f", ODD, "h"),
    *,
    parallel: bool = True,
    hermes: bool = False,
) -> tuple[Any, AnswerConstraint]:
    model = wrapper(hermes=hermes)
    request = Generate(
        "r",
        Chat([], tools=list(tools)),
        0.0,
        calling=Calling("required", tuple(names), parallel),
        structure=Schema('{"type": "integer"}'),
    )
    made = ConstraintCompiler(model, len(model)).compile(request)
    assert isinstance(made, AnswerConstraint)
    return model, made


def test_a_plain_request_has_none() -> None:
    grammars = structured.grammars()
    assert grammars.compile(Generate("r", Text("x"), 0.0)) is None
    chat = Chat([], tools=[TOOL])
    assert grammars.compile(Generate("r", chat, 0.0, calling=Calling("auto", ("f",)))) is None


@pytest.mark.parametrize(
    ("written", "wrong"),
    [('{"a": 1,', "}"), ('{"a": "\\', "d"), ('{"a": ', "T"), ('{"a": 1\n', '"')],
)
def test_a_demanded_call_of_any_object_is_exact(
    written: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as it grows: nothing in it could be mended."""

    def refuse(*_: object, **__: object) -> str:
        raise UnsupportedValue("not at all", param="tools")

    monkeypatch.setattr(call_rules, "compilable", refuse)
    model, grammar = calling([TOOL], ("f",))
    follow(grammar, encode(model, '[{"name": "f", "arguments": ' + written))
    assert model.encode(wrong)[0] not in allowed(grammar)


def test_calls_as_an_array() -> None:
    model, grammar = calling()
    call = '{"name": "f", "arguments": {"a": 1}}'
    follow(grammar, encode(model, f"[{call}"))
    assert model.encode("]")[0] in allowed(grammar)
    odd = '{"name": "g \\"é", "arguments": {"x": [1, 2]}}'
    follow(grammar, encode(model, f', {odd}, {{"name": "h", "arguments": {{"b": null}}}}]'))
    assert allowed(grammar) == ends()


def test_calls_in_the_form_of_hermes() -> None:
    """The markers are tokens of their own."""
    model, grammar = calling(hermes=True)
    (opening,) = encode(model, "<tool_call>")
    assert allowed(grammar) == [opening]
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    follow(grammar, encode(model, call))
    assert allowed(grammar) == sorted([*model.eos_token_ids, *encode(model, "\n")])
    follow(grammar, encode(model, "\n" + call))
    assert grammar.complete


@pytest.mark.parametrize("hermes", [False, True])
def test_one_call_where_they_may_not_be_parallel(hermes: bool) -> None:
    model, grammar = calling(parallel=False, hermes=hermes)
    call = '{"name": "f", "arguments": {"a": 1}}'
    follow(grammar, encode(model, f"<tool_call>\n{call}\n</tool_call>" if hermes else f"[{call}]"))
    assert allowed(grammar) == sorted(model.eos_token_ids)


@pytest.mark.parametrize("hermes", [False, True])
def test_the_number_of_calls_is_bounded(hermes: bool) -> None:
    model, grammar = calling(hermes=hermes)
    call = '{"name": "f", "arguments": {"a": 1}}'
    text = (
        "\n".join([f"<tool_call>\n{call}\n</tool_call>"] * 16)
        if hermes
        else "[" + ", ".join([call] * 16) + "]"
    )
    follow(grammar, encode(model, text))
    assert allowed(grammar) == sorted(model.eos_token_ids)


def test_only_tools_that_may_be_called() -> None:
    model, grammar = calling(names=("h",))
    follow(grammar, encode(model, '[{"name": "'))
    assert allowed(grammar) == encode(model, "h")


@pytest.mark.parametrize("hermes", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_sampled_calls(hermes: bool, parallel: bool) -> None:
    """Judged without grammars: json, and the tools' own schemas."""
    model, _ = calling(hermes=hermes)
    made = [calling(hermes=hermes, parallel=parallel)[1] for _ in range(12)]
    counts = set()
    for start in made:
        start.vocabulary = made[0].vocabulary
    found = [
        sample([grammar], [Chooser(model, seed, patience=30.0)])[0]
        for seed, grammar in enumerate(made)
    ]
    for tokens in filter(None, found):
        text = text_of(model, tokens)
        if hermes:
            parts = text.split("<tool_call>\n")
            assert parts[0] == ""
            assert all(part.rstrip("\n").endswith("\n</tool_call>") for part in parts[1:])
            calls = [json.loads(part.replace("</tool_call>", "")) for part in parts[1:]]
        else:
            calls = json.loads(text)
        counts.add(len(calls))
        for call in calls:
            assert list(call) == ["name", "arguments"]
            schemas = {tool["function"]["name"]: tool["function"] for tool in TOOLS}
            schema = {"type": "object", **schemas[call["name"]].get("parameters", {})}
            assert not fault(schema, json.dumps(call["arguments"]))
    assert counts
    assert max(counts) <= (16 if parallel else 1)


def test_references_lead_to_each_tool_s_own_definitions() -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/x"}},
            "required": ["x"],
            "$defs": {"x": {"type": kind}},
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    model, grammar = calling([tool("f", "integer"), tool("h", "null")])
    follow(grammar, encode(model, '[{"name": "f", "arguments": {"x": 1}}, '))
    follow(grammar, encode(model, '{"name": "h", "arguments": {"x": null}}]'))
    assert grammar.complete


def test_what_a_strict_tool_promises_is_kept_or_refused() -> None:
    parameters = {"properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    loose = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    model, grammar = calling([loose])
    follow(grammar, encode(model, '[{"name": "f", "arguments": {"a": [1, 1]}}]'))
    strict = {"type": "function", "function": {**loose["function"], "strict": True}}  # type: ignore[dict-item]
    with pytest.raises(UnsupportedValue, match="`uniqueItems`") as caught:
        calling([strict])
    assert caught.value.param == "tools[0].function.parameters"


LENIENT: list[dict[str, Any]] = [
    {"minimum": -9223372036854775808}, {"maximum": 2**60}, {"multipleOf": 1234567},
    {"multipleOf": 1e300},
    {"pattern": "[a[b]]"}, {"pattern": "(?=a)b"}, {"pattern": "(a)\\1"}, {"pattern": "("},
    {"pattern": "x" * 5000},
    {"const": "\x01"}, {"const": {"a": 2**60}}, {"enum": [2**60]}, {"enum": ["y" * 5000]},
    {"$id": "https://x/y"},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"not": {"type": "null"}},
    {"propertyNames": {"maxLength": 3}}, {"$ref": "https://x/y"}, {"uniqueItems": True},
    {"properties": {"\x01": {}}, "required": ["\x01"]}, {"required": ["z" * 5000]},
    {"patternProperties": {"(?=a)": {}}, "additionalProperties": False}, {"minProperties": 3},
]  # fmt: skip


@pytest.mark.parametrize("keywords", LENIENT, ids=range(len(LENIENT)))
def test_of_a_tool_that_is_not_strict_what_can_t_be_enforced_is_dropped(
    keywords: dict[str, Any],
) -> None:
    """And all else of it is enforced."""
    parameters = {
        "type": "object",
        "properties": {"a": keywords, "n": {"type": "integer"}},
        "required": ["a", "n"],
    }
    model, grammar = calling(
        [{"type": "function", "function": {"name": "f", "parameters": parameters}}], ("f",)
    )
    kind = "{}" if {"properties", "required"} & keywords.keys() else "7"
    follow(grammar, encode(model, f'[{{"name": "f", "arguments": {{"a": {kind}, "n": '))
    assert not set(encode(model, '"n{')) & set(allowed(grammar))
    follow(grammar, encode(model, "3}}]"))
    assert grammar.complete
    with pytest.raises(ClientError):
        constraint(parameters)


def test_what_is_dropped_of_a_name_takes_what_it_would_forbid_along() -> None:
    found = json.loads(
        compilable(
            {"patternProperties": {"(?=a)": {}, "^b": {}}, "additionalProperties": False},
            "tools",
            lenient=True,
        )
    )
    assert found["patternProperties"] == {"^b": {}}
    assert "additionalProperties" not in found


@pytest.mark.parametrize(
    "broken",
    [{"minimum": "1"}, {"multipleOf": 0}, {"multipleOf": -1}, {"$ref": "#/nowhere"}, {"allOf": 3}]
)  # fmt: skip
def test_what_is_broken_is_refused_of_any_tool(broken: dict[str, Any]) -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": broken}}}
    with pytest.raises(ClientError):
        calling([{"type": "function", "function": tool}], ("f",))


@pytest.mark.parametrize(
    "parameters", [5, [], False, {"type": "string"}, {"type": "object", "properties": 5}]
)
def test_broken_parameters(parameters: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        calling([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    assert caught.value.param == "tools[0].function.parameters"


def test_no_tool_to_call() -> None:
    with pytest.raises(InvalidValue):
        calling(names=("nobody",))


def test_a_function_without_parameters_takes_none() -> None:
    model, grammar = calling([{"type": "function", "function": {"name": "f"}}], ("f",))
    follow(grammar, encode(model, '[{"name": "f", "arguments": {'))
    assert allowed(grammar) == encode(model, "}")
