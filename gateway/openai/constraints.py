"""What an answer must be, in the words of OpenAI, vLLM, SGLang and llama.cpp. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from gateway.grammars.emission import lark_of
from gateway.grammars.expressions import escaped, plain
from gateway.grammars.faults import GrammarFault
from gateway.grammars.gbnf import is_gbnf, parse_gbnf
from gateway.grammars.lark import parse_lark
from gateway.grammars.patterns import pattern_of
from gateway.openai.tools import (
    GrammarFormat,
    RegexFormat,
    ResponseFormat,
    TextFormat,
    answer_structure,
)
from gateway.openai.validation import StrictStruct, check_plain, invalid_value
from supervisor.errors import InvalidValue, UnsupportedParameter, UnsupportedValue
from supervisor.wire.frames import Grammar, Pattern, Schema, Structure

T = TypeVar("T")

CHOICES_MAX = 10_000
CHOICE_TEXT_MAX = 128 * 1024
"""Characters of all choices together, of which one may become four."""
_PATTERN_MAX = 16 * 1024
"""Characters of a grammar as one expression; longer ones are left as rules."""

BLANKS = (
    "[ ]?",
    " ?",
    "[ ]*",
    " *",
    r"\s?",
    r"\s*",
    r"[\n ]*",
    r"[\n\t ]*",
    r"[ \n\t]*",
    r"[ \t\n]*",
)
"""Patterns of white space that both a blank and nothing match, which is what our JSON has."""

JSONSchema = Annotated[
    dict[str, Any] | str, Meta(description="A JSON Schema, or the JSON text of one.")
]
GrammarText = Annotated[
    str, Meta(description="In GBNF, or in Lark; which one is told by its first definition.")
]
Texts = Annotated[list[str], Meta(min_length=1, max_length=CHOICES_MAX)]


class StructuredOutputs(StrictStruct, frozen=True):
    """vLLM's: one of `json`, `regex`, `choice`, `grammar` and `json_object`.

    The JSON that is written has no white space but single blanks, and nothing else can be asked
    for. With `disable_additional_properties` objects have no members
    but those that their schema names.
    """

    json: JSONSchema | None = None
    regex: str | None = None
    choice: Texts | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None
    structural_tag: Annotated[Any, Meta(description="Not supported.")] = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False


class AnswerConstraints(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters that say what an answer must be. A request may have one of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JSONSchema | None = None
    guided_regex: str | None = None
    guided_choice: Texts | None = None
    guided_grammar: GrammarText | None = None
    regex: str | None = None
    ebnf: GrammarText | None = None
    grammar: GrammarText | None = None

    def structure(self) -> Structure | None:
        """What holds for the answer. An empty text or schema asks for nothing.

        Raises InvalidValue or UnsupportedValue, with the client's own parameter.
        """
        found = self._given()
        if len(found) > 1:
            names = " and ".join(f"`{place}`" for place, _ in found[:2])
            raise InvalidValue(
                f"{names} can't be combined: an answer has one form.", param=found[1][0]
            )
        if not found:
            return None
        (place, value), *_ = found
        inside = self.structured_outputs
        match place.rpartition(".")[2].removeprefix("guided_"):
            case "response_format":
                return _format(value)
            case "json_object":
                return Schema('{"type": "object"}', place=place)
            case "json":
                closed = inside is not None and inside.disable_additional_properties
                return Schema(_schema(value, place, closed=closed), place=place)
            case "choice":
                return _choice(value, place)
            case "regex":
                return Pattern(_taken(place, lambda: plain(value)), place)
            case _:
                return _taken(place, lambda: _grammar(value, place))

    def _given(self) -> list[tuple[str, Any]]:
        """What is asked for, each with its place."""
        given: list[tuple[str, Any]] = []
        if not isinstance(self.response_format, TextFormat | None):
            given.append(("response_format", self.response_format))
        if (inside := self.structured_outputs) is not None:
            if inside.whitespace_pattern not in (None, "", *BLANKS):
                raise UnsupportedValue(
                    "JSON is written with single blanks, which this pattern does not allow for.",
                    param="structured_outputs.whitespace_pattern",
                )
            if inside.structural_tag:
                raise UnsupportedParameter(
                    "Structural tags are not supported: use `grammar`.",
                    param="structured_outputs.structural_tag",
                )
            for name in ("json", "regex", "choice", "grammar"):
                given.append((f"structured_outputs.{name}", getattr(inside, name)))
            given.append(("structured_outputs.json_object", inside.json_object))
        for name in ("json", "regex", "choice", "grammar"):
            given.append((f"guided_{name}", getattr(self, f"guided_{name}")))
        for name in ("regex", "ebnf", "grammar"):
            given.append((name, getattr(self, name)))
        # An empty schema is one, and so it always is in vLLM's object.
        empty: list[tuple[str, Any]] = [("structured_outputs.json", {})]
        return [each for each in given if each[1] or each in empty]


def _format(wanted: ResponseFormat) -> Structure | None:
    match wanted:
        case RegexFormat(value=pattern):
            place = "response_format.value"
            return Pattern(_taken(place, lambda: plain(pattern)), place)
        case GrammarFormat(grammar=text):
            place = "response_format.grammar"
            return _taken(place, lambda: _grammar(text, place))
    return answer_structure(wanted)


def _taken(place: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except GrammarFault as fault:
        if fault.broken:
            raise invalid_value(place, f"{fault.words}.") from None
        raise UnsupportedValue(
            f"`{place}` can't be enforced: {fault.words}.", param=place
        ) from None


def _choice(texts: list[str], place: str) -> Pattern:
    """The longest first, for whoever reads the expression as Perl does; each once."""
    if sum(map(len, texts)) > CHOICE_TEXT_MAX:
        raise invalid_value(place, f"the choices may have {CHOICE_TEXT_MAX} characters in all.")
    different = sorted(dict.fromkeys(texts), key=len, reverse=True)
    return Pattern("|".join(map(escaped, different)), place)


def _grammar(text: str, place: str) -> Structure:
    """A grammar without recursion is one expression: it is quicker, and no text of it is lost."""
    rules = parse_gbnf(text) if is_gbnf(text) else parse_lark(text)
    try:
        return Pattern(pattern_of(rules, _PATTERN_MAX), place)
    except GrammarFault:
        return Grammar(lark_of(rules), place)


def _schema(given: dict[str, Any] | str, place: str, *, closed: bool) -> str:
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            raise invalid_value(place, "expected a JSON Schema, or the text of one.") from None
    check_plain(given, place)
    return msgspec.json.encode(_closed(given) if closed else given).decode()


def _closed(value: Any) -> Any:
    """A schema whose objects have no members but those that it names."""
    if isinstance(value, list):
        return [_closed(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {name: _closed(each) for name, each in value.items()}
    if {"properties", "patternProperties"} & made.keys():
        made.setdefault("additionalProperties", False)
    return made
