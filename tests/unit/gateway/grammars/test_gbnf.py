"""GBNF, read and put as one expression or as rules."""

from __future__ import annotations

import re

import pytest

from gateway.grammars.faults import GrammarFault
from gateway.grammars.gbnf import is_gbnf, parse_gbnf
from gateway.grammars.patterns import pattern_of

READ: dict[str, tuple[list[str], list[str]]] = {
    'root ::= "a" | b-c\nb-c ::= [x-z-]+ .': (["a", "x-\n", "zzz"], ["", "a\n", "x"]),
    'root ::= (\n  "a" # one\n  | "b"\n)? "c"{2}': (["cc", "acc"], ["c", "abcc"]),
    'root ::=\n  "a"\n  | "b"\n\n\nx ::= "c"': (["a", "b"], ["c", "ab"]),
    'root ::= [^"\\\\\\x00-\\x1f]{1,2} "\\n\\"\\u00e9\\U0001F600"': (['é\n"é😀'], ['"\n"é😀']),
    'root ::= [\\]\\[\\-^a] [^\\n]* | ""': (["", "]", "-x", "^"], ["\\", "a\n"]),
    "root ::= [0-9]{2,} | [a]{0,1}": (["00", "a", ""], ["0", "aa"]),
    'root ::= "" b ""\nb ::= | "x"': (["", "x"], ["xx"]),
}
BROKEN = {
    "no rule `root`": ['x ::= "a"', "", "# nothing"],
    "no rule `y`": ["root ::= y"],
    "no text that ends": ["root ::= root", 'root ::= a\na ::= "x" a'],
    "is there twice": ['root ::= "a"\nroot ::= "b"'],
    "can't be read": [
        *("root ::= (", 'root ::= "a" )', 'root ::= "a', "root ::= [a", "root = b", "root ::= *"),
        *('"a" ::= "b"', "root"),
    ],
    "range": ["root ::= [z-a]"],
    "empty": ["root ::= []", "root ::= [^]"],
    "an escape": ['root ::= "\\q"', "root ::= [\\q]"],
    "no character": ['root ::= "\\ud800"'],
}
BEYOND = {
    "special token": ["root ::= <think>", "root ::= !<think>"],
    "look-ahead": ['root ::= "a" (= "b")'],
    "groups": ["root ::= " + "(" * 60 + '"a"' + ")" * 60],
    "repetition": ['root ::= "a"{20000}'],
    "characters": ["#" * 70_000],
}


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    assert is_gbnf(text)
    pattern = pattern_of(parse_gbnf(text), 4000)
    followed, others = READ[text]
    assert all(re.fullmatch(pattern, each) for each in followed)
    assert not any(re.fullmatch(pattern, each) for each in others)


@pytest.mark.parametrize(
    ("broken", "word", "text"),
    [
        (broken, word, text)
        for broken, kinds in ((True, BROKEN), (False, BEYOND))
        for word, texts in kinds.items()
        for text in texts
    ],
)
def test_what_is_not(broken: bool, word: str, text: str) -> None:
    with pytest.raises(GrammarFault) as raised:
        parse_gbnf(text)
    assert word in raised.value.words
    assert raised.value.broken is broken


def test_lark_is_told_from_it() -> None:
    assert not is_gbnf('start: "root ::= x"')
    assert is_gbnf('# start: x\nroot ::= "start: "')
