"""Lark's grammars, read and put as one expression."""

from __future__ import annotations

import re

import pytest

from gateway.grammars.faults import GrammarFault
from gateway.grammars.lark import COMMON, parse_lark
from gateway.grammars.patterns import pattern_of
from gateway.grammars.rules import MAX_TEXT, in_order

READ: dict[str, tuple[list[str], list[str]]] = {
    'start: "a" b?\nb: /[x-z]+/': (["a", "axz"], ["", "b", "ax\n"]),
    'start: A | "b"i -> named\nA.2: "c".."e"~2': (["cd", "b", "B"], ["c", "cde", "f"]),
    '?start: x\n!x: ["a"] ("b" | "c")+': (["b", "acb"], ["a", ""]),
    'start: "a" // one\n  # two\n\n  | "b"\n': (["a", "b"], ["ab"]),
    'start: (\n "a"\n "b")': (["ab"], ["a"]),
    '%llguidance {}\nstart: "a"{2,} "b"{1} /c/i': (["aabC"], ["abc"]),
    "start: WORD INT\n%import common.WORD\n%import common (INT, WS)\n%ignore WS": (
        ["ab 12", " a1 "],
        ["ab", "1"],
    ),
    '%import common.CNAME -> NAME\nstart: NAME "=" NAME\n%ignore " "': (["a = b1"], ["1=a"]),
    'start: "\\n\\"\\u0041\\x42\\\\"': (['\n"AB\\'], []),
    'start: /a\\/b/ "//"': (["a/b//"], []),
    'start: "[" "(" ")" "*"': (["[()*"], []),
    "start:": ([""], ["a"]),
    'start: a a\na: "x" | "y"': (["xy"], ["x", "xyx"]),
    'start: A+\nA: B C\nB: "b"\nC: "c"\n%ignore "_"': (["bc_bc", "_bc_"], ["b_c"]),
}
BROKEN = {
    "no rule `start`": ['x: "a"', ""],
    "no rule `b`": ["start: b"],
    "no text that ends": ['start: "a" start', "start: a\na: b\nb: a"],
    "is there twice": ['start: "a"\nstart: "b"'],
    "uses the rule": ['start: A\nA: b\nb: "x"'],
    "can't be read": [
        *(
            'start: "a',
            "start: )",
            'start "a"',
            "start: (",
            "?",
            "%import common (",
            'start: "a".. b',
        ),
        *('start: "a" ->', "start: a\na: -> ->", "start: *", "start: 5", "\\"),
    ],
    "range": ['start: "z".."a"', 'start: "ab".."c"'],
    "an escape": ['start: "\\q"'],
    "no character": ['start: "\\ud800"'],
    "expression in line 2": ["start: A\nA: /[a/"],
}
BEYOND = {
    "special token": ["start: <|im_end|>", "start: <[3]>"],
    "the grammar `@other`": ["start: @other"],
    "the word `%json`": ['start: %json {"type": "null"}'],
    "the word `%declare`": ["%declare A\nstart: A"],
    "attributes or parameters": ['start[lazy]: "a"', 'start: a{"b"}\na{x}: x', "a{x}: x"],
    "import": ["%import python.NAME\nstart: NAME", "%import common.C_COMMENT\nstart: C_COMMENT"],
    "look-around": ["start: /(?=a)b/"],
    "anchors": ["start: /^a/"],
    "the flag `x`": ["start: /a b/x"],
    "intersected": ["start: A\nA: /a/ & /b/", "start: A\nA: ~/b/"],
    "options": ['%llguidance {"no_forcing": true}\nstart: "a"'],
    "groups": ["start: " + "(" * 60 + '"a"' + ")" * 60],
    "repetition": ['start: "a"~20000'],
    "characters": [f'start: "{"a" * MAX_TEXT}"'],
    "rules, and": ["start: a0\n" + "".join(f'a{i}: "x"\n' for i in range(1001))],
}


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    pattern = pattern_of(parse_lark(text), 4000)
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
        parse_lark(text)
    assert word in raised.value.words
    assert raised.value.broken is broken


def test_rules_that_need_themselves_are_no_expression() -> None:
    rules = parse_lark('start: "(" start ")" | "x"')
    assert in_order(rules.bodies, ["start"]) is None
    with pytest.raises(GrammarFault, match="need themselves"):
        pattern_of(rules, 4000)


def test_an_expression_is_bounded_while_it_is_made() -> None:
    doubling = "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(900))
    with pytest.raises(GrammarFault, match="characters"):
        pattern_of(parse_lark(f'start: a0\n{doubling}a900: "x"'), 4000)


@pytest.mark.parametrize("name", COMMON)
def test_the_library_is_written_in_the_language_that_all_share(name: str) -> None:
    from gateway.grammars.expressions import plain

    assert plain(COMMON[name])
    re.compile(COMMON[name])
