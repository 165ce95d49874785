"""How much may come next in an answer: what a mask costs, and what llguidance has to hold."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from worker.grammar.subschemas import items, members

MAX_CHOICES = 1000
"""Property names that may come next in the objects of alternatives. 1,000 of 100 objects took 35 ms
at 150,000 tokens, 5,000 of 500 a second; all other rows of the batch wait for it."""
_MAX_STEPS = 100_000

Resolve = Callable[[str], object]
_Parts = tuple[Any, ...]
"""Schemas that hold together."""


class ChoiceCounter:
    """Counts them over the alternatives of one schema at a time, however they are nested."""

    def __init__(self, resolve: Resolve) -> None:
        """`resolve` tells what a `$ref` leads to."""
        self._resolve = resolve
        self._seen: set[frozenset[tuple[int, ...]]] = set()
        self._steps = 0

    def too_many(self, schema: dict[str, Any]) -> bool:
        """Whether more than MAX_CHOICES names may come next somewhere in `schema`, which offers
        alternatives."""
        todo: list[list[_Parts]] = [[(schema,)]]
        while todo:
            candidates = todo.pop()
            key = frozenset(tuple(map(id, parts)) for parts in candidates)
            if key in self._seen:
                continue
            self._seen.add(key)
            alternatives = [each for parts in candidates for each in self._alternatives(parts)]
            if self._steps > _MAX_STEPS:
                return True
            # What differs in the value that comes first is told apart by it.
            apart: defaultdict[str, list[_Alternative]] = defaultdict(list)
            for each in map(_Alternative, alternatives):
                apart[each.tag].append(each)
            untold = apart.pop("", [])
            groups = [[*untold, *same] for same in apart.values()] or [untold]
            most = max(sum(each.names for each in group) for group in groups)
            # A single object that is open has one name more than its properties.
            if max(most - 1, len(alternatives)) > MAX_CHOICES:
                return True
            for group in groups:
                todo.extend(_shared(group))
        return False

    def _alternatives(self, parts: _Parts) -> list[_Parts]:
        """The objects and arrays that schemas which hold together leave as alternatives, each again
        as schemas which hold together."""
        found: list[_Parts] = []
        todo: list[tuple[_Parts, _Parts, frozenset[int]]] = [((), parts, frozenset())]
        while todo and len(found) <= MAX_CHOICES:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                break
            done, rest, within = todo.pop()
            if not rest:
                if done and _is_container(done):
                    found.append(done)
                continue
            schema, rest = rest[0], rest[1:]
            if schema is False:
                continue
            if not isinstance(schema, dict) or id(schema) in within:
                todo.append((done, rest, within))
                continue
            within |= {id(schema)}
            rest = (*rest, *items(schema, "allOf"))
            if "$ref" in schema:
                rest = (*rest, self._resolve(schema["$ref"]))
            branches = [
                [each for each in items(schema, key) if each is True or _is_container((each,))]
                for key in ("anyOf", "oneOf")
                if items(schema, key)
            ]
            picked: list[_Parts] = [()]
            for branch in branches:
                picked = [(*so_far, each) for so_far in picked for each in branch]
                if len(picked) > MAX_CHOICES:
                    self._steps = _MAX_STEPS
                    break
            todo.extend(((*done, schema), (*rest, *each), within) for each in picked)
        return found


class _Alternative:
    """What an alternative has to say about its members. `tag`: by which first member's value it is
    told from others, "" = by none. `names`: of how many the next may be chosen."""

    def __init__(self, parts: _Parts) -> None:
        self.parts = parts
        known: dict[str, list[Any]] = {}
        for part in parts:
            for name, schema in members(part, "properties").items():
                known.setdefault(name, []).append(schema)
        self.known = known
        required = {str(name) for part in parts for name in items(part, "required")}
        run = most = 0
        for name in known:
            run += 1
            most = max(most, run)
            if name in required:
                run = 0
        closed = any(part.get("additionalProperties") is False for part in parts)
        self.names = max(most, run + (not closed), 1)
        first = next(iter(known), "")
        self.tag = _fixed(known[first]) if first in required else ""


def _fixed(schemas: Sequence[Any]) -> str:
    """The one value, as JSON text, that schemas allow; "" = there may be others."""
    for schema in schemas:
        if isinstance(schema, dict) and "const" in schema:
            return json.dumps(schema["const"])
        if isinstance(schema, dict) and len(items(schema, "enum")) == 1:
            return json.dumps(schema["enum"][0])
    return ""


def _is_container(parts: _Parts) -> bool:
    """Whether objects or arrays are among the instances; all else llguidance has as one
    expression."""
    for part in parts:
        if not isinstance(part, dict):
            return False
        types = part.get("type", "object")
        if not {"object", "array"} & set(types if isinstance(types, list) else [types]):
            return False
        if "const" in part or "enum" in part:
            return False
    return True


def _shared(group: Sequence[_Alternative]) -> list[list[_Parts]]:
    """What several alternatives have in the same place."""
    found: defaultdict[str, list[_Parts]] = defaultdict(list)
    for each in group:
        for name, schemas in each.known.items():
            found[f"={name}"].append(tuple(schemas))
        inner = tuple(part["items"] for part in each.parts if isinstance(part.get("items"), dict))
        if inner:
            found["items"].append(inner)
    return [same for same in found.values() if len(same) > 1]
