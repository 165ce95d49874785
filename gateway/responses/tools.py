"""The tools of a response: function, custom and namespace ones become the functions that a model
may call, those that a server would have to run are left out. Pure.

A model knows flat names alone. `ToolNames` gives each tool one, and tells what a called name stands
for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from gateway.openai import tools as openai
from gateway.openai.custom_tools import InputFormat, custom_function
from gateway.openai.validation import (
    StrictStruct,
    check_plain,
    invalid_value,
    missing_parameter,
)
from supervisor.errors import InvalidValue, UnsupportedValue

TOOLS_MAX = openai.TOOLS_MAX
_ALL_MAX = 512
"""Tools of all namespaces together."""
_NAME_MAX = 64
_NO_NAME = re.compile(r"[^a-zA-Z0-9_-]")

HOSTED_TOOLS = frozenset(
    {
        *("web_search", "web_search_preview", "file_search", "code_interpreter", "computer"),
        *("computer_use", "computer_use_preview", "image_generation", "mcp", "local_shell"),
        *("shell", "apply_patch", "tool_search", "programmatic_tool_calling"),
    }
)
_DATED = re.compile(r"_\d{4}_\d{2}_\d{2}$")


class FunctionTool(StrictStruct, frozen=True, tag_field="type", tag="function"):
    """What a model may call.

    With `strict` a schema that can't be enforced whole is refused; without it as much of it is
    enforced as can be, which is also what holds when it is left out. The others have no effect.
    """

    name: openai.Name
    description: str | None = None
    parameters: openai.Schema | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    async_: bool | None = msgspec.field(default=None, name="async")
    cache_control: dict[str, Any] | None = None


class CustomTool(StrictStruct, frozen=True, tag_field="type", tag="custom"):
    """What a model may call with a text."""

    name: openai.Name
    description: str | None = None
    format: InputFormat | None = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    async_: bool | None = msgspec.field(default=None, name="async")


class NamespaceTool(StrictStruct, frozen=True, tag_field="type", tag="namespace"):
    """Tools whose names are told together with the namespace's."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    tools: Annotated[list[FunctionTool | CustomTool], Meta(max_length=_ALL_MAX)]
    description: str | None = None


class HostedTool(msgspec.Struct, frozen=True, tag_field="type", tag="hosted"):
    """A tool that a server would have to run, which Bulkhead does not: without effect."""


AnyTool = FunctionTool | CustomTool | NamespaceTool | HostedTool


class FunctionChoice(StrictStruct, frozen=True, tag_field="type", tag="function"):
    """The model must call this one function, once."""

    name: str | None = None
    namespace: str | None = None
    function: openai.ChosenFunction | None = None
    """As chats write it."""


class CustomChoice(StrictStruct, frozen=True, tag_field="type", tag="custom"):
    """The model must call this one custom tool, once."""

    name: str
    namespace: str | None = None


class AllowedToolChoice(StrictStruct, frozen=True, tag_field="type", tag="allowed_tools"):
    """The model sees and may call these tools alone. Hosted ones among them are left out."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=TOOLS_MAX)]


ToolChoice = (
    Literal["none", "auto", "required"]
    | openai.AutoChoice
    | openai.NoChoice
    | openai.RequiredChoice
    | FunctionChoice
    | CustomChoice
    | AllowedToolChoice
)


def told_choice(choice: ToolChoice | None) -> str | dict[str, Any]:
    """The choice as the answer repeats it: in this dialect's own form."""
    match choice:
        case str():
            return choice
        case openai.NoChoice():
            return "none"
        case openai.RequiredChoice():
            return "required"
        case FunctionChoice(name=name, function=function):
            return {"type": "function", "name": name or (function.name if function else "")}
        case CustomChoice(name=name):
            return {"type": "custom", "name": name}
        case AllowedToolChoice(mode=mode, tools=tools):
            return {"type": "allowed_tools", "mode": mode, "tools": tools}
        case _:
            return "auto"


def is_hosted(kind: object) -> bool:
    return isinstance(kind, str) and _DATED.sub("", kind) in HOSTED_TOOLS


