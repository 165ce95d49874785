"""Custom tools, whose argument is free text, as functions of one string. Pure.

A model calls such a function with `{"input": "…"}`. Where the tool's format is a grammar that can
be said as a regular expression, the string is held to it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from gateway.grammars.expressions import plain
from gateway.grammars.faults import GrammarFault
from gateway.grammars.lark import parse_lark
from gateway.grammars.patterns import pattern_of
from gateway.openai.tools import Function, Name
from gateway.openai.validation import StrictStruct
from supervisor.errors import InvalidValue

INPUT = "input"
_PATTERN_MAX = 4000
"""Characters of a pattern that is shown to the model's template and obeyed, with its anchors."""


class FreeText(StrictStruct, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class GrammarInput(StrictStruct, frozen=True, tag_field="type", tag="grammar"):
    """Text that follows a grammar, in the Responses API's form."""

    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Meta(min_length=1)]


InputFormat = FreeText | GrammarInput


@dataclass(frozen=True, slots=True)
class CustomFunction:
    """The function that stands for a custom tool. `unenforced`: why its grammar holds the model to
    nothing, "" = it is enforced, or there is none."""

    function: Function
    unenforced: str = ""


def custom_function(
    name: Name, description: str | None, wanted: InputFormat | None, param: str
) -> CustomFunction:
    """The function that the model sees. `param` is the place of the format in the request.

    It is `strict`. A grammar is told in the description as well: models read it better than the
    expression that is made of it. Raises InvalidValue for a grammar that is broken.
    """
    value: dict[str, Any] = {"type": "string"}
    told, why = description or "", ""
    if isinstance(wanted, GrammarInput):
        try:
            value["pattern"] = f"^(?:{_expression(wanted)})$"
        except GrammarFault as fault:
            if fault.broken:
                raise InvalidValue(
                    f"Invalid value for `{param}.definition`: {fault.words}.",
                    param=f"{param}.definition",
                ) from None
            why = fault.words
        kind = "Lark grammar" if wanted.syntax == "lark" else "regular expression"
        told += f"\n\n`{INPUT}` is text that follows this {kind}:\n{wanted.definition.strip()}"
    parameters = {
        "type": "object",
        "properties": {INPUT: value},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return CustomFunction(Function(name, told.strip() or None, parameters, strict=True), why)


def _expression(wanted: GrammarInput) -> str:
    if wanted.syntax == "regex":
        made = plain(wanted.definition)
        if len(made) > _PATTERN_MAX:
            raise GrammarFault("it takes too many characters as a regular expression")
        return made
    return pattern_of(parse_lark(wanted.definition), _PATTERN_MAX)


def arguments_of(text: str) -> str:
    """The arguments with which the function is called for this input, as JSON text."""
    return json.dumps({INPUT: text}, ensure_ascii=False)


_HEAD = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
_PAIR = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_CODE = r"u(?![dD][89abAB])[0-9a-fA-F]{4}"
_PIECE = re.compile(rf'(?:[^"\\]|\\(?:{_PAIR}|{_CODE}|[^u]))*')
"""What of a JSON string is whole: no half of an escape, and of no surrogate pair."""


class CustomInput:
    """The input of one call, told as its arguments come."""

    def __init__(self) -> None:
        self._text = ""
        self._begun = False
        self._over = False
        self._told = False

    def feed(self, arguments: str) -> str:
        """The next piece of the arguments; what of the input it makes known."""
        self._text += arguments
        if not self._begun:
            head = _HEAD.match(self._text)
            if head is None:
                return ""
            self._begun, self._text = True, self._text[head.end() :]
        if self._over:
            return ""
        piece = _PIECE.match(self._text)
        assert piece is not None
        self._text = self._text[piece.end() :]
        self._over = self._text.startswith('"')
        return str(json.loads(f'"{piece[0]}"', strict=False))

    def rest(self) -> str:
        """What is left when the arguments are over: all, if they are of another shape."""
        if self._begun:
            return ""
        try:
            value = json.loads(self._text)
        except ValueError:
            return self._text
        if isinstance(value, dict) and isinstance(value.get(INPUT), str):
            return str(value[INPUT])
        return self._text


def input_of(arguments: str) -> str:
    """The input of a whole call."""
    reader = CustomInput()
    return reader.feed(arguments) + reader.rest()
