"""The schemas within a schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

ONE = ("additionalProperties", "items")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions")


def inside(schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """What stands in a schema as a schema, and the path to it. Skips what is of the wrong type."""
    for keyword in ONE:
        if keyword in schema and not isinstance(schema[keyword], list):
            yield keyword, schema[keyword]
    for keyword in LISTS:
        for index, each in enumerate(items(schema, keyword)):
            yield f"{keyword}/{index}", each
    for keyword in MAPS:
        for name, each in members(schema, keyword).items():
            yield f"{keyword}/{ascii(name)[1:-1]}", each


def items(schema: dict[str, Any], keyword: str) -> list[Any]:
    """The array at `keyword`; empty where there is none."""
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def members(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    """The object at `keyword`; empty where there is none."""
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def resolve(root: dict[str, Any], pointer: str) -> object:
    """What `#/…` leads to. Raises LookupError."""
    value: object = root
    for step in unquote(pointer).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value[step]
        elif isinstance(value, list) and step.isdecimal():
            value = value[int(step)]
        else:
            raise LookupError(step)
    return value
