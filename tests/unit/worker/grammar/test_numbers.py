"""Numbers in schemas, where llguidance alone would refuse right ones or let wrong ones pass."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.errors import ClientError
from tests.helpers.grammars import accepts
from tests.property.structured import constraint
from worker.grammar.numbers import close_bounds, list_multiples


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"multipleOf": 0.1, "minimum": 0.3, "maximum": 0.3}, ["0.3"], ["0", "0.2", "0.31"]),
        ({"multipleOf": 0.1, "minimum": 0.05, "maximum": 0.15}, ["0.1"], ["0.0", "0.15"]),
        ({"multipleOf": 0.1, "exclusiveMinimum": 0.1, "maximum": 1}, ["0.2", "0.7", "1"],
            ["0.1", "1.1"]),
        ({"multipleOf": 0.01, "minimum": 0.07, "maximum": 9000}, ["0.07", "1.3"],
            ["0.06", "0.075"]),
        ({"multipleOf": 0.5, "minimum": 1.2, "maximum": 3, "type": "integer"}, ["2", "3"],
            ["1", "2.5"]),
        ({"multipleOf": 0.7, "minimum": 0.65}, ["0.7", "1.4"], ["0.65", "0"]),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.001"], ["0", "0.0", "0.51"]),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, ["-0.5", "-0.01"], ["0", "-0", "-0.6"]),
        ({"exclusiveMinimum": 3, "maximum": 3.5}, ["3.25"], ["3", "3.0", "3.6"]),
        ({"exclusiveMinimum": 0, "minimum": -2, "maximum": 0.5}, ["0.1"], ["0", "-1"]),
        ({"exclusiveMinimum": 0, "minimum": 0.25, "maximum": 0.5}, ["0.25"], ["0", "0.2"]),
        ({"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]}, ["0.5"], ["0"]),
        ({"exclusiveMinimum": 0, "maximum": 9, "type": "integer"}, ["1", "9"], ["0", "10"]),
    ],
)  # fmt: skip
def test_ranges(schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    schema = {"type": "number", **schema}
    assert [text for text in right if not accepts(schema, text)] == []
    assert [text for text in wrong if accepts(schema, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"multipleOf": 0.1, "minimum": 0.31, "maximum": 0.39, "type": "number"},
        {"multipleOf": 7, "minimum": 8, "maximum": 13, "type": "integer"},
    ],
)
def test_a_range_without_a_multiple(schema: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="no JSON value is valid under it"):
        constraint(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "multipleOf": 0.1},
        {"type": "number", "minimum": 0.5, "maximum": 3},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 2},
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 0.5},
        {"exclusiveMinimum": 0.5, "maximum": 0.75},
    ],
)
def test_what_llguidance_gets_right_stays(schema: dict[str, Any]) -> None:
    changed = dict(schema)
    list_multiples(changed)
    close_bounds(changed, merged=False)
    assert changed == schema


@pytest.mark.parametrize("keyword", ["maxLength", "minLength", "maxItems", "minItems"])
def test_a_whole_float_is_an_integer(keyword: str) -> None:
    kind, short, long = (
        ("string", '"a"', '"aaa"') if keyword.endswith("Length") else ("array", "[1]", "[1, 1, 1]")
    )
    schema = {"type": kind, keyword: 2.0}
    assert accepts(schema, short) == keyword.startswith("max")
    assert accepts(schema, long) == keyword.startswith("min")
    for value in (2.5, -1, "2", True, None):
        with pytest.raises(ClientError, match=f"`{keyword}` must be a whole number"):
            constraint({"type": kind, keyword: value})
