"""Which JSON Schemas are served: read, bounded, and told apart from those that would be half obeyed.

llguidance turns a schema into a grammar and refuses most of what it can't express. What is refused
here besides is of three kinds: keywords and combinations of which it would let wrong answers pass
(each says so below), schemas that overflow its stack or take seconds, and patterns that mean
something else in its dialect of regular expressions than in ECMA-262's, which JSON Schema uses.
Messages name keywords and places, which are the client's own words about the answer's shape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from supervisor.errors import ClientError, InvalidValue, UnsupportedValue
from worker.grammar_patterns import beyond, foreign, merged

MAX_TEXT = 256 * 1024
"""Characters of a schema. Reading and compiling cost time for which other requests wait."""
MAX_NESTING = 100
"""Levels of one schema's text."""
MAX_LEVELS = 2000
"""Levels of the root and of all that `$ref` reaches, summed: how deep llguidance may recurse. It took
about 5 KB of stack a level, and a segmentation fault ends the process (8 MB: at 1,600)."""
MAX_PROPERTIES = 1000
"""Of one object: a mask took 5 ms at 1,000 and 120 ms at 5,000."""
MAX_ALL_PROPERTIES = 5000
MAX_PATTERNS = 50
"""Of `patternProperties` in all: they are compared pair by pair (200 took a second)."""
MAX_LITERAL = 4096
"""Characters of a constant or a name, all of which every mask goes over again: 0.1 ms."""
MAX_MULTIPLE = 1000
"""Digits of a `multipleOf`, as an integer: it becomes so many states (1,234,567 took 18 s, 640 MB)."""
MAX_MERGED_MULTIPLE = 10_000
"""Of all that `allOf` and its like may merge into one; 9,973 took 50 ms."""
EXACT = 2**53
"""llguidance computes with doubles: integers beyond are rounded."""


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
_LEAP = r"([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = rf"^([1-9]\d{{3}}-(0[13-9]|1[0-2]|02-([01]|2[0-8]))|{_LEAP}-02-29)"
NARROWED = {
    "date": _DATE,
    "date-time": _DATE + "[^:]*:[^:]*:[0-5]",
    "time": "^[^:]*:[^:]*:[0-5]",
}
"""Patterns that hold beside llguidance's: it lets a February of any year have 29 days and any minute
61 seconds, and has a year 0, which few calendars have."""
FORMATS = _words("date date-time duration email hostname ipv4 ipv6 time uuid uri")

