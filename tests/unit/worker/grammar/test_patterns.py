"""Patterns: what llguidance would read otherwise, and what it bounds by itself."""

from __future__ import annotations

import time

import pytest

from supervisor.errors import UnsupportedValue
from tests.helpers.grammars import accepts
from tests.property.structured import allowed, constraint, wrapper
from worker.grammar.patterns import foreign


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
    "patterns",
    [
        ("^(a{397})+$", "^(a{401})+$"),
        ("^(a{997})+b?$", "^(a{1009})+$"),
        ("^(a{97})+$", "^(a{101})+$", "^(a{103})+$", "^(a{107})+$"),
        ("^.{500}a.*$", "^.*b.{500}$"),
    ],
)
def test_llguidance_gives_up_soon_on_patterns_that_it_can_t_merge(patterns: list[str]) -> None:
    """Whether all can be met at once would have to be decided over their common states."""
    begun = time.perf_counter()
    with pytest.raises(UnsupportedValue, match="too complex"):
        constraint({"allOf": [{"type": "string", "pattern": each} for each in patterns]})
    assert time.perf_counter() - begun < 1


def test_patterns_that_turn_out_too_complex_later_cost_no_second() -> None:
    """The worst of 48,000 random sets of patterns took 67 ms at 300 tokens of vocabulary."""
    patterns = ("^(a{2999})*$", "^(a{3001})*b?$")
    grammar = constraint({"allOf": [{"type": "string", "pattern": each} for each in patterns]})
    begun = time.perf_counter()
    for token in wrapper().encode('"a', add_special_tokens=False):
        grammar.push(token)
        allowed(grammar)
    assert grammar.failure
    assert time.perf_counter() - begun < 2
