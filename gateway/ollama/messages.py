"""Ollama's chat messages and tools, in OpenAI's form. Pure.

What differs: arguments are an object, calls may have no ids, and the answer of a tool says by
`tool_name` what it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.openai.messages import MESSAGES_MAX, TEXT_ONLY
from gateway.openai.validation import check_plain, convert
from supervisor.errors import InvalidType, UnsupportedParameter, UnsupportedValue

_CALLS_MAX = 1_000
_IMAGES_MAX = 1_000


class CalledFunction(msgspec.Struct, frozen=True):
    """`arguments` may also be JSON text, as OpenAI's are."""

    name: str
    arguments: dict[str, Any] | str = {}


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an assistant has made."""

    function: CalledFunction
    id: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message. An answer may be sent back as it came; members that are not here are ignored."""

    role: str
    content: str | list[Any] | None = None
    thinking: str | None = None
    images: Annotated[list[Any], Meta(max_length=_IMAGES_MAX)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=_CALLS_MAX)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _Messages(msgspec.Struct, frozen=True):
    messages: Annotated[list[Message], Meta(max_length=MESSAGES_MAX)]


def to_openai(messages: object) -> list[dict[str, Any]]:
    """The same in OpenAI's form. Raises the contract's 400 that names the place."""
    parsed = convert({"messages": messages}, _Messages).messages
    # Templates that know ids want them: calls without get one, and so do their answers.
    open_calls: dict[str, str] = {}
    """Id → function of those that have no answer yet, in order."""
    number = 0
    translated = []
    for index, message in enumerate(parsed):
        plain: dict[str, Any] = {"role": message.role, "content": _content(message, index)}
        if message.role == "assistant":
            if message.thinking:
                plain["reasoning_content"] = message.thinking
            if message.tool_calls:
                plain["tool_calls"] = calls = []
                open_calls.clear()
                for place, call in enumerate(message.tool_calls):
                    param = f"messages[{index}].tool_calls[{place}].function.arguments"
                    identity = call.id or f"call_{number}"
                    number += 1
                    open_calls[identity] = call.function.name
                    function = {
                        "name": call.function.name,
                        "arguments": _as_text(call.function.arguments, param),
                    }
                    calls.append({"id": identity, "type": "function", "function": function})
        elif message.tool_calls:
            param = f"messages[{index}].tool_calls"
            raise UnsupportedParameter(f"`{param}`: only an assistant calls tools.", param=param)
        if message.role == "tool":
            name = message.tool_name or message.name
            answered, function_name = _answered(open_calls, message.tool_call_id, name)
            if answered:
                plain["tool_call_id"] = answered
            if function_name:
                plain["name"] = function_name
        elif message.name:
            plain["name"] = message.name
        translated.append(plain)
    return translated


def _content(message: Message, index: int) -> str | list[Any]:
    if message.images:
        raise no_images(f"messages[{index}].images")
    return message.content or ""


def no_images(param: str) -> UnsupportedValue:
    return UnsupportedValue(f"`{param}` holds images. {TEXT_ONLY}", param=param)


def _as_text(arguments: Mapping[str, Any] | str, param: str) -> str:
    if isinstance(arguments, str):
        return arguments
    check_plain(arguments, param)
    return msgspec.json.encode(arguments).decode()


def _answered(
    open_calls: dict[str, str], identity: str | None, name: str | None
) -> tuple[str | None, str | None]:
    """Id and function of the call that a tool's message answers: the one that it names, else the
    first that has no answer yet."""
    if identity is None:
        found = (known for known, called in open_calls.items() if name in (None, called))
        identity = next(found, None)
    if identity is None or identity not in open_calls:
        return identity, name
    called = open_calls.pop(identity)
    return identity, name or called


def tools_to_openai(tools: object) -> object:
    """Tools without what Ollama's types have and no template shows: `items`, and the function's
    `type`. What is no list of tools is left to whoever checks it."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        return tools
    return [_tool(each) for each in tools]


def _tool(tool: object) -> object:
    if not isinstance(tool, dict):
        return tool
    plain = {"type": "function"} | {name: each for name, each in tool.items() if name != "items"}
    if isinstance(function := plain.get("function"), dict):
        plain["function"] = {name: each for name, each in function.items() if name != "type"}
    return plain


def want_text(value: object, param: str) -> str:
    """Raises InvalidType."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidType(f"Invalid type for `{param}`: expected `str`.", param=param)
    return value
