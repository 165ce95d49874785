"""What llguidance refuses, in words of our own, and where in a schema it stands.

Its own words show the grammar that it was given. Where it does not say what part of it is at fault,
the parts are compiled alone until none fails for the same reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import llguidance

from supervisor.errors import ClientError, InvalidValue, UnsupportedValue
from worker.grammar.checker import param
from worker.grammar.matcher import UNFORCED, limits, with_deep_stack
from worker.grammar.schema import OPTIONS
from worker.grammar.subschemas import inside, resolve

_MOST_TEXT = 500_000
"""Characters of schemas that are compiled to find a place: 0.5 s."""


class SchemaPart(NamedTuple):
    """A schema in a grammar, as `compilable` made it, and its place in the request."""

    schema: str
    place: str


class RefusalReason(NamedTuple):
    """Why llguidance refuses. `broken`: the schema is at fault, and not what a grammar can express.
    `detail`: which bounds exclude each other."""

    words: str
    broken: bool = False
    detail: str = ""


IMPOSSIBLE = RefusalReason("no JSON value is valid under it", broken=True)
NO_TEXT = RefusalReason("no text follows it", broken=True)
_REASONS = (
    (
        r"oneOf constraints",
        RefusalReason(
            "it can't be shown that the alternatives of a `oneOf` exclude each other; use `anyOf`"
        ),
    ),
    (r"Unsatisfiable|NoExtension", IMPOSSIBLE),
    (
        r"look-around|lookarounds",
        RefusalReason("a pattern with look-around or word boundaries is not supported"),
    ),
    (r"backreference", RefusalReason("a pattern with backreferences is not supported")),
    (
        r"error: (unclosed|unopened|repetition|invalid (repetition|character)|empty|nested"
        r"|the rep)",
        RefusalReason("a pattern is not a regular expression", broken=True),
    ),
    (
        r"regex parse error",
        RefusalReason("a pattern has an escape or a group that is not supported"),
    ),
    (
        r"are not disjoint",
        RefusalReason("it can't be shown that no name matches two of the `patternProperties`"),
    ),
    (
        r"min/maxProperties",
        RefusalReason("`minProperties` and `maxProperties` need all `properties` to be `required`"),
    ),
    (r"Unable to determine if regex is empty", RefusalReason("a pattern is too complex")),
    (r"too (large|big|many|complex)|exceed|limit|fuel|panic", RefusalReason("it is too large")),
)
_CROSSED = re.compile(
    r"m\w+ \([\d.eE+-]+\) is greater than m\w+ \([\d.eE+-]+\)"
    r"|range \[[^\]]*\] does not contain a multiple of [\d.eE+-]+"
)
_OTHER = RefusalReason("it can't be turned into a grammar")


def reason_for(error: str) -> RefusalReason:
    """The reason in llguidance's own words."""
    # What follows is the grammar.
    error = error.split("\n   1 | ")[0]
    reason = next((reason for sign, reason in _REASONS if re.search(sign, error)), _OTHER)
    crossed = _CROSSED.search(error) if reason is IMPOSSIBLE else None
    return reason._replace(detail=f": {crossed[0]}") if crossed else reason


def explain_refusal(error: str, parts: Sequence[SchemaPart]) -> ClientError:
    """Why a grammar with these schemas in it is refused, for which llguidance said `error`."""
    for part in parts:
        root = json.loads(part.schema)
        if reason := _alone(root, root):
            reason, path = _innermost(root, reason)
            return refusal_at(reason, f"{part.place}{path}"[:240])
    return refusal_at(reason_for(error), parts[0].place)


def refusal_of(error: str, place: str) -> ClientError:
    """Why a grammar without schemas is refused, for which llguidance said `error`."""
    if place == "tools":
        return UnsupportedValue("These tools can't be enforced.", param=place)
    reason = reason_for(error)
    return refusal_at(NO_TEXT if reason.words == IMPOSSIBLE.words else reason, place, "grammar")


def refusal_at(reason: RefusalReason, place: str, what: str = "schema") -> ClientError:
    kind = InvalidValue if reason.broken else UnsupportedValue
    return kind(
        f"This {what} can't be enforced: {reason.words}{reason.detail} (at {place}).",
        param=param(place),
    )


def _innermost(root: dict[str, Any], reason: RefusalReason) -> tuple[RefusalReason, str]:
    """The reason of the innermost part of a schema that is refused for it by itself, and the
    path."""
    path, here = "", root
    left = _MOST_TEXT
    seen = {id(root)}
    while True:
        for step, part in _parts(root, here):
            if not isinstance(part, dict) or id(part) in seen or left < 0:
                continue
            seen.add(id(part))
            left -= len(json.dumps(part))
            found = _alone(part, root)
            if found and found.words == reason.words:
                path = step[1:] if step.startswith("#") else f"{path}/{step}"
                reason, here = found, part
                break
        else:
            at_pattern = "pattern" in here and reason.words.startswith("a pattern")
            return reason, f"{path}/pattern" if at_pattern else path


def _parts(root: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, object]]:
    parts = [(step, part) for step, part in inside(schema) if step.split("/")[0] not in _SHARED]
    if "$ref" in schema:
        parts.append((schema["$ref"], resolve(root, schema["$ref"])))
    return parts


_SHARED = ("$defs", "definitions")


def _alone(part: dict[str, Any], root: dict[str, Any]) -> RefusalReason | None:
    """Why llguidance refuses a part of a schema alone; None = it does not."""
    shared = {key: root[key] for key in (OPTIONS, *_SHARED) if key in root}
    text = json.dumps({**part, **shared})
    grammar = llguidance.LLMatcher.grammar_from_lark(f"{UNFORCED}start: %json {text}\n")
    error = with_deep_stack(lambda: llguidance.LLMatcher.validate_grammar(grammar, limits=limits()))
    # Warnings are about what `lenient` leaves out.
    return reason_for(error) if error and not error.startswith("WARNING") else None
