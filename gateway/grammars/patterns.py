"""Grammars without recursion as one regular expression."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.grammars.expressions import escaped
from gateway.grammars.faults import GrammarFault
from gateway.grammars.rules import (
    Choice,
    Expression,
    Part,
    Reference,
    Repeat,
    Rules,
    Sequence,
    Text,
    in_order,
)


def pattern_of(rules: Rules, limit: int) -> str:
    """The expression that matches the texts that follow `rules`, of at most `limit` characters.

    Raises GrammarFault for rules that need themselves, or take more.
    """
    order = in_order(rules.bodies, (*rules.ignored, rules.start))
    if order is None:
        raise GrammarFault("rules that need themselves")
    made = _terminals(rules, order, limit)
    blank = ""
    if rules.ignored:
        ignored = (made[name] for name in rules.ignored)
        blank = f"(?:{_joined(ignored, '|', limit)})*"
        lexemes = {name: f"(?:{pattern}){blank}" for name, pattern in made.items()}
        made.update(lexemes)
    for name in order:
        if name not in rules.terminals:
            made[name] = _made(rules.bodies[name], made, blank, limit)
    return _joined((blank, made[rules.start]), "", limit)


def terminal_patterns(rules: Rules, limit: int) -> dict[str, str]:
    """The terminals alone, without what is ignored between them. Raises GrammarFault."""
    order = in_order(rules.bodies, sorted(rules.terminals))
    if order is None:
        raise GrammarFault("terminals that need themselves", broken=True)
    return _terminals(rules, order, limit)


def _terminals(rules: Rules, order: Iterable[str], limit: int) -> dict[str, str]:
    made: dict[str, str] = {}
    for name in order:
        if name in rules.terminals:
            made[name] = _made(rules.bodies[name], made, "", limit)
    return made


def _made(part: Part, made: dict[str, str], blank: str, limit: int) -> str:
    """`blank` stands behind every lexeme."""
    match part:
        case Text(text):
            found = escaped(text) + blank
        case Expression(pattern):
            found = (f"(?:{pattern})" if blank else pattern) + blank
        case Reference(name):
            found = made[name]
        case Sequence(parts):
            pieces = (_group(each, _made(each, made, blank, limit)) for each in parts)
            found = _joined(pieces, "", limit)
        case Choice(options):
            found = _joined((_made(each, made, blank, limit) for each in options), "|", limit)
        case Repeat(repeated, least, most):
            found = f"(?:{_made(repeated, made, blank, limit)}){count(least, most)}"
    return found


def _joined(pieces: Iterable[str], between: str, limit: int) -> str:
    """Raises GrammarFault as soon as it is too long."""
    kept: list[str] = []
    for piece in pieces:
        kept.append(piece)
        limit -= len(piece) + len(between)
        if limit < -len(between):
            raise GrammarFault("rules that take too many characters as a regular expression")
    return between.join(kept)


def _group(part: Part, made: str) -> str:
    """What a sequence may hold as it is."""
    if isinstance(part, Text | Repeat | Sequence) or len(made) == 1:
        return made
    return f"(?:{made})"


def count(least: int, most: int | None) -> str:
    match least, most:
        case 0, None:
            return "*"
        case 1, None:
            return "+"
        case 0, 1:
            return "?"
    if least == most:
        return f"{{{least}}}"
    return f"{{{least},{'' if most is None else most}}}"
