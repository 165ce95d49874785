"""gateway.grammars.words: how often a part stands, and characters by their codes."""

from __future__ import annotations

import pytest

from gateway.grammars.expressions import plain
from gateway.grammars.faults import GrammarFault
from gateway.grammars.gbnf import parse_gbnf
from gateway.grammars.lark import parse_lark
from gateway.grammars.rules import Repeat, Text
from gateway.grammars.words import Word, character, repeated

PART = Text("a")


@pytest.mark.parametrize(
    ("kind", "word", "least", "most"),
    [
        ("sign", "*", 0, None),
        ("sign", "+", 1, None),
        ("sign", "?", 0, 1),
        ("count", "{2}", 2, 2),
        ("count", "{ 2 , 3 }", 2, 3),
        ("count", "{2,}", 2, None),
        ("count", "{0002}", 2, 2),
        ("count", "~2..3", 2, 3),
        ("count", "{10000}", 10_000, 10_000),
    ],
)
def test_a_part_stands_so_often(kind: str, word: str, least: int, most: int | None) -> None:
    assert repeated(PART, Word(kind, word, 1)) == Repeat(PART, least, most)


@pytest.mark.parametrize(("kind", "word"), [("sign", "|"), ("name", "*"), ("text", "{2}")])
def test_what_says_nothing_of_that(kind: str, word: str) -> None:
    assert repeated(PART, Word(kind, word, 1)) is None


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("{10001}", "more than 10000, in line 3"),
        ("{" + "9" * 5000 + "}", "more than 10000"),
        ("{1," + "9" * 5000 + "}", "more than 10000"),
        ("{3,2}", "in line 3 that is none"),
    ],
)
def test_what_is_too_often_or_no_count(word: str, why: str) -> None:
    with pytest.raises(GrammarFault) as fault:
        repeated(PART, Word("count", word, 3))
    assert why in fault.value.words


def test_a_count_of_thousands_of_digits_is_a_fault_in_every_language() -> None:
    """Python itself raises ValueError for it."""
    digits = "9" * 5000
    for read, text in (
        (parse_gbnf, f'root ::= "a"{{{digits}}}'),
        (parse_lark, f'start: "a"~{digits}'),
        (plain, f"a{{{digits}}}"),
        (plain, f"(a)\\{digits}"),
        (plain, f"a{{1,{digits}}}"),
    ):
        with pytest.raises(GrammarFault):
            read(text)


@pytest.mark.parametrize("code", ["110000", "D800", "DFFF", "FFFFFFFF"])
def test_a_code_that_is_no_character(code: str) -> None:
    with pytest.raises(GrammarFault):
        character(code, 1)
    assert character("1F600", 1) == "\U0001f600"
