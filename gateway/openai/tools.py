"""OpenAI's tools, tool choice and response formats, and what the worker makes of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.openai.validation import (
    StrictStruct,
    check_plain,
    invalid_value,
    missing_parameter,
)
from supervisor.errors import InvalidValue, UnsupportedValue
from supervisor.wire.frames import SCHEMA_PLACE, Calling
from supervisor.wire.frames import Schema as AnswerSchema

TOOLS_MAX = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
Name = Annotated[str, Meta(pattern=rf"^{_NAME.pattern}(?![\s\S])")]  # `$` lets a newline pass
Schema = Annotated[dict[str, Any], Meta(description="A JSON Schema.")]


class Function(StrictStruct, frozen=True, omit_defaults=True):
    """What a model may call.

    The arguments of a call are one JSON object. Where a call is forced, as much of the schema is
    enforced as can be. With `strict` a schema that can't be enforced whole is refused, and it holds
    as well where the model calls by itself.
    """

    name: Name
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(StrictStruct, frozen=True, tag_field="type", tag="function"):
    """A function tool. Custom tools are not supported. `cache_control` has no effect: prompts are
    cached as it is."""

    function: Function
    cache_control: dict[str, Any] | None = None

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates take it. Functions without parameters take an empty object."""
        function = msgspec.to_builtins(self.function)
        function.setdefault("parameters", {"type": "object", "properties": {}})
        return {"type": "function", "function": function}


class AutoChoice(StrictStruct, frozen=True, tag_field="type", tag="auto"):
    """As `"auto"`; so do Cursor and Anthropic's API write it."""


class NoChoice(StrictStruct, frozen=True, tag_field="type", tag="none"):
    """As `"none"`."""


class RequiredChoice(StrictStruct, frozen=True, tag_field="type", tag="required"):
    """As `"required"`."""


class AnyChoice(StrictStruct, frozen=True, tag_field="type", tag="any"):
    """As `"required"`, in Anthropic's and Mistral's word."""


class ToolChosen(StrictStruct, frozen=True, tag_field="type", tag="tool"):
    """As a chosen function, in Anthropic's form."""

    name: str


class ChosenFunction(StrictStruct, frozen=True):
    name: str


class NamedChoice(StrictStruct, frozen=True, tag_field="type", tag="function"):
    """The model must call this one function, once. Its `name` may also stand beside `type`."""

    function: ChosenFunction | None = None
    name: str | None = None

    def chosen(self, param: str) -> str:
        """The function's name. Raises MissingParameter for the choice `param` that has none."""
        if self.function is not None:
            return self.function.name
        if self.name is None:
            raise missing_parameter(f"{param}.function")
        return self.name


class AllowedTools(StrictStruct, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Meta(min_length=1, max_length=TOOLS_MAX)]


class AllowedChoice(StrictStruct, frozen=True, tag_field="type", tag="allowed_tools"):
    """The model sees and may call these tools alone."""

    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required", "any"]
    | AutoChoice
    | NoChoice
    | RequiredChoice
    | AnyChoice
    | ToolChosen
    | NamedChoice
    | AllowedChoice
)


class TextFormat(StrictStruct, frozen=True, tag_field="type", tag="text"):
    """No constraint."""


class JSONFormat(StrictStruct, frozen=True, tag_field="type", tag="json_object"):
    """The answer is one JSON object; with llama.cpp's `schema` as if that were a `json_schema`."""

    schema: Schema | None = None


class NamedSchema(StrictStruct, frozen=True):
    """With `strict` a schema that can't be enforced whole is refused; without it all of it is
    enforced that can be."""

    schema: Schema
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(StrictStruct, frozen=True, tag_field="type", tag="json_schema"):
    """The answer is one JSON value that is valid under the schema, as far as that is enforced."""

    json_schema: NamedSchema | None = None
    schema: Schema | None = None
    """llama.cpp's place for it."""


class ValueFormat(StrictStruct, frozen=True, tag_field="type", tag="json"):
    """As `json_schema`, in the form of text-generation-inference."""

    value: Schema


class RegexFormat(StrictStruct, frozen=True, tag_field="type", tag="regex"):
    """All of the answer matches the expression, in the form of text-generation-inference."""

    value: Annotated[str, Meta(min_length=1)]


