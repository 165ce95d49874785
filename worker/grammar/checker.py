"""One walk over a schema: bounds it, and tells what is wrong or can't be enforced."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from supervisor.errors import ClientError, InvalidValue, UnsupportedValue
from worker.grammar import numbers
from worker.grammar.choices import MAX_CHOICES, ChoiceCounter
from worker.grammar.finite import FiniteInstances
from worker.grammar.keywords import (
    ASSERTIONS,
    BRANCHING,
    FORMATS,
    IN_PLACE,
    KINDS,
    NARROWED,
    TYPES,
    UNSUPPORTED,
)
from worker.grammar.numbers import EXACT
from worker.grammar.patterns import foreign, unreadable
from worker.grammar.spelling import modernize
from worker.grammar.subschemas import inside, items, resolve

MAX_NESTING = 100
"""Levels of one schema's text: objects and arrays within each other."""
MAX_LEVELS = 2000
"""Levels of the root and of all that `$ref` reaches, summed: how deep llguidance may recurse. It
took about 5 KB of stack a level, and a segmentation fault ends the process (8 MB: at 1,600)."""
MAX_PROPERTIES = 1000
"""Of one object: a mask took 5 ms at 1,000 and 120 ms at 5,000."""
MAX_ALL_PROPERTIES = 5000
MAX_PATTERNS = 50
"""Of `patternProperties` in all: they are compared pair by pair (200 took a second)."""
MAX_LITERAL = 4096
"""Characters of a constant or a name, all of which every mask goes over again: 0.1 ms."""
MAX_MULTIPLE = 1000
"""Digits of a `multipleOf`, as an integer: it becomes so many states (1,234,567 took 18 s, 640
MB)."""
MAX_MERGED_MULTIPLE = 10_000
"""Of all that `allOf` and its like may merge into one; 9,973 took 50 ms."""
_LONGEST_PATH = 240


@dataclass(frozen=True, slots=True)
class SchemaPlace:
    """Where a schema stands, as in `tools[0].function.parameters/properties/a`; `depth` is the
    levels above it."""

    path: str
    depth: int = 0

    def __truediv__(self, path: str) -> SchemaPlace:
        depth = self.depth + 1 + ("/" in path)
        return SchemaPlace(f"{self.path}/{path}"[:_LONGEST_PATH], depth)


def param(path: str) -> str:
    """The request parameter in which a place is, as OpenAI's errors name it."""
    return "response_format" if path.startswith("response_format") else path.partition("/")[0]


