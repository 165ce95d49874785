"""What schemas of older drafts and of some libraries say in other words than llguidance knows."""

from __future__ import annotations

from typing import Any

from worker.grammar.subschemas import resolve

_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_NAMES = {"uuid": f"^{_UUID}$", "date": r"^[1-9]\d{3}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])$"}
"""Of formats that keys of dictionaries have. A February has 28 days here, and so has any month."""
_SAYS_NOTHING = frozenset(("type", "title", "description"))


def modernize(schema: dict[str, Any], root: dict[str, Any]) -> None:
    """Put a schema in place into words of draft 2020-12 that mean the same, its own schemas left as
    they are. `root` is what its `$ref`s begin in. Leaves alone what has no such words."""
    _tuples(schema)
    _exclusive_limits(schema)
    if "propertyNames" in schema:
        _names(schema, root)


def _tuples(schema: dict[str, Any]) -> None:
    """Draft 7 and zod's: `items` is a list, `additionalItems` what follows it."""
    if isinstance(schema.get("items"), list) and "prefixItems" not in schema:
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema.pop("additionalItems")


def _exclusive_limits(schema: dict[str, Any]) -> None:
    """Draft 4 and OpenAPI 3.0: `exclusiveMinimum` says of `minimum` that it is one."""
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(exclusive), bool) and schema.pop(exclusive) and limit in schema:
            schema[exclusive] = schema.pop(limit)


def _names(schema: dict[str, Any], root: dict[str, Any]) -> None:
    """Dictionaries whose keys are of an enum, a pattern or a format, as pydantic has them."""
    names, value = schema["propertyNames"], schema.get("additionalProperties", True)
    if "properties" in schema or "patternProperties" in schema:
        return
    if isinstance(names, dict) and isinstance(names.get("$ref"), str) and len(names) == 1:
        try:
            names = resolve(root, names["$ref"])
        except LookupError:
            return
    if not isinstance(names, dict):
        return
    said = names.keys() - _SAYS_NOTHING
    listed = names.get("enum", [names["const"]] if "const" in names else None)
    if said <= {"enum", "const"} and isinstance(listed, list):
        known = [name for name in listed if isinstance(name, str)]
        schema["properties"] = dict.fromkeys(known, value)
    elif said == {"pattern"} and isinstance(names["pattern"], str):
        schema["patternProperties"] = {names["pattern"]: value}
    elif said == {"format"} and names["format"] in _NAMES:
        schema["patternProperties"] = {_NAMES[names["format"]]: value}
    elif said:
        return
    else:
        schema.pop("propertyNames")
        return
    schema["additionalProperties"] = False
    del schema["propertyNames"]
