"""Grammars as llguidance takes them."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.grammars.expressions import escaped
from gateway.grammars.patterns import count, terminal_patterns
from gateway.grammars.rules import (
    Choice,
    Expression,
    Part,
    Reference,
    Repeat,
    Rules,
    Sequence,
    Text,
)

_TERMINAL_MAX = 32 * 1024


def lark_of(rules: Rules) -> str:
    """The grammar in llguidance's Lark, with names of our own.

    llguidance cuts a text into lexemes, each as long as it can be, which is Lark's own way. Where
    the language knows no lexemes each letter is one, so that no text is lost to it.
    Raises GrammarFault for terminals that need themselves, or are too long.
    """
    terminals = terminal_patterns(rules, _TERMINAL_MAX)
    names = {
        name: f"{'T' if name in terminals else 'r'}{number}"
        for number, name in enumerate(rules.bodies)
    }
    lines = [f"start: {names[rules.start]}"]
    for name, body in rules.bodies.items():
        made = f"/{terminals[name]}/" if name in terminals else _made(body, names, rules.lexed)
        lines.append(f"{names[name]}: {made}")
    lines += [f"%ignore {names[name]}" for name in rules.ignored]
    return "\n".join(lines) + "\n"


def _made(part: Part, names: Mapping[str, str], lexed: bool) -> str:
    match part:
        case Text(""):
            return '""'
        case Text(text):
            return f"/{escaped(text)}/" if lexed else " ".join(f"/{escaped(c)}/" for c in text)
        case Expression(pattern):
            return f"/{pattern}/"
        case Reference(name):
            return names[name]
        case Sequence(parts):
            return " ".join(_group(each, names, lexed) for each in parts) or '""'
        case Choice(options):
            return " | ".join(_made(each, names, lexed) for each in options)
        case Repeat(repeated, least, most):
            return f"({_made(repeated, names, lexed)}){count(least, most)}"


def _group(part: Part, names: Mapping[str, str], lexed: bool) -> str:
    made = _made(part, names, lexed)
    return f"({made})" if isinstance(part, Choice) else made