_ONE = ("additionalProperties", "items")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_IN_PLACE = frozenset(("allOf", "anyOf", "oneOf", "$ref", "const", "enum"))
_OPTIONS = {
    "whitespace_flexible": False,
    # At most one blank: an endless run of them would eat the token budget.
    "item_separator": ", ?",
    "key_separator": ": ?",
    # Without \u: a name written with it ("\u0061") escapes what `properties` says about "a".
    "json_allowed_escapes": 'nrbtf\\"',
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a schema stands, as in `#/properties/a`; `depth` is the levels above it."""

    path: str = "#"
    depth: int = 0

    def __truediv__(self, key: object) -> Place:
        return Place(f"{self.path}/{key}"[:200], self.depth + 1)


def compilable(schema: object, param: str, *, lenient: bool = False) -> str:
    """The schema as llguidance takes it: JSON text, with our options instead of the client's own.

    `lenient` drops what can't be enforced instead of refusing it; what is broken or too big is
    refused all the same. Raises InvalidValue or UnsupportedValue for the parameter `param`.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidValue(
            "No JSON value is valid under the schema `false`."
            if schema is False
            else "A JSON Schema must be an object.",
            param=param,
        )
    schema = copied(schema, param)
    _Reader(schema, param, lenient).read()
    # Every schema is read as draft 2020-12, and what a client sets in x-guidance could undo bounds.
    options = _OPTIONS | {"lenient": True, "coerce_one_of": True} if lenient else _OPTIONS
    root = {
        key: value for key, value in schema.items() if key not in ("$schema", "$id", "x-guidance")
    }
    return json.dumps({"x-guidance": options, **root})


def copied(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """A copy of our own, of JSON alone. Raises InvalidValue."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise InvalidValue("The schema is not JSON, or nests too deep.", param=param) from None
    copy = parsed(text, param)
    assert isinstance(copy, dict)
    return copy


def parsed(text: str, param: str) -> object:
    """The JSON value in `text`. Raises InvalidValue."""
    if len(text) > MAX_TEXT:
        raise InvalidValue(
            f"The schema has {len(text)} characters; {MAX_TEXT} are allowed.", param=param
        )
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidValue("The schema is not JSON, or nests too deep.", param=param) from None
    return value


def _no_constant(name: str) -> object:
    raise ValueError(name)


class _Reader:
    """One walk over a schema, without recursion: what it finds wrong, it raises."""

    def __init__(self, root: dict[str, Any], param: str, lenient: bool) -> None:
        self._root = root
        self._param = param
        self._lenient = lenient
        self._properties = 0
        self._patterns = 0
        self._multiples: set[int] = set()
        self._merging = ""
        self._mapped = ""
        self._targets: dict[str, object] = {}

    def read(self) -> None:
        todo: list[tuple[object, Place]] = [(self._root, Place())]
        seen: set[int] = set()
        while todo:
            schema, place = todo.pop()
            if id(schema) in seen:
                continue
            seen.add(id(schema))
            if place.depth > MAX_NESTING:
                raise self._invalid(f"nests deeper than {MAX_NESTING} levels", place)
            if isinstance(schema, bool):
                continue
            if not isinstance(schema, dict):
                raise self._invalid("a schema must be an object or a boolean", place)
            self._keywords(schema, place)
            todo.extend(self._inside(schema, place))
            if "$ref" in schema:
                todo.append((self._reference(schema["$ref"], place), Place(schema["$ref"][:200])))
        self._levels()
        if self._merging and math.lcm(*self._multiples) > MAX_MERGED_MULTIPLE:
            raise self._refuse("the `multipleOf`s of merged schemas have too many digits", Place())
        if self._merging and merged(self._root, self._targets.get):
            raise self._refuse(
                "the patterns of one string, or of merged ones, are too long", Place()
            )
        if self._merging and self._mapped and not self._lenient:
            # Merged schemas keep their own patterns, and one's patterns don't meet the other's
            # additionalProperties: what both forbid together would pass.
            raise self._refuse(
                f"`patternProperties` can't be combined with the `{self._merging}` of this schema",
                Place(self._mapped),
            )

    def _invalid(self, what: str, place: Place) -> ClientError:
        return InvalidValue(f"Invalid schema: {what} (at {place.path}).", param=self._param)

    def _refuse(self, what: str, place: Place) -> ClientError:
        return UnsupportedValue(
            f"This schema can't be enforced: {what} (at {place.path}).", param=self._param
        )

    def _unless_lenient(self, what: str, place: Place) -> bool:
        """True, for what is dropped. Raises where nothing may be."""
        if not self._lenient:
            raise self._refuse(what, place)
        return True

    def _keywords(self, schema: dict[str, Any], place: Place) -> None:
        for keyword in schema:
            if keyword in UNSUPPORTED:
                self._unless_lenient(f"the keyword `{keyword}` is not supported", place)
        asserting = [key for key in schema if key in ASSERTIONS]
        for keyword in _IN_PLACE & schema.keys():
            if keyword in ("const", "enum") and not _compound(schema[keyword]):
                continue  # a list of texts and numbers is only cut down by what stands beside it
            if len(asserting) > 1 or (keyword == "allOf" and schema[keyword]):
                self._merging = keyword
        if "$id" in schema and place.depth:
            self._unless_lenient("`$id` inside of a schema moves its `$ref`s", place)
            del schema["$id"]
        self._strings(schema, place)
        self._numbers(schema, place)
        self._objects(schema, place)
        for keyword in ("const", "enum"):
            if any([self._literal(literal, place) for literal in _literals(schema.get(keyword))]):
                del schema[keyword]

    def _reference(self, target: object, place: Place) -> object:
        """What a `$ref` leads to."""
        if not isinstance(target, str):
            raise self._invalid("`$ref` must be a string", place)
        if target != "#" and not target.startswith("#/"):
            raise self._refuse("a `$ref` may only be a path in the same schema, `#/…`", place)
        try:
            found = _resolve(self._root, target)
        except LookupError:
            raise self._invalid(f"`$ref` {target[:100]!a} leads nowhere", place) from None
        self._targets[target] = found
        return found

    def _strings(self, schema: dict[str, Any], place: Place) -> None:
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and self._pattern(pattern, place / "pattern"):
            del schema["pattern"]
        name = schema.get("format")
        if isinstance(name, str) and name not in FORMATS and _may_be(schema, "string"):
            self._unless_lenient(f"the format {name[:50]!r} is not supported", place)
        if isinstance(name, str) and name in NARROWED:
            narrowed = {"pattern": NARROWED[name]}
            if isinstance(others := schema.get("allOf", []), list):
                schema["allOf"] = [*others, narrowed]

    def _pattern(self, pattern: str, place: Place) -> bool:
        """Whether it must be dropped."""
        if len(pattern) > MAX_LITERAL:
            return self._unless_lenient("a pattern is too long", place)
        why = foreign(pattern)
        if not why and self._lenient:
            # Strictly, llguidance's own words say what is wrong with it.
            return beyond(pattern)
        return bool(why) and self._unless_lenient(why, place)

    def _numbers(self, schema: dict[str, Any], place: Place) -> None:
        for keyword in _NUMBERS:
            value = schema.get(keyword)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self._invalid(f"`{keyword}` must be a number", place)
            if keyword == "multipleOf":
                dropped = self._multiple(value, place)
            else:
                dropped = (
                    isinstance(value, int)
                    and abs(value) > EXACT
                    and self._unless_lenient(f"`{keyword}` lies beyond ±2^53", place)
                )
            if dropped:
                del schema[keyword]

    def _multiple(self, value: float, place: Place) -> bool:
        """Whether it must be dropped."""
        if value <= 0:
            raise self._invalid("`multipleOf` must be a positive number", place)
        digits = _digits(value) if value <= EXACT else EXACT
        if digits > MAX_MULTIPLE:
            return self._unless_lenient("`multipleOf` has too many digits", place)
        self._multiples.add(digits)
        return False

    def _objects(self, schema: dict[str, Any], place: Place) -> None:
        if isinstance(schema.get("items"), list):
            self._unless_lenient("`items` must be one schema; use `prefixItems` for tuples", place)
        names = schema.get("properties")
        required = schema.get("required")
        if isinstance(names, dict):
            self._properties += len(names)
            if len(names) > MAX_PROPERTIES or self._properties > MAX_ALL_PROPERTIES:
                raise self._refuse(
                    f"an object may have {MAX_PROPERTIES} properties, all of them "
                    f"{MAX_ALL_PROPERTIES}",
                    place,
                )
            for name in [name for name in names if self._literal(name, place)]:
                del names[name]
        if isinstance(required, list):
            schema["required"] = required = [
                name for name in required if not self._literal(name, place)
            ]
        mapped = schema.get("patternProperties")
        if isinstance(mapped, dict) and mapped:
            self._mapped = place.path
            self._patterns += len(mapped)
            if self._patterns > MAX_PATTERNS:
                raise self._refuse(f"`patternProperties` may have {MAX_PATTERNS} patterns", place)
            dropped = [each for each in mapped if self._pattern(each, place / "patternProperties")]
            for pattern in dropped:
                del mapped[pattern]
            if dropped:
                # The names that it matched would fall under it.
                schema.pop("additionalProperties", None)
        least = schema.get("minProperties", 0)
        certain = len(set(map(str, required))) if isinstance(required, list) else 0
        if isinstance(least, int) and least > max(1, certain):
            # Names outside `properties` may come twice, and a reader counts them once.
            self._unless_lenient("`minProperties` above 1 is not supported", place)

    def _literal(self, value: object, place: Place) -> bool:
        """Whether what it stands in must be dropped."""
        if isinstance(value, str):
            if len(value) > MAX_LITERAL:
                return self._unless_lenient(
                    f"a constant is longer than {MAX_LITERAL} characters", place
                )
            # Their escape is \u, see _OPTIONS; half a surrogate pair is not Unicode text.
            return bool(_UNWRITABLE.search(value)) and self._unless_lenient(
                "control characters and lone surrogates in constants", place
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            number
            and abs(value) > EXACT  # type: ignore[arg-type]
            and self._unless_lenient("numbers beyond ±2^53 in constants", place)
        )

    def _inside(self, schema: dict[str, Any], place: Place) -> Iterator[tuple[object, Place]]:
        for keyword in _ONE:
            if keyword in schema and not isinstance(schema[keyword], list):
                yield schema[keyword], place / keyword
        for keyword in _LISTS:
            if keyword in schema:
                if not isinstance(schema[keyword], list):
                    raise self._invalid(f"`{keyword}` must be an array", place)
                for index, inner in enumerate(schema[keyword]):
                    yield inner, place / keyword / index
        for keyword in _MAPS:
            if keyword in schema:
                if not isinstance(schema[keyword], dict):
                    raise self._invalid(f"`{keyword}` must be an object", place)
                for name, inner in schema[keyword].items():
                    yield inner, place / keyword / ascii(name)[1:-1]

    def _levels(self) -> None:
        """Bound how deep llguidance may recurse, whatever the order in which it follows `$ref`s."""
        levels = _depth(self._root)
        for target in self._targets.values():
            levels += 1 + _depth(target)
            if levels > MAX_LEVELS:
                raise self._refuse("its `$ref`s lead too deep", Place())


_UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")


def _may_be(schema: dict[str, Any], kind: str) -> bool:
    types = schema.get("type", kind)
    return kind in types if isinstance(types, list) else types == kind


def _compound(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, dict | list) for each in values)


def _literals(value: object) -> Iterator[object]:
    """The names, texts and numbers in a constant."""
    todo = [value]
    while todo:
        match todo.pop():
            case dict() as members:
                todo.extend(members)
                todo.extend(members.values())
            case list() as items:
                todo.extend(items)
            case other:
                yield other


def _digits(value: float) -> int:
    """All significant digits of a number, as an integer: 0.25 → 25."""
    mantissa = re.sub(r"[eE].*", "", repr(value)).replace(".", "").strip("0")
    whole = isinstance(value, int) or value.is_integer()
    return int(value) if whole else int(mantissa or 0)


def _depth(value: object) -> int:
    """Levels of JSON."""
    deepest = 0
    todo = [(value, 1)]
    while todo:
        inner, depth = todo.pop()
        deepest = max(deepest, depth)
        if isinstance(inner, dict):
            todo.extend((each, depth + 1) for each in inner.values())
        elif isinstance(inner, list):
            todo.extend((each, depth + 1) for each in inner)
    return deepest


def _resolve(root: dict[str, Any], pointer: str) -> object:
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
