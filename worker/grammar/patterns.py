"""Patterns of JSON Schemas that mean something else to llguidance than to JSON Schema."""

from __future__ import annotations

import json
import re

import llguidance

_CODE = "(?:0[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])"
_ONE_CONTROL = (
    r"(?:[\x00-\x07\x0b\x0e-\x1f\x7f]|\\[va0]|\\c[A-GKN-Z]"
    rf"|\\(?:x|u00){_CODE}|\\u\{{0*(?:{_CODE}|[0-7bBeEfF])\}})"
)
_CONTROL = re.compile(_ONE_CONTROL)
"""A control character that JSON has only as \\u00XX, which no answer may write."""
_CONTROLS = re.compile(rf"\[(?:{_ONE_CONTROL})+")
"""Brackets with nothing but such characters in them, up to the closing one."""
_UNWRITABLE = "no answer can have the control characters that a pattern asks for"


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


def unreadable(pattern: str) -> bool:
    """Whether llguidance can't read a pattern: it has look-around, references, or is broken."""
    return bool(
        llguidance.LLMatcher.validate_grammar(
            json.dumps({"grammars": [{"json_schema": {"type": "string", "pattern": pattern}}]})
        )
    )
