"""Patterns of JSON Schemas: those that mean something else to llguidance, and what they cost
merged."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import llguidance

MAX_MERGED = 100_000
"""Of the product of the sizes of the patterns that may hold for one string. Whether all can be met
at once is decided over their common states, without a limit: 1,000,000 took 2 to 4 s."""
_MAX_STEPS = 50_000
_ANY = ("additionalProperties", "items")
_IN_PLACE = ("allOf", "anyOf", "oneOf")
_CODE = "(?:0[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])"
_ONE_CONTROL = (
    r"(?:[\x00-\x07\x0b\x0e-\x1f\x7f]|\\[va0]|\\c[A-GKN-Z]"
    rf"|\\(?:x|u00){_CODE}|\\u\{{0*(?:{_CODE}|[0-7bBeEfF])\}})"
)
_CONTROL = re.compile(_ONE_CONTROL)
"""A control character that JSON has only as \\u00XX, which no answer may write."""
_CONTROLS = re.compile(rf"\[(?:{_ONE_CONTROL})+")
"""Brackets, but for the closing one, with nothing but such."""
_UNWRITABLE = "no answer can have the control characters that a pattern asks for"
_COUNTED = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def foreign(pattern: str) -> str:
    """Why a pattern would mean something else to llguidance than to ECMA-262; "" = it would not.

    Its dialect has sets within brackets ("[a[b]]", "[a&&b]"), and flags.
    """
    within = ""
    """What brackets have so far, of which the last is open."""
    index = 0
    while index < len(pattern):
        here = pattern[index]
        control = _CONTROL.match(pattern, index)
        if control and not within:
            return _UNWRITABLE
        if here == "\\":
            if index + 1 == len(pattern):
                return "a pattern ends within an escape"
            within += (control[0] if control else pattern[index : index + 2]) if within else ""
            index += len(control[0]) - 1 if control else 1
        elif within:
            if here == "[" or pattern[index : index + 2] in ("&&", "--", "~~"):
                return "in a pattern, escape `[`, `&`, `-` and `~` between brackets"
            if here == "]" and _CONTROLS.fullmatch(within):
                return _UNWRITABLE
            within = "" if here == "]" else within + here
        elif here == "[":
            within = "["
            if pattern[index + 1 : index + 2] == "^":
                within += "^"
                index += 1
            if pattern[index + 1 : index + 2] == "]":
                return "a pattern has empty brackets, or an unescaped `]` in them"
        elif (
            re.match(r"\(\?[a-zA-Z-]*[xuUR]", pattern[index:])
            or pattern[index : index + 3] == "(?P"
        ):
            return "flags and named groups in patterns are not supported"
        index += 1
    return ""


def beyond(pattern: str) -> bool:
    """Whether llguidance can't read a pattern: it has look-around, references, or is broken."""
    return bool(
        llguidance.LLMatcher.validate_grammar(
            json.dumps({"grammars": [{"json_schema": {"type": "string", "pattern": pattern}}]})
        )
    )


def size(pattern: str) -> int:
    """States that a pattern has at most, about: its characters, counted repetitions unrolled."""
    groups = [0]
    last = 0
    index = 0
    while index < len(pattern):
        here = pattern[index]
        counted = _COUNTED.match(pattern, index) if here == "{" else None
        index += 1
        if counted:
            times = max(int(count) for count in counted.groups("1") if count)
            groups[-1] += last * (times - 1)
            last *= times
            index = counted.end()
        elif here == "(":
            groups.append(0)
        elif here == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif here not in "*+?|^$":
            if here == "\\":
                index += 1
            elif here == "[":
                end = re.compile(r"(?:\\.|[^\]\\])*\]").match(pattern, index)
                index = end.end() if end else len(pattern)
            last = 1
            groups[-1] += 1
    return max(1, sum(groups))


def merged(root: dict[str, Any], resolve: Callable[[str], object]) -> bool:
    """Whether so many patterns may hold for one string that deciding on them takes too long.

    Strings are told apart by the name of their property alone, and alternatives count as if all of
    them held: more is refused than must be. `resolve` returns what a `$ref` leads to.
    """
    patterns: defaultdict[str, set[str]] = defaultdict(set)
    todo: list[tuple[Any, str]] = [(root, "")]
    seen: set[tuple[int, str]] = set()
    while todo:
        schema, name = todo.pop()
        if not isinstance(schema, dict) or (id(schema), name) in seen:
            continue
        seen.add((id(schema), name))
        if len(seen) > _MAX_STEPS:
            return True
        if isinstance(schema.get("pattern"), str):
            patterns[name].add(schema["pattern"])
        if isinstance(schema.get("$ref"), str):
            todo.append((resolve(schema["$ref"]), name))
        for key in _IN_PLACE:
            todo.extend((inner, name) for inner in _list(schema.get(key)))
        todo.extend((schema.get(key), "*") for key in _ANY)
        todo.extend((inner, "*") for inner in _list(schema.get("prefixItems")))
        todo.extend((inner, "*") for inner in _map(schema.get("patternProperties")).values())
        todo.extend((inner, f"={key}") for key, inner in _map(schema.get("properties")).items())
    everywhere = patterns.pop("*", set())
    groups = [everywhere | found for found in patterns.values()] or [everywhere]
    return any(math.prod(map(size, group)) > MAX_MERGED for group in groups if len(group) > 1)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _map(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
