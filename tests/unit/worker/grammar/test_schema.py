"""Which schemas are served, which are refused, and in what words."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateway.openai.validation import check_plain
from supervisor.errors import ClientError, InvalidValue, UnsupportedValue
from supervisor.wire.frames import SCHEMA_PLACE as SCHEMA
from supervisor.wire.frames import Generate, Schema, Text
from tests.helpers.grammars import OBJECT, encode, members, outcome, push
from tests.property import structured
from tests.property.structured import Chooser, allowed, constraint, wrapper
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.schema import MAX_TEXT

HANGS = 30.0
"""Seconds after which something hangs: what is tested takes under one."""


@pytest.mark.parametrize("name", structured.refused())
def test_refused(name: str) -> None:
    schema, word = structured.refused()[name]
    with pytest.raises((InvalidValue, UnsupportedValue)) as caught:
        constraint(schema)
    assert caught.value.param == "response_format"
    assert word in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("name", structured.refused())
def test_without_strict_nothing_is_refused_but_what_is_broken(name: str) -> None:
    schema, _ = structured.refused()[name]
    if isinstance(outcome(schema), UnsupportedValue):
        assert allowed(loosely(schema))


def loosely(schema: object) -> AnswerConstraint:
    structure = Schema(json.dumps(schema), strict=False)
    made = structured.grammars().compile(Generate("r", Text("x"), 0.0, structure=structure))
    assert isinstance(made, AnswerConstraint)
    return made


def test_without_strict_all_else_of_a_schema_is_enforced() -> None:
    tags = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
    schema = {
        "type": "object",
        "properties": {"path": {"type": "string", "format": "path"}, "tags": tags},
        "required": ["path", "tags"],
        "additionalProperties": False,
    }
    grammar = loosely(schema)
    assert push(grammar, '{"path": "/", "tags": [1, 1')
    assert not set(encode(wrapper(), '"{')) & set(allowed(grammar))
    push(grammar, "]}")
    assert grammar.complete
    del tags["uniqueItems"]
    assert isinstance(outcome(schema), AnswerConstraint)


@pytest.mark.parametrize("root", ["type", "$ref"])
def test_of_what_can_t_be_enforced_at_all_the_type_is_left(root: str) -> None:
    many = members(f"n{i}" for i in range(5000))
    schema = many if root == "type" else {"$ref": "#/$defs/m", "$defs": {"m": many}}
    assert isinstance(outcome(schema), UnsupportedValue)
    grammar = loosely(schema)
    assert not set(encode(wrapper(), '[1"')) & set(allowed(grammar))
    push(grammar, '{"x": [1]}')
    assert grammar.complete


@pytest.mark.parametrize("text", ["", "{", '{"const": NaN}', "nul", "[" * 100_000, "{} {}"])
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(InvalidValue, match="not JSON"):
        structured.grammars().compile(Generate("r", Text("x"), 0.0, structure=Schema(text)))


def nested(levels: int, keyword: str = "properties") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {keyword: {"a": schema} if keyword == "properties" else schema}
    return schema


def chain(links: int, step: str) -> dict[str, Any]:
    """Definitions that lead from one to the next: they overflowed llguidance's stack."""

    def link(i: int) -> dict[str, Any]:
        if i == links:
            return {"type": "null"}
        ref = {"$ref": f"#/$defs/d{i}"}
        return {"properties": {"a": ref}} if step == "properties" else {step: [ref, OBJECT]}

    return {"$ref": "#/$defs/d0", "$defs": {f"d{i}": link(i + 1) for i in range(links)}}


HARD: dict[str, Any] = {
    "10 MB": {"description": "x" * 10_000_000},
    "deep members": nested(5_0),
    "deeper members": nested(200),
    "deep items": nested(90, "items"),
    "deeper items": nested(300, "items"),
    "short chain": chain(100, "properties"),
    "long chain": chain(2000, "properties"),
    "long chain of choices": chain(2000, "anyOf"),
    "long chain of merges": chain(2000, "allOf"),
    "a billion items": {"type": "array", "minItems": 10**9},
    "a billion characters": {"type": "string", "minLength": 10**9},
    "at most a billion": {"type": "string", "maxLength": 10**9},
    "repetitions": {"type": "string", "pattern": "((((a{0,99}){0,99}){0,99}){0,99}){0,99}"},
    "a billion letters": {"type": "string", "pattern": "a{1000000000}"},
    "states": {"type": "string", "pattern": "[ab]*a[ab]{30}"},
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "brackets": {"type": "string", "pattern": "(" * 500 + "a" + ")*" * 500},
    "intersection": {"allOf": [{"type": "string",
        "pattern": f"^(.*a{{{i}}})*$"} for i in range(9)]},
    "huge enum": {"enum": [f"value {i}" for i in range(9000)]},
    "huge members": {"properties": {f"p{i}": {} for i in range(5000)}},
    "many members": {"properties": {f"p{i}": {} for i in range(999)}},
    "many patterns": {"patternProperties": {f"^{i}x": {} for i in range(500)}},
    "merged choices": {
        "allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(5)]} for i in range(9)]},
    "multiple": {"type": "integer", "multipleOf": 2**50},
    "small multiple": {"type": "number", "multipleOf": 1e-300},
    "no end": {"$ref": "#/$defs/a",
        "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}},
        "required": ["a"]}}},
    "wrong everywhere": {"type": None, "properties": 5, "required": {}, "enum": 1, "allOf": 3},
    "wrong allOf and format": {"format": "date", "allOf": 7},
    "wrong required": {"required": [1, None, {}]},
    "wrong names": {"required": 7, "properties": None},
    "wrong reference": {"$ref": 5},
    "reference to no schema": {"$ref": "#/x/0", "x": [5]},
    "reference past the end": {"$ref": "#/x/7", "x": [5]},
    "empty reference": {"$ref": ""},
    "options of the wrong type": {"x-guidance": 5, "type": "null"},
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_nothing_hangs_or_kills(name: str) -> None:
    """Served or refused, but soon; the masks too."""
    structured.grammars().compile(structured.request({}))
    started = time.monotonic()
    match outcome(HARD[name]):
        case ClientError() as error:
            assert error.param == "response_format"
            assert len(error.message) < 1000
        case grammar:
            choose = Chooser(wrapper(), 1)
            for length in range(8):
                tokens = allowed(grammar)
                assert tokens
                grammar.push(choose(tokens, length))
    assert time.monotonic() - started < HANGS


