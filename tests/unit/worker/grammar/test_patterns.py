"""Patterns: what llguidance would read otherwise, and what it bounds by itself."""

from __future__ import annotations

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
def test_patterns_that_llguidance_can_t_merge_are_refused(patterns: tuple[str, ...]) -> None:
    """Whether all can be met at once would have to be decided over their common states. Without
    llguidance's own bound on that, this test would not end."""
    with pytest.raises(UnsupportedValue, match="a pattern is too complex"):
        constraint({"allOf": [{"type": "string", "pattern": each} for each in patterns]})


@pytest.mark.parametrize(
    ("first", "second", "fails"),
    [
        ("^(a{3})+$", "^(a{5})+$", False),
        ("^(a{299})*$", "^(a{301})*b?$", False),  # fails with a third of the fuel
        ("^(a{699})*$", "^(a{701})*b?$", True),  # does not with three times the fuel
        ("^(a{2999})*$", "^(a{3001})*b?$", True),
    ],
)
def test_merged_patterns_are_followed_as_far_as_the_lexers_fuel_goes(
    first: str, second: str, fails: bool
) -> None:
    """Some turn out too complex only when an answer has begun. The fuel is what bounds their
    time."""
    patterns = [{"type": "string", "pattern": each} for each in (first, second)]
    grammar = constraint({"allOf": patterns})
    for token in wrapper().encode('"a', add_special_tokens=False):
        grammar.push(token)
        allowed(grammar)
    assert bool(grammar.failure) == fails
