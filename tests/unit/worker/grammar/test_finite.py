"""worker.grammar.finite: schemas under which no answer comes to an end."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.errors import InvalidValue
from supervisor.wire.frames import SCHEMA_PLACE as SCHEMA
from tests.helpers.grammars import accepts, begins, members
from tests.property.structured import constraint

NODE = {"$ref": "#/$defs/n"}


ENDLESS: dict[str, tuple[Any, str]] = {
    "itself": ({**NODE, "$defs": {"n": members("n", "n", NODE)}}, "/$defs/n/properties/n"),
    "the root": (members("a", "a", {"$ref": "#"}), "/properties/a"),
    "items": ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "/items"),
    "the first item": ({"type": "array", "minItems": 1, "prefixItems": [{"$ref": "#"}]},
        "/prefixItems/0"),
    "any member": ({"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#"}},
        "/additionalProperties"),
    "unnamed": ({"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}},
        "/additionalProperties"),
    "all choices": ({"anyOf": [members("a", "a", {"$ref": "#"}),
        {"type": "array", "minItems": 2, "items": {"$ref": "#"}}]}, "/anyOf/0/properties/a"),
    "in two parts": ({"type": "object", "required": ["a"],
        "allOf": [{"properties": {"a": {"$ref": "#"}}}]}, ""),
    "in turns": ({"$ref": "#/$defs/a",
        "$defs": {"a": members("b", "b", {"$ref": "#/$defs/b"}),
        "b": members("a", "a", {"$ref": "#/$defs/a"})}}, "/$defs/b/properties/a"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schema_without_a_finite_instance_is_refused(name: str) -> None:
    schema, place = ENDLESS[name]
    with pytest.raises(InvalidValue, match="no finite") as caught:
        constraint(schema)
    assert f"(at {SCHEMA}{place})" in caught.value.message


@pytest.mark.parametrize(
    ("schema", "text", "valid"),
    [
        (members("a", "", {"$ref": "#"}), '{"a": {"a": {}}}', True),
        (members("a", "a", {"anyOf": [{"type": "null"}, {"$ref": "#"}]}), '{"a": {"a": null}}',
            True),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, '{"a": {"a": 5}}', True),
        ({"type": "array", "items": {"$ref": "#"}}, "[[[]], []]", True),
        ({**NODE,
            "$defs": {"n": {"type": ["null", "object"], "required": ["n"],
            "properties": {"n": NODE}}}}, '{"n": null}', True),
        # What can't be is left out, and the rest is served.
        ({**members("ab", "", NODE), "$defs": {"n": members("n", "n", NODE)}}, "{}", True),
        ({**members("ab", "", NODE), "$defs": {"n": members("n", "n", NODE)}}, '{"a": {"n": {',
            False),
        ({"anyOf": [NODE, {"type": "null"}], "$defs": {"n": members("n", "n", NODE)}}, "null",
            True),
        ({"anyOf": [NODE, {"type": "null"}], "$defs": {"n": members("n", "n", NODE)}}, "{", False),
        ({"type": "array", "items": NODE, "$defs": {"n": members("n", "n", NODE)}}, "[]", True),
        ({"type": "array", "items": NODE, "$defs": {"n": members("n", "n", NODE)}}, "[{", False),
    ],
)  # fmt: skip
def test_what_has_finite_instances_has_no_others(schema: Any, text: str, valid: bool) -> None:
    assert begins(schema, text) == accepts(schema, text) == valid
