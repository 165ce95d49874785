"""Grammars in Lark's language."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gateway.grammars.expressions import escaped, plain
from gateway.grammars.faults import GrammarFault
from gateway.grammars.rules import (
    MAX_DEPTH,
    MAX_TEXT,
    Expression,
    Part,
    Reference,
    Repeat,
    Rules,
    Text,
    check,
    choice,
    references,
    sequence,
)
from gateway.grammars.words import Word, character, repeated, unreadable

_TOKEN = re.compile(
    r"""
    (?P<comment> (?://|\#)[^\n]* )
  | (?P<line>    \s*\n\s* )
  | (?P<space>   [^\S\n]+ )
  | (?P<text>    "(?:[^"\\\n]|\\.)*" i? )
  | (?P<regex>   /(?:[^/\\\n]|\\.)+/ [imslux]* )
  | (?P<special> <[^>\s]{1,80}> | @[\w.-]+ )
  | (?P<count>   \{\s*\d+\s*(?:,\s*\d*\s*)?\} | ~\s*\d+(?:\s*\.\.\s*\d+)? )
  | (?P<name>    [A-Za-z_][A-Za-z0-9_]* )
  | (?P<number>  -?\d+ )
  | (?P<word>    %[a-z]+ )
  | (?P<sign>    \.\. | -> | [:|()\[\]*+?!.,&~{}=] )
    """,
    re.VERBOSE,
)
_DIGITS = "[0-9]+"
_EXPONENT = f"(?:e|E)[+\\-]?{_DIGITS}"
_FLOAT = f"(?:{_DIGITS}{_EXPONENT}|(?:{_DIGITS}\\.[0-9]*|\\.{_DIGITS})(?:{_EXPONENT})?)"
_NUMBER = f"(?:{_FLOAT}|{_DIGITS})"
COMMON: Mapping[str, str] = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": _DIGITS,
    "SIGNED_INT": f"[+\\-]?{_DIGITS}",
    "DECIMAL": f"(?:{_DIGITS}\\.[0-9]*|\\.{_DIGITS})",
    "FLOAT": _FLOAT,
    "SIGNED_FLOAT": f"[+\\-]?{_FLOAT}",
    "NUMBER": _NUMBER,
    "SIGNED_NUMBER": f"[+\\-]?{_NUMBER}",
    "ESCAPED_STRING": '"(?:[^"\\\\\\n]|\\\\.)*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[a-zA-Z]",
    "WORD": "[a-zA-Z]+",
    "CNAME": "[_a-zA-Z][_a-zA-Z0-9]*",
    "WS_INLINE": "[ \\t]+",
    "WS": "[ \\t\\f\\r\\n]+",
    "CR": "\\r",
    "LF": "\\n",
    "NEWLINE": "(?:\\r?\\n)+",
    "SH_COMMENT": "\\#[^\\n]*",
    "CPP_COMMENT": "\\/\\/[^\\n]*",
    "SQL_COMMENT": "\\-\\-[^\\n]*",
}
"""Lark's own library of terminals, as far as it needs no look-around."""
_STATEMENTS = ("%import", "%ignore", "%llguidance")
_BEYOND = {"<": "the special token", "@": "the grammar"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0", "b": "\b"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def parse_lark(text: str) -> Rules:
    """Raises GrammarFault."""
    if len(text) > MAX_TEXT:
        raise GrammarFault(f"it has {len(text)} characters, and {MAX_TEXT} are allowed")
    rules = _Parser(_tokens(text)).parse()
    check(rules)
    return rules


def _tokens(text: str) -> list[Word]:
    found: list[Word] = []
    at, line, depth = 0, 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise unreadable(line)
        kind, word = str(match.lastgroup), match[0]
        if kind in ("special", "word") and word not in _STATEMENTS:
            raise GrammarFault(f"{_BEYOND.get(word[0], 'the word')} `{word[:32]}` in line {line}")
        if kind == "sign":
            depth += (word in "([") - (word in ")]")
        if kind == "line":
            if depth <= 0:  # a definition goes on in brackets
                found.append(Word("line", "", line))
        elif kind not in ("comment", "space"):
            found.append(Word(kind, word, line))
        line += word.count("\n")
        at = match.end()
    found.append(Word("line", "", line))
    return _joined(found)


def _joined(tokens: list[Word]) -> list[Word]:
    """Without ends of lines behind which a bar goes on with the definition."""
    kept: list[Word] = []
    for token in tokens:
        while token.word == "|" and kept and kept[-1].kind == "line":
            kept.pop()
        kept.append(token)
    return kept


class _Parser:
    def __init__(self, tokens: list[Word]) -> None:
        self._tokens = tokens
        self._at = 0
        self._bodies: dict[str, Part] = {}
        self._ignored: list[str] = []
        self._depth = 0

    def parse(self) -> Rules:
        while self._at < len(self._tokens) - 1:
            token = self._next()
            match token.word:
                case "":
                    continue
                case "%import":
                    self._import()
                case "%ignore":
                    name = f"IGNORED_{len(self._ignored)}"
                    self._define(name, self._choice(), token.line)
                    self._ignored.append(name)
                case "%llguidance":
                    self._expect("{")
                    if not self._skip("}"):
                        raise GrammarFault("options of `%llguidance`")
                case _:
                    self._rule(token)
            if self._tokens[self._at].kind != "line":
                raise self._stuck()
        for name, body in self._bodies.items():
            if is_terminal(name):
                for other in references(body):
                    if not is_terminal(other):
                        raise GrammarFault(
                            f"the terminal `{name[:64]}` uses the rule `{other[:64]}`", broken=True
                        )
        terminals = frozenset(filter(is_terminal, self._bodies))
        return Rules("start", self._bodies, terminals, tuple(self._ignored))

    # ── statements ───────────────────────────────────────────────────────────────────────────────

    def _rule(self, token: Word) -> None:
        while token.word in ("?", "!"):
            token = self._next()
        if token.kind != "name":
            raise unreadable(token.line)
        if self._skip("."):
            self._next()  # a priority: of texts that follow in two ways, which one
        if self._peek() in ("[", "{"):
            raise GrammarFault(f"attributes or parameters of rules, in line {token.line}")
        self._expect(":")
        self._define(token.word, self._choice(), token.line)

    def _define(self, name: str, body: Part, line: int) -> None:
        if name in self._bodies:
            raise GrammarFault(f"the rule `{name[:64]}` is there twice", broken=True)
        self._bodies[name] = body

    def _import(self) -> None:
        source = self._next()
        if source.word != "common":
            raise GrammarFault("an import from elsewhere than `common`")
        names: list[tuple[str, str]] = []
        if self._skip("."):
            name = self._name()
            names.append((name, self._name() if self._skip("->") else name))
        else:
            self._expect("(")
            while not self._skip(")"):
                name = self._name()
                names.append((name, name))
                self._skip(",")
        for name, alias in names:
            if name not in COMMON:
                raise GrammarFault(f"the import of `{name[:64]}`")
            self._define(alias, Expression(COMMON[name]), source.line)

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _choice(self) -> Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise GrammarFault(f"groups within each other, more than {MAX_DEPTH}")
        options = [self._sequence()]
        while self._skip("|"):
            options.append(self._sequence())
        self._depth -= 1
        return choice(options)

    def _sequence(self) -> Part:
        parts: list[Part] = []
        while self._peek() not in ("", "|", ")", "]"):
            if self._skip("->"):
                self._name()
                continue
            parts.append(self._counted(self._part()))
        return sequence(parts)

    def _counted(self, part: Part) -> Part:
        made = repeated(part, self._tokens[self._at])
        if made is None:
            return part
        self._at += 1
        return made

    def _part(self) -> Part:
        token = self._next()
        if token.kind == "text":
            text = _text(token)
            if self._skip(".."):
                return _range(text, _text(self._next()), token.line)
            folded = token.word.endswith("i")
            return Expression(f"(?i:{escaped(text)})") if folded else Text(text)
        if token.kind == "regex":
            return _expression(token)
        if token.kind == "name":
            if self._peek() == "{":
                raise GrammarFault(f"attributes or parameters of rules, in line {token.line}")
            return Reference(token.word)
        if token.word in ("(", "["):
            inside = self._choice()
            self._expect(")" if token.word == "(" else "]")
            return inside if token.word == "(" else Repeat(inside, 0, 1)
        if token.word in ("&", "~"):
            raise GrammarFault(f"terminals that are intersected or negated, in line {token.line}")
        raise unreadable(token.line)

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────

    def _next(self) -> Word:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _name(self) -> str:
        token = self._next()
        if token.kind != "name":
            raise unreadable(token.line)
        return token.word

    def _peek(self) -> str:
        """The next word, "" at the end of a line. Texts and expressions are none."""
        token = self._tokens[self._at]
        return token.kind if token.kind in ("text", "regex") else token.word

    def _skip(self, word: str) -> bool:
        found = self._peek() == word
        self._at += found
        return found

    def _expect(self, word: str) -> None:
        if not self._skip(word):
            raise self._stuck()

    def _stuck(self) -> GrammarFault:
        return unreadable(self._tokens[self._at].line)


def is_terminal(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


def _text(token: Word) -> str:
    if token.kind != "text":
        raise unreadable(token.line)
    inside = token.word.removesuffix("i")[1:-1]
    return _ESCAPE.sub(lambda found: _unescaped(found, token.line), inside)


def _unescaped(found: re.Match[str], line: int) -> str:
    letter = found[4]
    if letter is None:
        return character(next(filter(None, found.groups())), line)
    if letter.isalnum() and letter not in _ESCAPES:
        raise GrammarFault(f"an escape in line {line} that is not known", broken=True)
    return _ESCAPES.get(letter, letter)


def _range(first: str, last: str, line: int) -> Part:
    if len(first) != 1 or len(last) != 1 or first > last:
        raise GrammarFault(f"a range in line {line} that is none", broken=True)
    return Expression(f"[{escaped(first)}-{escaped(last)}]")


def _expression(token: Word) -> Part:
    body, _, flags = token.word.rpartition("/")
    if "x" in flags:
        raise GrammarFault(f"the flag `x` of an expression in line {token.line}")
    try:
        made = plain(body[1:], whole=False)
    except GrammarFault as fault:
        raise GrammarFault(
            f"an expression in line {token.line} has {fault.words}"
            if not fault.broken
            else f"an expression in line {token.line} is none: {fault.words}",
            broken=fault.broken,
        ) from None
    kept = "".join(flag for flag in "is" if flag in flags)
    return Expression(f"(?{kept}:{made})" if kept else made)