class GrammarFormat(StrictStruct, frozen=True, tag_field="type", tag="grammar"):
    """The answer follows the grammar, which is in GBNF or Lark."""

    grammar: Annotated[str, Meta(min_length=1)]


ResponseFormat = TextFormat | JSONFormat | SchemaFormat | ValueFormat | RegexFormat | GrammarFormat


def answer_structure(
    wanted: ResponseFormat | None, place: str = "response_format"
) -> AnswerSchema | None:
    """The schema of an answer, None = it is held to none. `place` is that of the format in the
    request. Raises InvalidValue for a schema that can't be passed on."""
    match wanted:
        case JSONFormat(schema=None):
            return AnswerSchema('{"type": "object"}')
        case SchemaFormat(json_schema=NamedSchema() as named):
            at = SCHEMA_PLACE if place == "response_format" else f"{place}.schema"
            return _answer_schema(named.schema, at, strict=named.strict is True)
        case JSONFormat(schema=dict() as schema) | SchemaFormat(schema=dict() as schema):
            return _answer_schema(schema, f"{place}.schema")
        case SchemaFormat():
            raise missing_parameter(f"{place}.json_schema")
        case ValueFormat(value=schema):
            return _answer_schema(schema, f"{place}.value")
        case _:
            return None


def _answer_schema(schema: dict[str, Any], place: str, *, strict: bool = False) -> AnswerSchema:
    check_plain(schema, place)
    return AnswerSchema(msgspec.json.encode(schema).decode(), strict, place)


def offered_tools(
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    parallel: bool | None,
    wanted: ResponseFormat | None,
) -> tuple[list[dict[str, Any]], Calling | None]:
    """The tools that the model is shown, and what it may do with them.

    Without a choice "auto" holds, as at OpenAI's. With "none" the model is shown none: what it
    does not know it does not try to call. Raises InvalidValue or UnsupportedValue.
    """
    tools = tools or ()
    _check_tools(tools)
    if choice == "none" or isinstance(choice, NoChoice):
        return [], None
    names = tuple(tool.function.name for tool in tools)
    several = parallel is not False
    mode: Literal["auto", "required"] = "auto"
    places: tuple[int, ...] = ()
    match choice:
        case "required" | "any" | RequiredChoice() | AnyChoice():
            if not names:
                raise InvalidValue(
                    "`tool_choice` asks for a call, but there are no `tools`.", param="tool_choice"
                )
            mode = "required"
        case NamedChoice():
            chosen = choice.chosen("tool_choice")
            mode, names, several = "required", _among(names, [chosen]), False
        case ToolChosen(name=chosen):
            mode, names, several = "required", _among(names, [chosen]), False
        case AllowedChoice(allowed_tools=allowed):
            at = "tool_choice.allowed_tools.tools"
            listed = [each.chosen(f"{at}[{i}]") for i, each in enumerate(allowed.tools)]
            mode, names = allowed.mode, _among(names, listed)
            places = tuple(i for i, tool in enumerate(tools) if tool.function.name in names)
            tools = [tools[i] for i in places]
    if mode == "required" and not isinstance(wanted, TextFormat | None):
        raise demanded_twice("response_format")
    if not names:
        return [], None
    return [tool.for_template() for tool in tools], Calling(mode, names, several, places)


def demanded_twice(param: str) -> UnsupportedValue:
    """`param` says what the answer must be, and `tool_choice` that there be none."""
    return UnsupportedValue(
        f"`{param}` cannot be combined with a `tool_choice` that demands a call: the answer would "
        "have to be both.",
        param=param,
    )


def _among(names: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that were chosen. Raises InvalidValue when others were."""
    if not set(chosen) <= set(names):
        raise InvalidValue(
            "`tool_choice` names a function that is not among the `tools`.", param="tool_choice"
        )
    return tuple(name for name in names if name in chosen)


def _check_tools(tools: Sequence[Tool]) -> None:
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        param = f"tools[{number}].function.name"
        name = tool.function.name
        if not _NAME.fullmatch(name):  # `$` lets a newline pass
            raise InvalidValue(f"Invalid value for `{param}`.", param=param)
        if name in seen:
            raise invalid_value(param, "another tool has that name.")
        seen.add(name)
        if tool.function.parameters is not None:
            check_plain(tool.function.parameters, f"tools[{number}].function.parameters")
