"""Schemas that no finite value meets, as an object that must hold another of its kind, for ever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from worker.grammar.subschemas import inside, items, members

Resolve = Callable[[str], object]
_KINDS = frozenset(("null", "boolean", "number", "string", "array", "object"))


class FiniteInstances:
    """Which of a schema's parts have no finite instance: told only where it is sure.

    The least fixed point: at first nothing has one, then whatever needs nothing else, and so on.
    """

    def __init__(self, root: dict[str, Any], resolve: Resolve) -> None:
        """`resolve` tells what a `$ref` leads to."""
        self._root = root
        self._resolve = resolve
        self._nodes = self._reachable()
        self._kinds: dict[int, frozenset[str]] = {}
        """By schema, the types of the finite instances that are known so far."""
        self._asked: set[int] = set()
        askers: defaultdict[int, set[int]] = defaultdict(set)
        todo = list(self._nodes)
        while todo:
            node = todo.pop()
            self._asked = set()
            found = self._find(self._nodes[node])
            for other in self._asked:
                askers[other].add(node)
            if found != self._kinds.get(node, frozenset()):
                self._kinds[node] = found
                todo.extend(askers[node])

    @property
    def path(self) -> str | None:
        """Where the root comes back to itself; "" = at the root; None = it has a finite
        instance."""
        if self.possible(self._root):
            return None
        node, path = self._root, ""
        seen: set[int] = set()
        while id(node) not in seen:
            seen.add(id(node))
            steps = ((there, each) for there, each in self._needs(node) if not self.possible(each))
            there, each = next(steps, ("", None))
            if not isinstance(each, dict):
                break
            if there.startswith("#"):
                if id(each) in seen:
                    break
                path = there[1:]
            else:
                path = f"{path}/{there}"
            node = each
        return path

    def drop_impossible(self) -> None:
        """Make `false` what has no instance, so that it is left out where it may be."""
        for node in self._nodes.values():
            for keyword in ("additionalProperties", "items"):
                if keyword in node and not self.possible(node[keyword]):
                    node[keyword] = False
            for keyword in ("properties", "patternProperties"):
                for name, each in members(node, keyword).items():
                    if not self.possible(each):
                        node[keyword][name] = False
            for keyword in ("anyOf", "oneOf", "prefixItems"):
                for index, each in enumerate(items(node, keyword)):
                    if not self.possible(each):
                        node[keyword][index] = False

    def possible(self, schema: object) -> bool:
        """Whether a schema may have a finite instance."""
        return bool(self._of(schema))

    def _of(self, schema: object) -> frozenset[str]:
        if not isinstance(schema, dict):
            return frozenset() if schema is False else _KINDS
        self._asked.add(id(schema))
        return self._kinds.get(id(schema), frozenset())

    def _reachable(self) -> dict[int, dict[str, Any]]:
        nodes: dict[int, dict[str, Any]] = {}
        todo: list[object] = [self._root]
        while todo:
            node = todo.pop()
            if isinstance(node, dict) and id(node) not in nodes:
                nodes[id(node)] = node
                todo.extend(each for _, each in inside(node))
                if "$ref" in node:
                    todo.append(self._resolve(node["$ref"]))
        return nodes

    def _together(self, schema: dict[str, Any]) -> list[dict[str, Any]] | None:
        """A schema and all that must hold besides; None = one of them is `false`."""
        found: list[dict[str, Any]] = []
        seen: set[int] = set()
        todo: list[object] = [schema]
        while todo:
            each = todo.pop()
            if each is False:
                return None
            if isinstance(each, dict) and id(each) not in seen:
                seen.add(id(each))
                found.append(each)
                todo.extend(items(each, "allOf"))
                if "$ref" in each:
                    todo.append(self._resolve(each["$ref"]))
        return found

    def _find(self, schema: dict[str, Any]) -> frozenset[str]:
        parts = self._together(schema)
        if parts is None:
            return frozenset()
        kinds = _KINDS
        for part in parts:
            kinds &= _declared(part)
            for keyword in ("anyOf", "oneOf"):
                if choices := items(part, keyword):
                    kinds &= frozenset().union(*map(self._of, choices))
        for kind, needs in (("object", self._members), ("array", self._items)):
            if kind in kinds and not all(self.possible(each) for _, each in needs(parts)):
                kinds -= {kind}
        if "object" in kinds and any(self._too_few(part) for part in parts):
            kinds -= {"object"}
        return kinds

    def _needs(self, schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
        """Where to look for what makes a schema impossible."""
        yield from ((f"allOf/{at}", each) for at, each in enumerate(items(schema, "allOf")))
        if "$ref" in schema:
            yield schema["$ref"], self._resolve(schema["$ref"])
        for keyword in ("anyOf", "oneOf"):
            if not any(map(self.possible, items(schema, keyword))):
                yield from ((f"{keyword}/{at}", e) for at, e in enumerate(items(schema, keyword)))
        yield from self._members([schema])
        yield from self._items([schema])
        if self._too_few(schema):
            yield from inside(schema)

    def _members(self, parts: list[dict[str, Any]]) -> Iterator[tuple[str, object]]:
        """What an object can't be without."""
        names = [name for part in parts for name in items(part, "required")]
        for part in parts:
            known = members(part, "properties")
            for name in names:
                if not isinstance(name, str):
                    continue
                if name in known:
                    yield f"properties/{ascii(name)[1:-1]}", known[name]
                elif not members(part, "patternProperties"):
                    yield "additionalProperties", part.get("additionalProperties", True)

    def _items(self, parts: list[dict[str, Any]]) -> Iterator[tuple[str, object]]:
        """What an array can't be without."""
        least = max((_least(part, "minItems") for part in parts), default=0)
        for part in parts:
            first = items(part, "prefixItems")
            yield from ((f"prefixItems/{at}", each) for at, each in enumerate(first[:least]))
            if least > len(first):
                yield "items", part.get("items", True)

    def _too_few(self, part: dict[str, Any]) -> bool:
        """Whether an object needs a member, and none is possible."""
        return _least(part, "minProperties") > 0 and not any(
            map(
                self.possible,
                (
                    *members(part, "properties").values(),
                    *members(part, "patternProperties").values(),
                    part.get("additionalProperties", True),
                ),
            )
        )


def _least(schema: dict[str, Any], keyword: str) -> int:
    value = schema.get(keyword, 0)
    return value if isinstance(value, int) else 0


def _declared(schema: dict[str, Any]) -> frozenset[str]:
    types = schema.get("type", list(_KINDS))
    kinds = frozenset(types if isinstance(types, list) else [types])
    if "integer" in kinds:
        kinds |= {"number"}
    for keyword in ("const", "enum"):
        if keyword in schema:
            values = items(schema, "enum") if keyword == "enum" else [schema["const"]]
            kinds &= frozenset(map(_kind, values))
    return kinds & _KINDS


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
