"""OpenAI's chat messages: types, and the form that chat templates take. Pure.

Members that no type here has are ignored: frameworks keep notes of their own in the answers that
they send back, and a conversation must not end for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.openai.validation import missing_parameter
from supervisor.errors import BulkheadError, UnsupportedParameter, UnsupportedValue

MESSAGES_MAX = 10_000
"""Far above any conversation: each costs time on the loop that all streams share."""
TEXT_ONLY = "Bulkhead serves language models, which take text only."
_CALLS_MAX = 1_000

_PART_TYPE = re.compile(r"messages\[\d+\]\.content\[\d+\]\.type")


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Text."""

    text: str


class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """What an assistant said instead of an answer; to the model it is text."""

    refusal: str


Part = TextPart | RefusalPart


class CalledFunction(msgspec.Struct, frozen=True):
    """`arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A call that an assistant has made."""

    function: CalledFunction
    id: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message. An answer may be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Meta(max_length=MESSAGES_MAX)] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=_CALLS_MAX)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None


def for_templates(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates take them: content is text, `developer` the older `system`.

    The arguments of tool calls stay JSON text. Raises MissingParameter or UnsupportedParameter.
    """
    return [_for_template(message, index) for index, message in enumerate(messages)]


def _for_template(message: Message, index: int) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": _content(message, index)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.role != "assistant":
        if message.tool_calls:
            param = f"messages[{index}].tool_calls"
            raise UnsupportedParameter(f"`{param}`: only an assistant calls tools.", param=param)
        return plain
    if thought := message.reasoning_content or message.reasoning:
        plain["reasoning_content"] = thought
    if message.tool_calls:
        plain["tool_calls"] = [_call(call) for call in message.tool_calls]
    return plain


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    plain: dict[str, Any] = {"type": "function", "function": function}
    return plain if call.id is None else {"id": call.id, **plain}


def _content(message: Message, index: int) -> str:
    match message.content:
        case str(text):
            return text
        case None:
            if message.role != "assistant":
                raise missing_parameter(f"messages[{index}].content")
            return message.refusal or ""
        case parts:
            return "".join(p.text if isinstance(p, TextPart) else p.refusal for p in parts)


def explain_part_error(error: BulkheadError) -> BulkheadError:
    """The error to answer with: of a content part that is no text, one that says so plainly."""
    if error.param is None or not _PART_TYPE.fullmatch(error.param):
        return error
    place = error.param.removesuffix(".type")
    return UnsupportedValue(f"`{place}` is not a text part. {TEXT_ONLY}", param=place)
