"""Custom tools as functions of one string."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.custom_tools import (
    CustomInput,
    FreeText,
    GrammarInput,
    arguments_of,
    custom_function,
    input_of,
)
from supervisor.errors import InvalidValue

RECURSIVE = 'start: "(" start ")" | "x"'


def value(format: Any) -> Any:
    made = custom_function("f", None, format, "tools[0].format")
    assert made.function.parameters is not None
    return made.function.parameters["properties"]["input"]


@pytest.mark.parametrize("format", [None, FreeText()])
def test_any_text_is_a_string(format: FreeText | None) -> None:
    made = custom_function("f", "Runs it.", format, "tools[0].format")
    assert made.unenforced == ""
    assert made.function.description == "Runs it."
    assert made.function.strict
    assert made.function.parameters == {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "format",
    [GrammarInput("regex", r"^\d{2}|x$"), GrammarInput("lark", 'start: /[0-9]/ DIGIT | "x"\n'
                                                               "%import common.DIGIT")],
)  # fmt: skip
def test_a_grammar_is_a_pattern_and_told(format: GrammarInput) -> None:
    pattern = value(format)["pattern"]
    assert re.search(pattern, "12")
    assert re.search(pattern, "x")
    assert not re.search(pattern, "123")
    assert not re.search(pattern, "1x")
    described = custom_function("f", "Runs it.", format, "p").function.description
    assert described is not None
    assert described.startswith("Runs it.\n\n")
    assert described.endswith(format.definition)


@pytest.mark.parametrize(
    "format",
    [
        GrammarInput("lark", RECURSIVE),
        GrammarInput("regex", "(?=a)a"),
        GrammarInput("regex", "a" * 5000),
    ],
)
def test_what_can_not_be_enforced_is_told_to_the_model_and_the_dialect(
    format: GrammarInput,
) -> None:
    made = custom_function("f", None, format, "p")
    assert made.unenforced
    assert value(format) == {"type": "string"}
    assert made.function.description is not None
    assert format.definition in made.function.description


@pytest.mark.parametrize("format", [GrammarInput("lark", "start: x"), GrammarInput("regex", "(")])
def test_a_broken_grammar_is_refused_by_name(format: GrammarInput) -> None:
    with pytest.raises(InvalidValue) as raised:
        value(format)
    assert raised.value.param == "tools[0].format.definition"


@given(st.text(max_size=12), st.booleans(), st.lists(st.integers(0, 60), max_size=6))
def test_the_input_is_read_wherever_its_arguments_are_cut(
    text: str, ascii: bool, cuts: list[int]
) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii)
    reader = CustomInput()
    told, at = "", 0
    for cut in [*sorted(cuts), len(arguments)]:
        told += reader.feed(arguments[at:cut])
        assert text.startswith(told)
        at = max(at, cut)
    assert told + reader.rest() == text


@given(st.text(max_size=12))
def test_arguments_hold_the_input(text: str) -> None:
    assert input_of(arguments_of(text)) == text


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": 1, "input": "x"}', "x"),
        ('{"input": 5}', '{"input": 5}'),
        ("{}", "{}"),
        ('{"inp', '{"inp'),
        ('{"input": "cut \\', "cut "),
        ('{"input": "cut \\ud83d', "cut "),
        ('{ "input" : "a", "b": 1}', "a"),
    ],
)
def test_other_shapes(arguments: str, read: str) -> None:
    assert input_of(arguments) == read
