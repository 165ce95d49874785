"""A grammar as rules of parts, whatever text it was read from, and what can be told of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gateway.grammars.faults import GrammarFault

MAX_TEXT = 64 * 1024
"""Characters of a grammar's text. All streams wait while it is read, about 1 ms a kilobyte."""
MAX_RULES = 1000
MAX_DEPTH = 50
"""Groups within each other."""
MAX_COUNT = 10_000


@dataclass(frozen=True, slots=True)
class Text:
    """These characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Expression:
    """What matches a regular expression, as `expressions.plain` makes it."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Reference:
    """What another rule says."""

    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other; () = nothing at all."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`most` None = without end."""

    part: Part
    least: int
    most: int | None


Part = Text | Expression | Reference | Sequence | Choice | Repeat


@dataclass(frozen=True, slots=True)
class Rules:
    """`terminals` are those of the rules that one lexeme is made of. What is `ignored`, terminals
    too, may stand behind each of them."""

    start: str
    bodies: Mapping[str, Part]
    terminals: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    lexed: bool = True
    """Whether the language knows lexemes."""


def sequence(parts: list[Part]) -> Part:
    return parts[0] if len(parts) == 1 else Sequence(tuple(parts))


def choice(options: list[Part]) -> Part:
    return options[0] if len(options) == 1 else Choice(tuple(options))


def inner(part: Part) -> tuple[Part, ...]:
    match part:
        case Sequence(parts):
            return parts
        case Choice(options):
            return options
        case Repeat(repeated):
            return (repeated,)
    return ()


def parts_of(part: Part) -> Iterator[Part]:
    """A part and all within it."""
    todo = [part]
    while todo:
        each = todo.pop()
        yield each
        todo.extend(inner(each))


def references(part: Part) -> Iterator[str]:
    return (each.name for each in parts_of(part) if isinstance(each, Reference))


def check(rules: Rules) -> None:
    """Raises GrammarFault for rules that are missing, and for a grammar that no finite text
    follows."""
    if rules.start not in rules.bodies:
        raise GrammarFault(f"it has no rule `{rules.start}`, with which to begin", broken=True)
    if len(rules.bodies) > MAX_RULES:
        raise GrammarFault(f"it has {len(rules.bodies)} rules, and {MAX_RULES} are allowed")
    for body in rules.bodies.values():
        for name in references(body):
            if name not in rules.bodies:
                raise GrammarFault(f"it has no rule `{name[:64]}`", broken=True)
    if rules.start not in _finite(rules.bodies):
        raise GrammarFault("no text that ends follows it", broken=True)


def _finite(bodies: Mapping[str, Part]) -> set[str]:
    """The rules that a finite text follows: of a sequence all parts must have one, of a choice one.

    Each part is looked at once for each of its parts that is found to have one.
    """
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    """Part → those that need it."""
    missing: list[int] = []
    """How many a part still needs."""
    numbers = {name: number for number, name in enumerate(bodies)}
    missing.extend([1] * len(bodies))
    done: list[int] = []
    todo = [(body, numbers[name]) for name, body in bodies.items()]
    while todo:
        part, needer = todo.pop()
        number = len(missing)
        waiting[number].append(needer)
        missing.append(1)
        match part:
            case Reference(name):
                waiting[numbers[name]].append(number)
            case Sequence(parts) if parts:
                missing[number] = len(parts)
                todo.extend((each, number) for each in parts)
            case Choice(options):
                todo.extend((each, number) for each in options)
            case Repeat(repeated, least) if least:
                todo.append((repeated, number))
            case _:
                missing[number] = 0
                done.append(number)
    while done:
        for needer in waiting[done.pop()]:
            missing[needer] -= 1
            if missing[needer] == 0:
                done.append(needer)
    return {name for name, number in numbers.items() if missing[number] <= 0}


def in_order(bodies: Mapping[str, Part], wanted: Iterable[str]) -> list[str] | None:
    """The rules that are `wanted` and those that they need, each behind those that it needs itself;
    None = a rule needs itself."""
    found: list[str] = []
    state: dict[str, bool] = {}
    """Name → whether it is finished."""
    todo: list[tuple[str, bool]] = [(name, False) for name in wanted]
    while todo:
        name, finished = todo.pop()
        if finished:
            state[name] = True
            found.append(name)
        elif name not in state:
            state[name] = False
            todo.append((name, True))
            for needed in references(bodies[name]):
                if state.get(needed) is False:
                    return None
                if needed not in state:
                    todo.append((needed, False))
    return found
