"""Words of JSON Schema."""

from __future__ import annotations

from typing import Any

from worker.grammar.subschemas import LISTS, MAPS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ASSERTIONS = _words(
    "additionalProperties allOf anyOf const enum exclusiveMaximum exclusiveMinimum format items "
    "maximum maxItems maxLength maxProperties minimum minItems minLength minProperties multipleOf "
    "oneOf pattern patternProperties prefixItems properties $ref required type"
)
UNSUPPORTED = _words(
    "additionalItems contains dependencies dependentRequired dependentSchemas else if "
    "maxContains minContains not propertyNames then unevaluatedItems unevaluatedProperties "
    "uniqueItems $dynamicAnchor $dynamicRef $recursiveAnchor $recursiveRef $vocabulary"
)
"""Words of JSON Schema that no grammar here expresses. Words that JSON Schema doesn't know mean
nothing, to any validator."""
TYPES = _words("array boolean integer null number object string")
_LEAP = r"([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = rf"^([1-9]\d{{3}}-(0[13-9]|1[0-2]|02-([01]|2[0-8]))|{_LEAP}-02-29)"
NARROWED = {
    "date": _DATE,
    "date-time": _DATE + "[^:]*:[^:]*:[0-5]",
    "time": "^[^:]*:[^:]*:[0-5]",
}
"""Patterns that hold beside llguidance's: it lets a February of any year have 29 days and any
minute 61 seconds, and has a year 0, which few calendars have."""
FORMATS = _words("date date-time duration email hostname ipv4 ipv6 time uuid uri")

IN_PLACE = frozenset(("allOf", "anyOf", "oneOf", "$ref", "const", "enum"))
BRANCHING = frozenset(("allOf", "anyOf", "oneOf"))
KINDS: dict[str, tuple[Any, str]] = {
    "type": ((str, list), "a string or an array of strings"),
    "enum": (list, "an array"),
    "required": (list, "an array of strings"),
    "pattern": (str, "a string"),
    "format": (str, "a string"),
    "$ref": (str, "a string"),
    **dict.fromkeys(LISTS, (list, "an array")),
    **dict.fromkeys(MAPS, (dict, "an object")),
}
"""What the values of keywords must be, besides schemas."""
