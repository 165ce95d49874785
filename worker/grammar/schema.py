"""Which JSON Schemas are served: read, bounded, and told apart from those that would be half
obeyed.

llguidance turns a schema into a grammar and refuses most of what it can't express. What is refused
here besides is of three kinds: keywords and combinations of which it would let wrong answers pass
(each says so below), schemas that overflow its stack or take seconds, and patterns that mean
something else in its dialect of regular expressions than in ECMA-262's, which JSON Schema uses.
Messages name keywords and places, which are the client's own words about the answer's shape.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from supervisor.errors import InvalidValue
from worker.grammar.checker import SchemaChecker, param
from worker.grammar.subschemas import resolve

MAX_TEXT = 256 * 1024
"""Characters of a schema. Reading and compiling cost time for which other requests wait."""
_OPTIONS = {
    "whitespace_flexible": False,
    # At most one blank: an endless run of them would eat the token budget.
    "item_separator": ", ?",
    "key_separator": ": ?",
    # Without \u: a name written with it ("\u0061") escapes what `properties` says about "a".
    "json_allowed_escapes": 'nrbtf\\"',
}
OPTIONS = "x-guidance"
"""The keyword under which llguidance has them."""


def compilable(schema: object, path: str, *, lenient: bool = False) -> str:
    """The schema as llguidance takes it: JSON text, with our options instead of the client's own.

    `path` is the schema's own place in the request. `lenient` drops what can't be enforced instead
    of refusing it; what is broken or too big is refused all the same. Raises InvalidValue or
    UnsupportedValue.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidValue(
            f"No JSON value is valid under the schema `false` (at {path})."
            if schema is False
            else f"A JSON Schema must be an object (at {path}).",
            param=param(path),
        )
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise _no_json(path) from None
    copy: Any = parsed(text, path)
    SchemaChecker(copy, path, lenient).check()
    # Every schema is read as draft 2020-12, and what a client sets in x-guidance could undo bounds.
    options = _OPTIONS | {"lenient": True, "coerce_one_of": True} if lenient else _OPTIONS
    root = {key: value for key, value in copy.items() if key not in ("$schema", "$id", OPTIONS)}
    return json.dumps({OPTIONS: options, **root})


def loosest(schema: object) -> str:
    """What is left of a schema that can't be enforced: its type, if it tells one."""
    root = schema if isinstance(schema, dict) else {}
    target = root
    with suppress(LookupError):
        if isinstance(root.get("$ref"), str):
            found = resolve(root, root["$ref"])
            target = found if isinstance(found, dict) else {}
    kinds = target.get("type", "object" if "properties" in target else None)
    return compilable({} if kinds is None else {"type": kinds}, "")


def parsed(text: str, path: str) -> object:
    """The JSON value in `text`. Raises InvalidValue."""
    if len(text) > MAX_TEXT:
        raise InvalidValue(
            f"The schema has {len(text)} characters; {MAX_TEXT} are allowed (at {path}).",
            param=param(path),
        )
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _no_json(path) from None
    return value


def _no_json(path: str) -> InvalidValue:
    return InvalidValue(
        f"The schema is not JSON, or nests too deep (at {path}).", param=param(path)
    )


def _no_constant(name: str) -> object:
    raise ValueError(name)
