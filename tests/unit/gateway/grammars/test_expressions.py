"""Regular expressions in the language that all dialects share."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.grammars.expressions import MAX_PATTERN, escaped, plain
from gateway.grammars.faults import GrammarFault

READ = {
    r"^a+$": "a+",
    r"a|^b$": "a|b",
    r"(^|x)a": "(?:|x)a",
    r"(a$|b)": "(?:a|b)",
    r"\A[a-c]\Z": "[a-c]",
    r"(?P<year>\d{4})-(?<m>\w)": "(?:[0-9]{4})\\-(?:[0-9A-Za-z_])",
    r"(?i)ab": "(?i:ab)",
    r"(?s:.)": "(?s:.)",
    r"a{,3}b*?c+?": "a{0,3}b*c+",
    r"{a} ]": r"\{a\} \]",
    r"[-a\d]": r"[\-a0-9]",
    r"[^a-]": r"[^a\-]",
    r"[\b]": r"[\x08]",
    r"\x41\u00e9\U0001F600\x{e9}": "Aé😀é",
    r"\p{L}\PL[\W]": r"\p{L}\PL[\W]",
    r"[\s\S]": "[\\x00-\U0010ffff]",
    r"[^\d]": r"[^\d]",
    "a/b\n": "a\\/b\\n",
    r"\0\a": r"\x00\x07",
    "": "",
}
BROKEN = [
    r"[^\s\S]",
    "[a",
    "(a",
    "a)",
    "*a",
    "a|+",
    "(?:?)",
    "a{3,1}",
    "a\\",
    "[a\\",
    r"\ud800",
    r"\U00110000",
]
BEYOND = {
    "anchors": ["a^", "$a", r"a\bc", "(a$)b", "(a|$)*", "(^a)?", "a(b|^c)", r"[x]\A"],
    "look-around": ["(?=a)", "(?!a)b", "(?<=a)b", "(?<!a)b"],
    "backreferences": [r"(a)\1", r"(?P<n>a)\k<n>"],
    "flags": ["a(?i)b", "(?m)a", "(?x: a)", "(?>a)", "(?-i)a"],
    "repetition of a repetition": ["a**", "a*+", "a{2}{3}"],
    "escape": [r"\h", r"\Q", r"\01", r"[\Z]"],
    "brackets": ["[]a]", "[^]a]", "[a[b]", "[a&&b]", "[a--b]", "[a~~b]"],
    "groups within each other": ["(" * 51 + ")" * 51],
}


@pytest.mark.parametrize(("pattern", "made"), READ.items())
def test_what_is_made(pattern: str, made: str) -> None:
    assert plain(pattern) == made


@pytest.mark.parametrize("pattern", BROKEN)
def test_what_no_dialect_reads_is_broken(pattern: str) -> None:
    with pytest.raises(GrammarFault) as raised:
        plain(pattern)
    assert raised.value.broken


@pytest.mark.parametrize(
    ("word", "pattern"), [(word, each) for word, all_ in BEYOND.items() for each in all_]
)
def test_what_dialects_read_differently_is_refused(word: str, pattern: str) -> None:
    with pytest.raises(GrammarFault) as raised:
        plain(pattern)
    assert word in raised.value.words
    assert not raised.value.broken


def test_parts_of_a_grammar_have_no_anchors_at_all() -> None:
    with pytest.raises(GrammarFault):
        plain("^a", whole=False)


def test_the_length_is_bounded() -> None:
    plain("a" * MAX_PATTERN)
    with pytest.raises(GrammarFault):
        plain("a" * (MAX_PATTERN + 1))


@given(st.text(max_size=20))
def test_an_escaped_text_matches_itself_alone(text: str) -> None:
    assert re.fullmatch(escaped(text), text)
    assert plain(escaped(text)) == escaped(text)


ATOMS = st.sampled_from(
    ["a", "b", "ab", ".", "[ab]", "[^a]", r"\w", r"\.", "-", "{", "é", "(?i:b)"]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda both: f"({both[0]}|{both[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,2}", "*?"])).map(
            lambda both: f"({both[0]}){both[1]}"
        ),
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, st.text("abAB.-{é", max_size=6))
def test_what_is_made_matches_what_python_reads(pattern: str, text: str) -> None:
    assert bool(re.fullmatch(plain(pattern), text)) == bool(re.fullmatch(pattern, text, re.ASCII))
