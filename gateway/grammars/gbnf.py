"""Grammars in GBNF, llama.cpp's form of EBNF, which xgrammar and SGLang take as well."""

from __future__ import annotations

import re

from gateway.grammars.expressions import escaped
from gateway.grammars.faults import GrammarFault
from gateway.grammars.rules import (
    MAX_DEPTH,
    MAX_TEXT,
    Expression,
    Part,
    Reference,
    Rules,
    Text,
    check,
    choice,
    sequence,
)
from gateway.grammars.words import Word, character, repeated, unreadable

_TOKEN = re.compile(
    r"""
    (?P<space>   \s+ | \#[^\n]* )
  | (?P<text>    "(?:[^"\\\n]|\\.)*" )
  | (?P<set>     \[(?:[^\]\\\n]|\\.)*\] )
  | (?P<special> !?<[^>\s]{1,80}> | \(= )
  | (?P<count>   \{\s*\d+\s*(?:,\s*\d*\s*)?\} )
  | (?P<name>    [A-Za-z0-9_-]+ )
  | (?P<sign>    ::= | [|()*+?.] )
    """,
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_LETTER = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|([^\\])", re.DOTALL
)
_DEFINES = re.compile(r"^\s*[A-Za-z0-9_-]+\s*::=", re.MULTILINE)


def is_gbnf(text: str) -> bool:
    """Whether a grammar of which it is not told is in GBNF; else it is in Lark."""
    return _DEFINES.search(text) is not None


def parse_gbnf(text: str) -> Rules:
    """Raises GrammarFault."""
    if len(text) > MAX_TEXT:
        raise GrammarFault(f"it has {len(text)} characters, and {MAX_TEXT} are allowed")
    rules = _Parser(_tokens(text)).parse()
    check(rules)
    return rules


def _tokens(text: str) -> list[Word]:
    found: list[Word] = []
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise unreadable(line)
        kind, word = str(match.lastgroup), match[0]
        if kind == "special":
            what = "look-ahead" if word == "(=" else f"the special token `{word[:32]}`"
            raise GrammarFault(f"{what} in line {line}")
        if kind != "space":
            found.append(Word(kind, word, line))
        line += word.count("\n")
        at = match.end()
    found.append(Word("end", "", line))
    return found


class _Parser:
    def __init__(self, tokens: list[Word]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def parse(self) -> Rules:
        bodies: dict[str, Part] = {}
        while self._tokens[self._at].kind != "end":
            if not self._defines():
                raise unreadable(self._tokens[self._at].line)
            name = self._tokens[self._at].word
            if name in bodies:
                raise GrammarFault(f"the rule `{name[:64]}` is there twice", broken=True)
            self._at += 2
            bodies[name] = self._choice()
            if self._tokens[self._at].word in (")", "::="):
                raise unreadable(self._tokens[self._at].line)
        return Rules("root", bodies, lexed=False)

    def _defines(self) -> bool:
        """Whether a rule begins here, wherever the line breaks are."""
        here = self._tokens[self._at : self._at + 2]
        return len(here) == 2 and here[0].kind == "name" and here[1].word == "::="

    def _choice(self) -> Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise GrammarFault(f"groups within each other, more than {MAX_DEPTH}")
        options = [self._sequence()]
        while self._tokens[self._at].word == "|":
            self._at += 1
            options.append(self._sequence())
        self._depth -= 1
        return choice(options)

    def _sequence(self) -> Part:
        parts: list[Part] = []
        while self._tokens[self._at].word not in ("", "|", ")") and not self._defines():
            parts.append(self._counted(self._part()))
        return sequence(parts)

    def _counted(self, part: Part) -> Part:
        made = repeated(part, self._tokens[self._at])
        if made is None:
            return part
        self._at += 1
        return made

    def _part(self) -> Part:
        token = self._tokens[self._at]
        self._at += 1
        if token.kind == "text":
            return Text("".join(_letters(token.word[1:-1], token.line)))
        if token.kind == "set":
            return Expression(_set(token))
        if token.kind == "name":
            return Reference(token.word)
        if token.word == ".":
            return Expression("(?s:.)")
        if token.word == "(":
            inside = self._choice()
            if self._tokens[self._at].word != ")":
                raise unreadable(self._tokens[self._at].line)
            self._at += 1
            return inside
        raise unreadable(token.line)


def _letters(text: str, line: int) -> list[str]:
    found = []
    for match in _LETTER.finditer(text):
        *codes, escape, letter = match.groups()
        if escape is not None and escape not in _ESCAPES:
            raise GrammarFault(f"an escape in line {line} that is not known", broken=True)
        code = next(filter(None, codes), None)
        if code:
            letter = character(code, line)
        found.append(str(letter or _ESCAPES[str(escape)]))
    return found


def _set(token: Word) -> str:
    inside = token.word[1:-1]
    sign = "^" if inside.startswith("^") else ""
    raw = inside[len(sign) :]
    # An escaped hyphen is a letter, and begins no range.
    spelled = [match[0] for match in _LETTER.finditer(raw)]
    letters = _letters(raw, token.line)
    if not letters:
        raise GrammarFault(f"a set in line {token.line} that is empty", broken=True)
    made: list[str] = []
    at = 0
    while at < len(letters):
        if at + 2 < len(letters) and spelled[at + 1] == "-":
            if letters[at] > letters[at + 2]:
                raise GrammarFault(f"a range in line {token.line} that is none", broken=True)
            made.append(f"{escaped(letters[at])}-{escaped(letters[at + 2])}")
            at += 3
        else:
            made.append(escaped(letters[at]))
            at += 1
    return f"[{sign}{''.join(made)}]"
