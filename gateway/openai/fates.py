"""What becomes of a parameter that is none of our own: four fates, and how they are carried out.

Pure. The parameters and their fates are in `gateway.openai.local_servers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.errors import BulkheadError, InvalidType, UnsupportedParameter

Members = dict[str, Any]
WHERE = "docs/api.md#settings-of-other-local-servers"
TEMPLATE = "chat_template_kwargs"
_NAME_MAX = 64


@dataclass(frozen=True, slots=True)
class Ignored:
    """Whatever its value, the answer would be the same."""


@dataclass(frozen=True, slots=True)
class Neutral:
    """Not supported: ignored with one of these values, which ask for nothing, else refused."""

    values: tuple[object, ...]
    why: str = "this server has no such setting"


@dataclass(frozen=True, slots=True)
class Mapped:
    """The same as parameters of our own, which it is turned into.

    `members` gets the value. It raises ValueError, with a sentence, for one that means nothing.
    """

    to: str
    """For people."""
    members: Callable[[Any], Members]


@dataclass(frozen=True, slots=True)
class Refused:
    """It would change the answer, whatever its value."""

    why: str


@dataclass(frozen=True, slots=True)
class Nested:
    """An object whose members are judged as if they stood outside, along with these of our own."""

    own: frozenset[str]
    otherwise: Mapping[str, Mapped]
    """Those that mean something else than outside."""


Fate = Ignored | Neutral | Mapped | Refused | Nested


@dataclass(slots=True)
class Translated:
    """A body in our own terms, and what of it changes nothing."""

    members: Members
    ignored: list[str] = field(default_factory=list)
    sent_as: dict[str, str] = field(default_factory=dict)
    """By our own name, the one that the client used."""

    def in_the_clients_words(self, error: BulkheadError) -> BulkheadError:
        """The error with the name of the parameter that the client has sent."""
        param = error.param or ""
        name = re.split(r"[.\[]", param)[0]
        if name not in self.sent_as:
            return error
        told = self.sent_as[name] + param.removeprefix(name)
        return type(error)(error.message.replace(f"`{param}`", f"`{told}`"), param=told)


def translate(raw: Mapping[str, Any], own: frozenset[str], fates: Mapping[str, Fate]) -> Translated:
    """`raw` with everything that has a fate carried out. What is neither `own` nor has one stays.

    What the client says in our own terms goes before what it says in others', and of these what
    stands first in `fates`; the rest is ignored then.
    Raises UnsupportedParameter, or InvalidType for a value that means nothing.
    """
    done = Translated({name: value for name, value in raw.items() if name in own})
    foreign = {name: value for name, value in raw.items() if name not in own}
    for name in _in_order(foreign, fates):
        _carry_out(done, name, foreign[name], fates, name)
    return done


def _in_order(names: Mapping[str, Any], fates: Mapping[str, Fate]) -> list[str]:
    known = [name for name in fates if name in names]
    return known + [name for name in names if name not in fates]


def _carry_out(
    done: Translated, name: str, value: Any, fates: Mapping[str, Fate], label: str
) -> None:
    """`label` is the name with its path."""
    match fates.get(name):
        case None:
            done.members[label] = value
        case Ignored():
            done.ignored.append(label)
        case Neutral(values, why):
            if not any(_same(value, each) for each in values):
                raise _refusal(label, why)
            done.ignored.append(label)
        case Refused(why):
            raise _refusal(label, why)
        case Mapped(members=members):
            try:
                meant = members(value)
            except ValueError as error:
                raise InvalidType(f"Invalid value for `{label}`: {error}.", param=label) from None
            _put(done, label, meant)
        case Nested(own, otherwise):
            if not isinstance(value, dict):
                raise InvalidType(f"Invalid type for `{label}`: expected `object`.", param=label)
            inside: dict[str, Fate] = {**dict.fromkeys(own, Ignored()), **fates, **otherwise}
            for inner in _in_order(value, inside):
                path = f"{label}.{inner[:_NAME_MAX]}"
                if inner in own:
                    _put(done, path, {inner: value[inner]})
                elif isinstance(inside.get(inner), Nested | None):
                    raise unknown_parameter(path)
                else:
                    _carry_out(done, inner, value[inner], inside, path)


def _put(done: Translated, label: str, meant: Members) -> None:
    """Nothing overrules what is there already; what was overruled or means nothing is ignored."""
    used = False
    for name, value in meant.items():
        if name == TEMPLATE:
            given = done.members.get(TEMPLATE, {})
            if not isinstance(given, dict):
                continue  # it is refused in a moment
            used = used or any(given.get(key, each) == each for key, each in value.items())
            done.members[TEMPLATE] = {**value, **given}
        elif name not in done.members:
            done.members[name] = value
            done.sent_as[name] = label
            used = True
        else:
            used = used or done.members[name] == value
    if not used:
        done.ignored.append(label)


def _same(value: object, other: object) -> bool:
    """1 and 1.0 are the same number; 1 and true are not the same."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _refusal(label: str, why: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"`{label}` would change the answer and is not supported: {why}. See {WHERE}.", param=label
    )


def unknown_parameter(param: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"Unknown parameter: `{param}`. docs/api.md lists what is taken.", param=param
    )
