"""What an answer must be, in the words of several servers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.constraints import BLANKS, CHOICE_TEXT_MAX, CHOICES_MAX
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Grammar, Pattern, Schema
from tests.helpers.openai_bodies import ENDPOINTS, chat, nested, refusal

RECURSIVE = 'root ::= "(" root ")" | "x"'
SCHEMA = {"type": "object", "properties": {"a": {"const": None}}}
SPELLINGS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "regex": [
        ({"structured_outputs": {"regex": "^a|b$"}}, "structured_outputs.regex"),
        ({"guided_regex": "^a|b$"}, "guided_regex"),
        ({"regex": "a|b"}, "regex"),
        ({"response_format": {"type": "regex", "value": "a|b"}}, "response_format.value"),
        ({"structured_outputs": {"choice": ["a", "b", "a"]}}, "structured_outputs.choice"),
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"guided_grammar": 'root ::= "a" | "b"'}, "guided_grammar"),
        ({"grammar": 'start: "a" | "b"'}, "grammar"),
    ],
    "grammar": [
        ({"structured_outputs": {"grammar": RECURSIVE}}, "structured_outputs.grammar"),
        ({"guided_grammar": RECURSIVE}, "guided_grammar"),
        ({"grammar": RECURSIVE}, "grammar"),
        ({"ebnf": RECURSIVE}, "ebnf"),
        ({"response_format": {"type": "grammar", "grammar": RECURSIVE}}, "response_format.grammar"),
    ],
    "json": [
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs.json"),
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
    ],
}


@ENDPOINTS
@pytest.mark.parametrize(("members", "place"), SPELLINGS["regex"])
def test_an_expression(ask: Any, members: dict[str, Any], place: str) -> None:
    assert ask(**members).structure == Pattern("a|b", place)


@ENDPOINTS
@pytest.mark.parametrize(("members", "place"), SPELLINGS["grammar"])
def test_a_grammar(ask: Any, members: dict[str, Any], place: str) -> None:
    assert ask(**members).structure == Grammar("start: r0\nr0: /\\(/ r0 /\\)/ | /x/\n", place)


@ENDPOINTS
@pytest.mark.parametrize(("members", "place"), SPELLINGS["json"])
def test_a_schema_is_a_promise(ask: Any, members: dict[str, Any], place: str) -> None:
    structure = ask(**members).structure
    assert isinstance(structure, Schema)
    assert json.loads(structure.schema) == SCHEMA
    assert structure.strict
    assert structure.place == place


@ENDPOINTS
@pytest.mark.parametrize(
    "members",
    [
        {"structured_outputs": {}},
        {"structured_outputs": None},
        {"structured_outputs": {"json_object": False, "disable_any_whitespace": True}},
        {"guided_regex": "", "guided_grammar": "", "regex": "", "ebnf": "", "grammar": ""},
        {"guided_json": {}, "json_schema": {}, "format": ""},
        {"response_format": {"type": "text"}},
        *({"guided_whitespace_pattern": blanks} for blanks in BLANKS),
        *({"structured_outputs": {"whitespace_pattern": blanks}} for blanks in BLANKS),
    ],
)
def test_what_asks_for_nothing(ask: Any, members: dict[str, Any]) -> None:
    assert ask(**members).structure is None


def test_any_json() -> None:
    structure = chat(structured_outputs={"json": {}}).structure
    assert isinstance(structure, Schema)
    assert structure.schema == "{}"
    one = chat(structured_outputs={"json_object": True}).structure
    assert one == Schema('{"type": "object"}', place="structured_outputs.json_object")


def test_no_more_members_than_are_named() -> None:
    schema = {
        "properties": {"a": {"patternProperties": {"b": {}}}, "c": {"additionalProperties": {}}},
        "anyOf": [{"properties": {}}, {"type": "object"}],
    }
    wanted = {"json": schema, "disable_additional_properties": True}
    structure = chat(structured_outputs=wanted).structure
    assert isinstance(structure, Schema)
    closed = {"additionalProperties": False}
    assert json.loads(structure.schema) == {
        "properties": {
            "a": {"patternProperties": {"b": {}}, **closed},
            "c": {"additionalProperties": {}},
        },
        "anyOf": [{"properties": {}, **closed}, {"type": "object"}],
        **closed,
    }


@ENDPOINTS
@pytest.mark.parametrize(
    ("members", "kind", "param"),
    [
        # More than one.
        ({"regex": "a", "ebnf": RECURSIVE}, InvalidValue, "ebnf"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, InvalidValue, "guided_choice"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            InvalidValue,
            "structured_outputs.choice",
        ),
        ({"json_schema": SCHEMA, "guided_json": SCHEMA}, InvalidValue, "guided_json"),
        (
            {"response_format": {"type": "json_object"}, "regex": "a"},
            InvalidValue,
            "regex",
        ),
        # Broken, or beyond us.
        ({"guided_regex": "(a"}, InvalidValue, "guided_regex"),
        ({"regex": "(?=a)"}, UnsupportedValue, "regex"),
        ({"regex": "a" * 40_000}, UnsupportedValue, "regex"),
        ({"regex": 1}, InvalidType, "regex"),
        ({"ebnf": "root ::= x"}, InvalidValue, "ebnf"),
        ({"grammar": "root ::= root"}, InvalidValue, "grammar"),
        ({"grammar": "start: <|im_end|>"}, UnsupportedValue, "grammar"),
        ({"guided_json": "{"}, InvalidValue, "guided_json"),
        ({"guided_json": "[" * 100_000}, InvalidValue, "guided_json"),
        ({"guided_json": "1"}, InvalidValue, "guided_json"),
        ({"guided_json": nested(101)}, InvalidValue, "guided_json"),
        ({"guided_json": 1}, InvalidType, "guided_json"),
        ({"guided_choice": []}, InvalidValue, "guided_choice"),
        ({"guided_choice": ["a", None]}, InvalidType, "guided_choice[1]"),
        ({"guided_choice": ["a", 1]}, InvalidType, "guided_choice[1]"),
        ({"guided_choice": "ab"}, InvalidType, "guided_choice"),
        ({"guided_choice": ["a"] * (CHOICES_MAX + 1)}, InvalidValue, "guided_choice"),
        ({"guided_choice": ["a" * (CHOICE_TEXT_MAX + 1)]}, InvalidValue, "guided_choice"),
        ({"guided_whitespace_pattern": "\\t"}, UnsupportedParameter, "guided_whitespace_pattern"),
        (
            {"structured_outputs": {"json": {}, "whitespace_pattern": "\\t"}},
            UnsupportedValue,
            "structured_outputs.whitespace_pattern",
        ),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            UnsupportedParameter,
            "structured_outputs.structural_tag",
        ),
        ({"structural_tag": "{}"}, UnsupportedParameter, "structural_tag"),
        ({"structured_outputs": {"other": 1}}, UnsupportedParameter, "structured_outputs.other"),
        ({"structured_outputs": "a"}, InvalidType, "structured_outputs"),
    ],
)
def test_what_is_refused_is_named(
    ask: Any, members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(ask, members)
    assert type(error) is kind
    assert error.param == param


def test_an_answer_that_must_be_a_call_can_be_nothing_else() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    error = refusal(chat, {"tools": [tool], "tool_choice": "required", "guided_regex": "a"})
    assert error.param == "guided_regex"


@given(st.lists(st.text(max_size=5), min_size=1, max_size=5), st.text(max_size=5))
def test_a_choice_is_one_of_its_texts(texts: list[str], other: str) -> None:
    structure = chat(guided_choice=texts).structure
    assert isinstance(structure, Pattern)
    for text in (*texts, other):
        assert bool(re.fullmatch(structure.pattern, text)) == (text in texts)