def normal_tool(tool: Any, at: str) -> Any:
    """`tool` without nulls, which mean absent, and without what tells hosted ones apart."""
    if not isinstance(tool, dict):
        return tool
    if is_hosted(kind := tool.get("type")):
        return {"type": "hosted"}
    if kind == "hosted":
        raise UnsupportedValue(f"Unsupported value for `{at}.type`.", param=f"{at}.type")
    tool = {name: value for name, value in tool.items() if value is not None}
    if kind == "namespace" and isinstance(inner := tool.get("tools"), list):
        tool["tools"] = [normal_tool(each, f"{at}.tools[{n}]") for n, each in enumerate(inner)]
    return tool


def check_choice(choice: Any) -> None:
    """Raises UnsupportedValue for a `tool_choice` that demands a hosted tool."""
    if isinstance(choice, dict) and is_hosted(choice.get("type")):
        raise UnsupportedValue(
            "`tool_choice` demands a tool that the server would have to run. Bulkhead runs none: "
            "offer a function and run it in the client.",
            param="tool_choice",
        )


def hosted_places(tools: Any) -> list[str]:
    """The names for `x-bulkhead-ignored` of the hosted tools in a body's `tools`."""
    if not isinstance(tools, list):
        return []
    kinds = [each.get("type") for each in tools if isinstance(each, dict)]
    return [f"tools.{kind}" for kind in dict.fromkeys(kinds) if is_hosted(kind)]


class CalledTool(NamedTuple):
    """What a called name stands for."""

    name: str
    namespace: str | None
    is_custom: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tool that the model may call."""

    called: CalledTool
    place: str
    """Where it stands in the body."""
    function: openai.Function
    is_free: bool
    """It has a grammar that the model is told, but not held to."""


@dataclass(slots=True)
class ToolNames:
    """The tools of a request under the flat names that the model knows."""

    _entries: dict[str, _Entry] = field(default_factory=dict)
    """By flat name, in order."""
    _flat: dict[tuple[str | None, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Sequence[AnyTool], more: Iterable[tuple[str, AnyTool]] = ()) -> ToolNames:
        """The names of `tools`, and of `more` with their places, which take the place of tools of
        the same name. Raises InvalidValue."""
        names = cls()
        listed = list(_flattened((f"tools[{n}]", tool) for n, tool in enumerate(tools)))
        later = list(_flattened(more))
        if len(listed) + len(later) > _ALL_MAX:
            raise invalid_value("tools", f"expected at most {_ALL_MAX} tools, namespaces unfolded.")
        for place, namespace, tool in listed:
            if (namespace, tool.name) in names._flat:
                raise invalid_value(f"{place}.name", "another tool has that name.")
            names._flat[namespace, tool.name] = ""
        # Names without a namespace stay as they are, whatever the others come to.
        together = [*listed, *later]
        own = {tool.name for _, namespace, tool in together if namespace is None}
        for place, namespace, tool in together:
            flat = tool.name if namespace is None else _flat_name(namespace, tool.name, own)
            called = CalledTool(tool.name, namespace, isinstance(tool, CustomTool))
            names._flat[namespace, tool.name] = flat
            function, is_free = _function(tool, flat, place)
            names._entries[flat] = _Entry(called, place, function, is_free)
        return names

    def flat(self, namespace: str | None, name: str) -> str:
        """The name that the model knows, also of a tool that is not there any more."""
        if (known := self._flat.get((namespace, name))) is not None:
            return known
        return name if namespace is None else _flat_name(namespace, name, ())

    def called(self, flat: str) -> CalledTool:
        entry = self._entries.get(flat)
        return CalledTool(flat, None, False) if entry is None else entry.called

    @property
    def places(self) -> list[str]:
        """Where the tools stand in the body."""
        return [entry.place for entry in self._entries.values()]

    @property
    def not_enforced(self) -> list[str]:
        """The places of the grammars that the model is not held to."""
        return [f"{each.place}.format" for each in self._entries.values() if each.is_free]

    @property
    def tools(self) -> list[openai.Tool]:
        return [openai.Tool(entry.function) for entry in self._entries.values()]

    @property
    def all_strict(self) -> bool:
        return all(entry.function.strict for entry in self._entries.values())

    def choice(self, chosen: ToolChoice | None) -> openai.ToolChoice | None:
        """The choice in flat names. Raises the contract's 400."""
        match chosen:
            case FunctionChoice(name=name, namespace=namespace, function=function):
                if name is None:
                    if function is None:
                        raise missing_parameter("tool_choice.name")
                    name = function.name
                return openai.NamedChoice(name=self._chosen(namespace, name, "tool_choice.name"))
            case CustomChoice(name=name, namespace=namespace):
                return openai.NamedChoice(name=self._chosen(namespace, name, "tool_choice.name"))
            case AllowedToolChoice():
                return self._allowed(chosen)
            case _:
                return chosen

    def _allowed(self, choice: AllowedToolChoice) -> openai.ToolChoice:
        names = []
        for number, tool in enumerate(choice.tools):
            at = f"tool_choice.tools[{number}]"
            kind, name, namespace = tool.get("type"), tool.get("name"), tool.get("namespace")
            if is_hosted(kind):
                continue
            if kind == "namespace" and isinstance(name, str):
                within = [
                    flat for flat, each in self._entries.items() if each.called.namespace == name
                ]
                if not within:
                    raise _not_there(f"{at}.name")
                names += within
                continue
            if kind not in ("function", "custom"):
                raise UnsupportedValue(f"Unsupported value for `{at}.type`.", param=f"{at}.type")
            if not isinstance(name, str):
                raise missing_parameter(f"{at}.name")
            inside = namespace if isinstance(namespace, str) else None
            names.append(self._chosen(inside, name, f"{at}.name"))
        if names:
            listed = [openai.NamedChoice(name=name) for name in dict.fromkeys(names)]
            return openai.AllowedChoice(openai.AllowedTools(choice.mode, listed))
        if choice.mode == "auto":
            return "none"
        raise UnsupportedValue(
            "`tool_choice` demands a call of tools that the server would have to run. Bulkhead "
            "runs none: offer a function and run it in the client.",
            param="tool_choice",
        )

    def _chosen(self, namespace: str | None, name: str, param: str) -> str:
        """The flat name of a tool that was named with its namespace or, where it is plain which is
        meant, without it. Raises InvalidValue."""
        if (flat := self._flat.get((namespace, name))) is not None:
            return flat
        if namespace is None:
            if name in self._entries:
                return name
            found = [flat for (_, each), flat in self._flat.items() if each == name]
            if len(found) == 1:
                return found[0]
        raise _not_there(param)


