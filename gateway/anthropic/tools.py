"""Anthropic's tools and tool choice, and what the worker makes of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from gateway.anthropic.known_tools import known_tool
from gateway.openai.validation import (
    StrictStruct,
    check_plain,
    convert,
    invalid_value,
    missing_parameter,
)
from supervisor.errors import BulkheadError, InvalidType, InvalidValue, UnsupportedValue
from supervisor.wire.frames import Calling

TOOLS_MAX = 512
"""Claude Code with a few MCP servers has some hundreds."""
_EXAMPLES_MAX = 100
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_SERVERS = re.compile(
    r"(?:web_search|web_fetch|code_execution|advisor)_\d{8}"
    r"|tool_search_tool_(?:bm25|regex)(?:_\d{8})?|mcp_toolset"
)
"""Tools that Anthropic's own servers run."""
_SCREENS = re.compile(r"computer_\d{8}|(?:computer|browser)_toolset_\d{8}")
"""Tools whose results are pictures."""


class CustomTool(StrictStruct, frozen=True):
    """A tool of the client's.

    With `strict` a schema that can't be enforced whole is refused, and it holds as well where the
    model calls by itself. Tools whose loading is deferred are shown from the beginning.
    """

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    input_schema: Annotated[dict[str, Any], Meta(description="A JSON Schema.")]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    input_examples: Annotated[list[dict[str, Any]], Meta(max_length=_EXAMPLES_MAX)] | None = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: dict[str, Any] | None = None

    def function(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function: dict[str, Any] = {"name": self.name}
        described = [self.description] if self.description else []
        for example in self.input_examples or ():
            described.append(f"Example of an input: {msgspec.json.encode(example).decode()}")
        if described:
            function["description"] = "\n".join(described)
        # `$schema` tells the model nothing, and takes its tokens in each of an agent's tools.
        schema = {name: each for name, each in self.input_schema.items() if name != "$schema"}
        function["parameters"] = schema
        if self.strict is not None:
            function["strict"] = self.strict
        return function


class ToolAuto(StrictStruct, frozen=True, tag_field="type", tag="auto"):
    """The model may call."""

    disable_parallel_tool_use: bool | None = None


class ToolAny(StrictStruct, frozen=True, tag_field="type", tag="any"):
    """The model must call."""

    disable_parallel_tool_use: bool | None = None


class ToolNamed(StrictStruct, frozen=True, tag_field="type", tag="tool"):
    """The model must call this one tool, once."""

    name: str
    disable_parallel_tool_use: bool | None = None


class ToolNone(StrictStruct, frozen=True, tag_field="type", tag="none"):
    """The model is shown no tools."""


ToolChoice = ToolAuto | ToolAny | ToolNamed | ToolNone


class Offered(NamedTuple):
    """What becomes of a request's tools."""

    tools: list[dict[str, Any]]
    """As chat templates take them."""
    calling: Calling | None
    ignored: tuple[str, ...]
    """Types of those that nobody could run here."""
    strict: bool = True
    """Whether all have the promise that their schema holds."""


class _Sorted(NamedTuple):
    functions: dict[str, dict[str, Any]]
    places: tuple[int, ...]
    dropped: dict[str, str]
    """Name → type."""


def offered_tools(tools: Sequence[Mapping[str, Any]], choice: ToolChoice | None) -> Offered:
    """What the model is shown, and what it may do with it.

    Without a choice "auto" holds. With "none" the model is shown none: what it does not know it
    does not try to call. Tools that only Anthropic's servers run, or whose results are pictures,
    are left out, unless the choice demands one. Raises the contract's 400 for the tool at fault.
    """
    functions, places, dropped = _sorted_out(tools)
    ignored = tuple(f"tools.{kind}" for kind in dict.fromkeys(dropped.values()))
    if isinstance(choice, ToolNone):
        return Offered([], None, ignored)
    names = tuple(functions)
    parallel = not (choice is not None and choice.disable_parallel_tool_use)
    mode: Literal["auto", "required"] = "auto"
    match choice:
        case ToolAny():
            if not names:
                why = f": {', '.join(ignored)} can't be used here" if ignored else ""
                raise InvalidValue(
                    f"`tool_choice` asks for a call, but there are no `tools`{why}.",
                    param="tool_choice",
                )
            mode = "required"
        case ToolNamed(name=name):
            if name in dropped:
                raise UnsupportedValue(
                    f"`tool_choice` demands a tool of the type `{dropped[name]}`, which can't be "
                    "used here: Anthropic's servers run it, or its results are pictures.",
                    param="tool_choice.name",
                )
            if name not in functions:
                raise InvalidValue(
                    "`tool_choice` names a tool that is not among the `tools`.",
                    param="tool_choice.name",
                )
            mode, names, parallel = "required", (name,), False
    if not names:
        return Offered([], None, ignored)
    return Offered(
        [{"type": "function", "function": each} for each in functions.values()],
        Calling(mode, names, parallel, places if dropped else ()),
        ignored,
        all(each.get("strict") is True for each in functions.values()),
    )


def _sorted_out(tools: Sequence[Mapping[str, Any]]) -> _Sorted:
    found = _Sorted({}, (), {})
    places = []
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        kind = tool.get("type") or "custom"
        if not isinstance(kind, str):
            raise InvalidType(f"Invalid type for `{place}.type`.", param=f"{place}.type")
        if kind == "custom":
            function = _custom(tool, place)
        elif _SERVERS.fullmatch(kind) or _SCREENS.fullmatch(kind):
            found.dropped[_name(tool, kind)] = kind
            continue
        elif (known := known_tool(kind, tool)) is not None:
            function = known
        else:
            raise UnsupportedValue(f"Unsupported value for `{place}.type`.", param=f"{place}.type")
        if function is None:
            found.dropped[_name(tool, kind)] = "code_execution"
            continue
        if function["name"] in found.functions:
            raise invalid_value(f"{place}.name", "another tool has that name.")
        found.functions[function["name"]] = function
        places.append(number)
    return found._replace(places=tuple(places))


def _name(tool: Mapping[str, Any], kind: str) -> str:
    name = tool.get("name")
    return name if isinstance(name, str) else kind


def _custom(raw: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """A tool of the client's; None for one that only a program at Anthropic's may call."""
    try:
        tool = convert(raw, CustomTool)
    except BulkheadError as error:
        raise _inside(error, place) from None
    if not _NAME.fullmatch(tool.name):
        raise invalid_value(f"{place}.name", "expected letters, digits, `_`, `-` and `.`.")
    check_plain(tool.input_schema, f"{place}.input_schema")
    check_plain(tool.input_examples, f"{place}.input_examples")
    if tool.allowed_callers is not None and "direct" not in tool.allowed_callers:
        return None
    return tool.function()


def _inside(error: BulkheadError, place: str) -> BulkheadError:
    """The error of a tool, told of its place in the list."""
    if error.param is None:
        return missing_parameter(place)
    param = f"{place}.{error.param}"
    return type(error)(error.message.replace(f"`{error.param}`", f"`{param}`"), param=param)