@pytest.mark.parametrize(
    ("name", "served"),
    [("short chain", True), ("long chain", False), ("10 MB", False), ("many members", True)],
)
def test_what_is_too_big_is_refused_and_what_is_not_is_served(name: str, served: bool) -> None:
    if served:
        constraint(HARD[name])
    else:
        with pytest.raises(ClientError):
            constraint(HARD[name])


def test_messages_are_short_and_say_where() -> None:
    with pytest.raises(
        UnsupportedValue, match=rf"`not` is not supported \(at {SCHEMA}/properties/a/items\)"
    ):
        constraint({"properties": {"a": {"items": {"not": {}}}}})
    with pytest.raises(UnsupportedValue) as caught:
        constraint({"properties": {"x" * 4000: {"not": {}}}})
    assert len(caught.value.message) < 500
    with pytest.raises(InvalidValue, match=str(MAX_TEXT)):
        constraint({"description": "x" * MAX_TEXT})


# ── where, and in which words ────────────────────────────────────────────────────────────────────

NESTED_PATTERN = {
    "properties": {
        "x": {
            "type": "array",
            "items": {"anyOf": [{"type": "string", "pattern": "^(?!x)"}, {"type": "null"}]},
        }
    }
}


@pytest.mark.parametrize(
    ("schema", "kind", "words", "place"),
    [
        (NESTED_PATTERN, UnsupportedValue, "look-around", "/properties/x/items/anyOf/0/pattern"),
        ({"$defs": {"p": {"type": "string", "pattern": "(a)\\1"}}, "items": {"$ref": "#/$defs/p"}},
            UnsupportedValue, "backreferences", "/$defs/p/pattern"),
        ({"pattern": "\\bword\\b"}, UnsupportedValue, "word boundaries", "/pattern"),
        ({"pattern": "\\Z"}, UnsupportedValue, "an escape", "/pattern"),
        ({"pattern": "a\\"}, UnsupportedValue, "within an escape", "/pattern"),
        ({"properties": {"a": {"pattern": "a{2,1}"}}}, InvalidValue, "not a regular expression",
            "/properties/a/pattern"),
        ({"items": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}, UnsupportedValue,
            "exclude each other", "/items"),
        ({"description": "oneOf constraints",
            "items": {"maxProperties": 2, "properties": {"a": {}, "b": {}}}}, UnsupportedValue,
            "to be `required`", "/items"),
        ({"type": "object", "required": ["z"],
            "properties": {"z": {"type": "integer", "minimum": 5, "maximum": 3}}}, InvalidValue,
            "minimum (5) is greater than maximum (3)", "/properties/z"),
        ({"type": "string", "pattern": "^a{3}$", "maxLength": 2}, InvalidValue,
            "no JSON value is valid", ""),
        ({"items": {"type": "strnig"}}, InvalidValue, "`type` must be among", "/items"),
        ({"items": {"maxLength": 2.5}}, InvalidValue, "`maxLength` must be a whole number",
            "/items"),
        ({"items": {"required": [1]}}, InvalidValue, "`required` must be", "/items"),
        ({"allOf": [{"$ref": "#/$defs/a", "required": [f"p{i}"]} for i in range(2)],
            "$defs": {"a": members(f"p{i}" for i in range(600))}}, None, "", ""),
    ],
)  # fmt: skip
def test_a_refusal_names_the_reason_and_the_place(
    schema: Any, kind: type[ClientError] | None, words: str, place: str
) -> None:
    found = outcome(schema)
    if kind is None:
        assert isinstance(found, AnswerConstraint)
        return
    assert isinstance(found, kind)
    assert words in found.message
    assert f"(at {SCHEMA}{place})." in found.message
    assert "%json" not in found.message


@pytest.mark.parametrize("levels", [100, 101])
def test_a_hundred_levels(levels: int) -> None:
    """As the gateway counts them: objects and arrays within each other."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    accepted = isinstance(outcome(schema), AnswerConstraint)
    assert accepted == (levels == 100)
    try:
        check_plain(schema, "x")
        passed = True
    except InvalidValue:
        passed = False
    assert passed == accepted