class SchemaChecker:
    """One walk over a schema, without recursion: what it finds wrong, it raises."""

    def __init__(self, root: dict[str, Any], path: str, lenient: bool) -> None:
        self._root = root
        self._place = SchemaPlace(path)
        self._lenient = lenient
        self._properties = 0
        self._patterns = 0
        self._multiples: set[int] = set()
        self._merging = ""
        self._moved = False
        """Whether `$ref`s may lead elsewhere than they meant, for want of an `$id`."""
        self._pattern_properties: SchemaPlace | None = None
        self._targets: dict[str, object] = {}
        self._read: list[tuple[dict[str, Any], SchemaPlace]] = []

    def check(self) -> None:
        todo: list[tuple[object, SchemaPlace]] = [(self._root, self._place)]
        seen: set[int] = set()
        while todo:
            schema, place = todo.pop()
            if id(schema) in seen:
                continue
            seen.add(id(schema))
            if place.depth >= MAX_NESTING:
                raise self._invalid(f"nests deeper than {MAX_NESTING} levels", place)
            if isinstance(schema, bool):
                continue
            if not isinstance(schema, dict):
                raise self._invalid("a schema must be an object or a boolean", place)
            self._keywords(schema, place)
            self._read.append((schema, place))
            todo.extend((each, place / path) for path, each in inside(schema))
            if "$ref" in schema and not self._leads_away(schema, place):
                target = self._reference(schema["$ref"], place)
                path = f"{self._place.path}{schema['$ref'][1:]}"
                todo.append((target, SchemaPlace(path[:_LONGEST_PATH])))
        self._levels()
        self._finite()
        self._choices()
        self._together()

    def _together(self) -> None:
        """What becomes of schemas that llguidance merges, or may merge."""
        for schema, _ in self._read:
            numbers.close_bounds(schema, merged=bool(self._merging))
        if not self._merging:
            return
        if math.lcm(*self._multiples) > MAX_MERGED_MULTIPLE:
            raise self._refuse(
                "the `multipleOf`s of merged schemas have too many digits", self._place
            )
        if self._pattern_properties and not self._lenient:
            # Merged schemas keep their own patterns, and one's patterns don't meet the other's
            # additionalProperties: what both forbid together would pass.
            raise self._refuse(
                f"`patternProperties` can't be combined with the `{self._merging}` of this schema",
                self._pattern_properties,
            )

    def _finite(self) -> None:
        if not self._targets:
            return  # a tree has an end
        finite = FiniteInstances(self._root, self._targets.__getitem__)
        if finite.path is not None:
            place = SchemaPlace(f"{self._place.path}{finite.path}"[:_LONGEST_PATH])
            fault = self._refuse if self._moved else self._invalid
            raise fault("no finite JSON value is valid under it", place)
        finite.drop_impossible()

    def _choices(self) -> None:
        choices = ChoiceCounter(self._targets.__getitem__)
        for schema, place in self._read:
            asserting = ASSERTIONS & schema.keys()
            branches = BRANCHING & asserting or ("$ref" in asserting and len(asserting) > 1)
            if branches and choices.too_many(schema):
                raise self._refuse(
                    f"more than {MAX_CHOICES} properties or alternatives may come next", place
                )

    def _invalid(self, what: str, place: SchemaPlace) -> ClientError:
        return InvalidValue(f"Invalid schema: {what} (at {place.path}).", param=param(place.path))

    def _refuse(self, what: str, place: SchemaPlace) -> ClientError:
        return UnsupportedValue(
            f"This schema can't be enforced: {what} (at {place.path}).", param=param(place.path)
        )

    def _unless_lenient(self, what: str, place: SchemaPlace) -> bool:
        """True, for what is dropped. Raises where nothing may be."""
        if not self._lenient:
            raise self._refuse(what, place)
        return True

    def _keywords(self, schema: dict[str, Any], place: SchemaPlace) -> None:
        modernize(schema, self._root)
        self._types(schema, place)
        for keyword in schema:
            if keyword in UNSUPPORTED:
                self._unless_lenient(f"the keyword `{keyword}` is not supported", place)
        asserting = [key for key in schema if key in ASSERTIONS]
        for keyword in IN_PLACE & schema.keys():
            if keyword in ("const", "enum") and not _compound(schema[keyword]):
                continue  # a list of texts and numbers is only cut down by what stands beside it
            if len(asserting) > 1 or (keyword == "allOf" and schema[keyword]):
                self._merging = keyword
        if "$id" in schema and place.depth:
            self._unless_lenient("`$id` inside of a schema moves its `$ref`s", place)
            del schema["$id"]
            self._moved = True
        self._strings(schema, place)
        self._numbers(schema, place)
        self._objects(schema, place)
        for keyword in ("const", "enum"):
            if any([self._literal(literal, place) for literal in _literals(schema.get(keyword))]):
                del schema[keyword]

    def _types(self, schema: dict[str, Any], place: SchemaPlace) -> None:
        """What keywords must be, besides the schemas in them."""
        for keyword, (kind, named) in KINDS.items():
            if keyword in schema and not isinstance(schema[keyword], kind):
                raise self._invalid(f"`{keyword}` must be {named}", place)
        types = schema.get("type", [])
        for each in [types] if isinstance(types, str) else types:
            if not isinstance(each, str) or each not in TYPES:
                raise self._invalid(f"`type` must be among {', '.join(sorted(TYPES))}", place)
        if not all(isinstance(name, str) for name in items(schema, "required")):
            raise self._invalid("`required` must be an array of strings", place)

    def _leads_away(self, schema: dict[str, Any], place: SchemaPlace) -> bool:
        """Whether a `$ref` had to be dropped."""
        target = schema["$ref"]
        if target == "#" or target.startswith("#/"):
            return False
        self._unless_lenient("a `$ref` may only be a path in the same schema, `#/…`", place)
        del schema["$ref"]
        return True

    def _reference(self, target: str, place: SchemaPlace) -> object:
        """What a `$ref` leads to."""
        try:
            found = resolve(self._root, target)
        except LookupError:
            raise self._invalid(f"`$ref` {target[:100]!a} leads nowhere", place) from None
        self._targets[target] = found
        return found

    def _strings(self, schema: dict[str, Any], place: SchemaPlace) -> None:
        pattern = schema.get("pattern")
        if pattern is not None and self._pattern(pattern, place / "pattern"):
            del schema["pattern"]
        name = schema.get("format")
        if name is not None and name not in FORMATS:
            # An annotation, as JSON Schema has it: nobody has promised to obey it.
            del schema["format"]
        if name in NARROWED:
            schema["allOf"] = [*schema.get("allOf", []), {"pattern": NARROWED[name]}]

    def _pattern(self, pattern: str, place: SchemaPlace) -> bool:
        """Whether it must be dropped."""
        if len(pattern) > MAX_LITERAL:
            return self._unless_lenient("a pattern is too long", place)
        why = foreign(pattern)
        if not why and self._lenient:
            # Strictly, llguidance's own words say what is wrong with it.
            return unreadable(pattern)
        return bool(why) and self._unless_lenient(why, place)

    def _numbers(self, schema: dict[str, Any], place: SchemaPlace) -> None:
        for keyword in (*numbers.LIMITS, "multipleOf"):
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
        for keyword in numbers.COUNTS:
            if keyword in schema:
                count = numbers.count(schema[keyword])
                if count is None:
                    raise self._invalid(f"`{keyword}` must be a whole number from 0 on", place)
                schema[keyword] = count
        numbers.list_multiples(schema)
        if "multipleOf" in schema:
            self._multiples.add(_multiple(schema["multipleOf"]))

    def _multiple(self, value: float, place: SchemaPlace) -> bool:
        """Whether it must be dropped."""
        if value <= 0:
            raise self._invalid("`multipleOf` must be a positive number", place)
        if _multiple(value) > MAX_MULTIPLE:
            return self._unless_lenient("`multipleOf` has too many digits", place)
        return False

    def _objects(self, schema: dict[str, Any], place: SchemaPlace) -> None:
        names = schema.get("properties")
        required = schema.get("required")
        if names is not None:
            self._properties += len(names)
            if len(names) > MAX_PROPERTIES or self._properties > MAX_ALL_PROPERTIES:
                raise self._refuse(
                    f"an object may have {MAX_PROPERTIES} properties, all of them "
                    f"{MAX_ALL_PROPERTIES}",
                    place,
                )
            for name in [name for name in names if self._literal(name, place)]:
                del names[name]
        if required is not None:
            schema["required"] = required = [
                name for name in required if not self._literal(name, place)
            ]
        mapped = schema.get("patternProperties")
        if mapped:
            self._pattern_properties = place
            self._patterns += len(mapped)
            if self._patterns > MAX_PATTERNS:
                raise self._refuse(f"`patternProperties` may have {MAX_PATTERNS} patterns", place)
            dropped = [each for each in mapped if self._pattern(each, place / "patternProperties")]
            for pattern in dropped:
                del mapped[pattern]
            if dropped:
                # The names that it matched would fall under it.
                schema.pop("additionalProperties", None)
        if schema.get("minProperties", 0) > max(1, len(set(required or ()))):
            # Names outside `properties` may come twice, and a reader counts them once.
            self._unless_lenient("`minProperties` above 1 is not supported", place)

    def _literal(self, value: object, place: SchemaPlace) -> bool:
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

    def _levels(self) -> None:
        """Bound how deep llguidance may recurse, whatever the order in which it follows `$ref`s."""
        levels = _depth(self._root)
        for target in self._targets.values():
            levels += 1 + _depth(target)
            if levels > MAX_LEVELS:
                raise self._refuse("its `$ref`s lead too deep", self._place)


_UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")


def _multiple(value: float) -> int:
    return numbers.digits(value) if value <= EXACT else EXACT


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
