"""What tests of grammars share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from supervisor.errors import ClientError
from tests.property import structured
from tests.property.structured import allowed, constraint, wrapper
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.call_constraint import CallConstraint

OBJECT = {"type": "object"}
CLOSED = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


def push(grammar: AnswerConstraint | CallConstraint, text: str, kind: str = "bytes") -> list[int]:
    """Push the text, every token of which must be allowed."""
    tokens: list[int] = structured.wrapper(kind).encode(text, add_special_tokens=False)
    follow(grammar, tokens)
    return tokens


def follow(grammar: AnswerConstraint | CallConstraint, tokens: Sequence[int]) -> None:
    for token in tokens:
        assert token in allowed(grammar)
        grammar.push(token)


def accepts(schema: object, text: str) -> bool:
    """Whether the text is a whole answer under the schema."""
    return (grammar := _after(schema, text)) is not None and grammar.complete


def begins(schema: object, text: str) -> bool:
    """Whether an answer under the schema may begin with the text."""
    return _after(schema, text) is not None


def _after(schema: object, text: str) -> AnswerConstraint | None:
    grammar = constraint(schema)
    for token in wrapper().encode(text, add_special_tokens=False):
        if token not in allowed(grammar):
            return None
        grammar.push(token)
    return grammar


def ends(kind: str = "bytes") -> list[int]:
    return sorted(wrapper(kind).eos_token_ids)


def encode(model: Any, text: str) -> list[int]:
    tokens: list[int] = model.encode(text, add_special_tokens=False)
    return tokens


def members(names: Iterable[str], required: Sequence[str] = (), value: object = OBJECT) -> Any:
    """The schema of an object whose properties are all of one kind."""
    properties = dict.fromkeys(names, value)
    return {"type": "object", "properties": properties, "required": list(required)}


def outcome(schema: object) -> AnswerConstraint | ClientError:
    """The constraint of an answer under the schema, or why there is none."""
    try:
        return constraint(schema)
    except ClientError as error:
        return error
