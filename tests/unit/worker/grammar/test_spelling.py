"""Schemas in other words that mean the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.grammars import accepts
from worker.grammar.spelling import modernize

PAIR = {"type": "array", "items": [{"type": "integer"}, {"type": "null"}], "minItems": 2}
COLORS = {"$defs": {"color": {"enum": ["red"], "title": "Color"}}}


@pytest.mark.parametrize(
    ("schema", "text", "valid"),
    [
        ({**PAIR, "additionalItems": False}, "[1,null]", True),
        ({**PAIR, "additionalItems": False}, "[null,1]", False),
        ({**PAIR, "additionalItems": False}, "[1,null,1]", False),
        ({**PAIR, "additionalItems": {"type": "string"}}, '[1,null,"x"]', True),
        (PAIR, "[1,null,{}]", True),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "3", False),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "4", True),
        ({"type": "integer", "maximum": 3, "exclusiveMaximum": True}, "3", False),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": False}, "3", True),
        ({"type": "integer", "exclusiveMinimum": True}, "0", True),
        ({"type": "object", "propertyNames": {"enum": ["a"]}}, '{"a":1}', True),
        ({"type": "object", "propertyNames": {"enum": ["a"]}}, '{"b":1}', False),
        ({"type": "object", "propertyNames": {"const": "a"}}, '{"b":1}', False),
        ({"type": "object", "propertyNames": {"$ref": "#/$defs/color"}, **COLORS}, "{}", True),
        ({"type": "object", "propertyNames": {"$ref": "#/$defs/color"}, **COLORS},
            '{"blue":1}', False),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, '{"ab":1}', True),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, '{"ba":1}', False),
        ({"type": "object", "propertyNames": {"type": "string"}}, '{"ba":1}', True),
        ({"type": "object", "propertyNames": {"format": "date"}}, '{"2024-02-30":1}', False),
        ({"type": "object", "propertyNames": {"format": "date"}}, '{"2024-02-28":1}', True),
        ({"type": "object", "propertyNames": {"format": "uuid"}}, '{"x":1}', False),
    ],
)  # fmt: skip
def test_old_words_are_understood(schema: dict[str, Any], text: str, valid: bool) -> None:
    assert accepts(schema, text) is valid


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": {"minLength": 3}},
        {"propertyNames": {"pattern": "a"}, "properties": {"b": {}}},
        {"propertyNames": {"$ref": "#/nowhere"}},
        {"propertyNames": False},
        {"items": [{}], "prefixItems": [{}]},
    ],
)
def test_what_has_no_other_words_is_left_alone(schema: dict[str, Any]) -> None:
    same = dict(schema)
    modernize(same, same)
    assert same == schema
