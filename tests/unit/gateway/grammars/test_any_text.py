"""Any text is a grammar or a fault, never another exception; what is made is one to others too."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.grammars.emission import lark_of
from gateway.grammars.expressions import plain
from gateway.grammars.faults import GrammarFault
from gateway.grammars.gbnf import parse_gbnf
from gateway.grammars.lark import parse_lark
from gateway.grammars.patterns import pattern_of

WORDS = [
    *('abA"\\/[]()|*+?{}.^$-&~#<>@!%:,=_ 01\n😀'),
    *("start: ", "\nroot ::= ", "%ignore ", "%import common.INT\n", '"a"', "/b/", "->", "..", "~2"),
    *("{2,3}", "\\d", "[^", "(?i)", "\\u00e9", "\nA: ", "b: "),
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=20).map("".join)


@given(TEXTS)
def test_expressions(text: str) -> None:
    with suppress(GrammarFault):
        re.compile(plain(text).replace("\\p{N}", ""))


@pytest.mark.parametrize(
    ("parse", "head"), [(parse_lark, "start: "), (parse_gbnf, "root ::= "), (parse_gbnf, "")]
)
@given(text=TEXTS)
def test_grammars(parse: Callable[[str], Any], head: str, text: str) -> None:
    with suppress(GrammarFault):
        rules = parse(head + text)
        assert lark_of(rules).startswith("start: r")
        re.compile(pattern_of(rules, 4000).replace("\\p{N}", ""))
