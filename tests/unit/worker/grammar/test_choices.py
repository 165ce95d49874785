"""worker.grammar.choices: how many names may come next before a mask takes too long."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.errors import ClientError, UnsupportedValue
from supervisor.wire.frames import SCHEMA_PLACE as SCHEMA
from tests.helpers.grammars import accepts, members, outcome


def test_an_object_of_many_optional_properties_is_served_to_its_end() -> None:
    """llguidance gave up where 250 of them might come next."""
    schema = members(f"p{i}" for i in range(1000))
    assert accepts(schema, '{"p0": {}, "p1": {"x": 1}, "p998": {}, "q": 1}')
    assert not accepts(schema, '{"p1": {}, "p0": {}}')


def alike(count: int, names: int, tag: str = "") -> list[Any]:
    first = [tag] if tag else []
    made = [members([*first, *(f"p{i}_{j}" for j in range(names))], first) for i in range(count)]
    for i, each in enumerate(made):
        each["additionalProperties"] = False
        if tag:
            each["properties"][tag] = {"const": i}
    return made


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"anyOf": alike(20, 49)}, None),
        ({"anyOf": alike(20, 51)}, ""),
        ({"properties": {"a": {"items": {"oneOf": alike(20, 51)}}}}, "/properties/a/items"),
        ({"$defs": {"a": {"anyOf": alike(20, 51)}}, "$ref": "#/$defs/a"}, "/$defs/a"),
        ({"anyOf": [{"$ref": f"#/$defs/d{i}"} for i in range(20)],
            "$defs": {f"d{i}": each for i, each in enumerate(alike(20, 51))}}, ""),
        ({"allOf": alike(20, 51)}, ""),
        ({"anyOf": [members("a", "a", each) for each in alike(20, 51)]}, ""),
        ({"anyOf": [{"type": "array", "items": each} for each in alike(20, 51)]}, ""),
        # The first member's value tells these apart.
        ({"anyOf": alike(60, 30, "type")}, None),
        ({"anyOf": [*alike(60, 30, "type"), *alike(60, 30, "type")]}, None),
        ({"anyOf": [{"const": f"text {i}"} for i in range(2000)]}, None),
    ],
)  # fmt: skip
def test_how_many_names_may_come_next(schema: Any, place: str | None) -> None:
    match outcome(schema):
        case UnsupportedValue(message=message):
            assert place is not None
            assert (
                f"more than 1000 properties or alternatives may come next (at {SCHEMA}{place})"
                in message
            )
        case ClientError() as error:
            raise AssertionError(error.message)
        case _:
            assert place is None