def _not_there(param: str) -> InvalidValue:
    return InvalidValue("`tool_choice` names a tool that is not among the `tools`.", param=param)


def _flattened(
    tools: Iterable[tuple[str, AnyTool]],
) -> Iterator[tuple[str, str | None, FunctionTool | CustomTool]]:
    """Each with its place and its namespace. A namespace's description is told with its first."""
    for place, tool in tools:
        match tool:
            case FunctionTool() | CustomTool():
                yield place, None, tool
            case NamespaceTool():
                about = tool.description
                for number, inner in enumerate(tool.tools):
                    if about:
                        told = f"{about}\n\n{inner.description}" if inner.description else about
                        inner, about = msgspec.structs.replace(inner, description=told), None
                    yield f"{place}.tools[{number}]", tool.name, inner
            case _:
                pass


def _flat_name(namespace: str, name: str, taken: Iterable[str]) -> str:
    """At most 64 characters, and none of `taken`. What is cut or would clash ends in a hash."""
    plain = _NO_NAME.sub("_", namespace)
    flat = f"{plain}{name}" if plain.endswith("__") else f"{plain}__{name}"
    if plain == namespace and len(flat) <= _NAME_MAX and flat not in taken:
        return flat
    digest = hashlib.blake2b(f"{namespace}\0{name}".encode(), digest_size=5).hexdigest()
    return f"{flat[: _NAME_MAX - len(digest) - 1]}_{digest}"


def _function(
    tool: FunctionTool | CustomTool, flat: str, place: str
) -> tuple[openai.Function, bool]:
    """The function that the model is shown, and whether the tool's grammar can't be enforced."""
    match tool:
        case FunctionTool():
            if tool.parameters is not None:
                check_plain(tool.parameters, f"{place}.parameters")
            return openai.Function(flat, tool.description, tool.parameters, tool.strict), False
        case CustomTool():
            made = custom_function(flat, tool.description, tool.format, f"{place}.format")
            return made.function, bool(made.unenforced)
