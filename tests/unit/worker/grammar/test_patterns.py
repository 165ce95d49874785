"""Patterns: what llguidance would read otherwise, and what takes it long."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.errors import UnsupportedValue
from tests.helpers.grammars import accepts
from tests.property.structured import constraint
from worker.grammar.patterns import foreign, merged
from worker.grammar.patterns import size as states


@pytest.mark.parametrize(
    ("pattern", "strange"),
    [
        ("^[a-z]+$", False), ("[\\[]", False), ("\\[[a]\\]", False), ("[-&~]", False),
        ("(?:a|b)(?<x>c)", False), ("[a[b]]", True), ("[a&&b]", True), ("[a--b]", True),
        ("[]a]", True), ("[^]a]", True), ("(?x)a", True), ("(?P<x>a)", True), ("(?i)a", False),
    ],
)  # fmt: skip
def test_patterns_that_mean_something_else(pattern: str, strange: bool) -> None:
    assert bool(foreign(pattern)) == strange


CONTROLS = (
    "\\x07",
    "\\u0001",
    "\\u{1}",
    "\\u{0b}",
    "\\v",
    "\\0",
    "\\cA",
    "\x01",
    "\x7f",
    "\\x7F",
    "\\x1f",
)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("pattern", ["^a{}b$", "^({}|a)$", "[{}]", "x[{}{}]+"])
def test_control_characters_that_answers_cant_have(control: str, pattern: str) -> None:
    """llguidance leaves them out without a word: "ab" passed for "a\\x07b"."""
    assert "control characters" in foreign(pattern.replace("{}", control))
    with pytest.raises(UnsupportedValue, match="control characters"):
        constraint({"type": "string", "pattern": pattern.replace("{}", control)})


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("^[^\\x00-\\x1f]+$", ["a"], ["\\n", ""]),
        ("^a[\\x07c]$", ["ac"], ["a"]),
        ("^a\\n\\t$", ["a\\n\\t"], ["a"]),
        ("^[\\x00-\\x1f]$", ["\\n"], ["a", ""]),
        ("^\\\\x07$", ["\\\\x07"], ["\\\\"]),
        ("^a\\u0020\\x41$", ["a A"], ["a"]),
    ],
)
def test_other_control_characters(pattern: str, right: list[str], wrong: list[str]) -> None:
    schema = {"type": "string", "pattern": pattern}
    assert [text for text in right if not accepts(schema, f'"{text}"')] == []
    assert [text for text in wrong if accepts(schema, f'"{text}"')] == []


@pytest.mark.parametrize(
    ("pattern", "many"),
    [
        ("abc", 3), ("^a$", 1), ("", 1), ("a*b+", 2), ("[a-z]{3}", 3), ("(ab){10}", 20),
        ("a{2,7}", 7),
        ("a{5,}", 5), ("((ab){3}c){4}", 28), ("\\d{4}-\\d{2}", 7), ("[\\]}]x", 2), ("a{b", 3),
        ("(a", 1), ("a)b", 3),
    ],
)  # fmt: skip
def test_states_of_a_pattern(pattern: str, many: int) -> None:
    assert states(pattern) == many


LONG, LONGER = "^(a{397})*$", "^(a{401})*$"


@pytest.mark.parametrize(
    ("schema", "slow"),
    [
        ({"allOf": [{"pattern": LONG}, {"pattern": LONGER}]}, True),
        ({"allOf": [{"pattern": LONG}, {"pattern": LONG}]}, False),
        ({"allOf": [{"pattern": LONG}, {"pattern": "^[ab]{9}$"}]}, False),
        ({"$ref": "#/$defs/a", "pattern": LONG, "$defs": {"a": {"pattern": LONGER}}}, True),
        ({"pattern": LONG, "anyOf": [{"pattern": LONGER}]}, True),
        ({"allOf": [{"properties": {"a": {"pattern": LONG}}},
            {"properties": {"a": {"pattern": LONGER}}}]}, True),
        ({"allOf": [{"properties": {"a": {"pattern": LONG}}},
            {"properties": {"b": {"pattern": LONGER}}}]}, False),
        ({"allOf": [{"properties": {"a": {"pattern": LONG}}},
            {"additionalProperties": {"pattern": LONGER}}]}, True),
        ({"allOf": [{"items": {"pattern": LONG}}, {"prefixItems": [{"pattern": LONGER}]}]}, True),
        ({"properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/$defs/b"}},
            "$defs": {"a": {"pattern": LONG}, "b": {"pattern": LONGER}}}, False),
        ({"allOf": [{"$ref": "#"}, {"properties": {"a": {"$ref": "#"}}}], "pattern": LONG}, False),
    ],
)  # fmt: skip
def test_patterns_that_may_hold_at_once_are_short(schema: dict[str, Any], slow: bool) -> None:
    """llguidance takes seconds, or for ever, to find out whether they can all be met."""
    found = schema.get("$defs", {})
    assert merged(schema, {f"#/$defs/{name}": each for name, each in found.items()}.get) == slow


def test_merged_patterns_are_refused_before_llguidance_sees_them() -> None:
    with pytest.raises(UnsupportedValue, match="patterns"):
        constraint({"allOf": [{"pattern": LONG}, {"pattern": LONGER}]})
    constraint({"properties": {"a": {"pattern": LONG}, "b": {"pattern": LONGER}}})
