"""Rules in llguidance's Lark. That it takes them, and as they were meant, is shown by
`tests/unit/worker/grammar/test_client_grammars.py`."""

from __future__ import annotations

import pytest

from gateway.grammars.emission import lark_of
from gateway.grammars.faults import GrammarFault
from gateway.grammars.gbnf import parse_gbnf
from gateway.grammars.lark import parse_lark


def test_names_are_our_own_and_letters_are_lexemes_where_the_language_has_none() -> None:
    rules = parse_gbnf('root ::= "ab" root? | x-y{2} | ""\nx-y ::= [c-d] ("/" | .)')
    assert lark_of(rules) == (
        'start: r0\nr0: /a/ /b/ (r0)? | (r1){2} | ""\nr1: /[c-d]/ (/\\// | /(?s:.)/)\n'
    )


def test_terminals_are_lexemes_in_lark() -> None:
    rules = parse_lark('start: "(" start ")" | A "xy"\nA: B+ | /c/i\nB: "b"\n%ignore " "')
    assert lark_of(rules) == (
        "start: r0\n"
        "r0: /\\(/ r0 /\\)/ | T1 /xy/\n"
        "T1: /(?:b)+|(?i:c)/\n"
        "T2: /b/\n"
        "T3: / /\n"
        "%ignore T3\n"
    )


def test_terminals_that_need_themselves_are_broken() -> None:
    with pytest.raises(GrammarFault, match="terminals"):
        lark_of(parse_lark('start: A start | "x"\nA: "a" A?'))
