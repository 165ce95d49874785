"""The items of a response's input: types, and the messages that chat templates take. Pure.

Members that no type here has are ignored: clients send back the items that they were given, and
those of other servers hold more than ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.openai.custom_tools import arguments_of
from gateway.openai.messages import MESSAGES_MAX, TEXT_ONLY
from gateway.openai.thoughts import unseal
from gateway.openai.validation import convert, missing_parameter
from gateway.responses.tools import AnyTool, ToolNames, hosted_places, normal_tool
from supervisor.errors import BulkheadError, InvalidType, UnsupportedValue

HOSTED_ITEMS = frozenset(
    {
        *("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"),
        *("computer_call", "computer_call_output", "local_shell_call", "local_shell_call_output"),
        *("shell_call", "shell_call_output", "apply_patch_call", "apply_patch_call_output"),
        *("mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call"),
        *("tool_search_call", "tool_search_output", "program", "program_output"),
    }
)
"""What tools have left in a conversation that another server runs itself. The model here has never
had them, and the texts around tell what came of them."""

_PARTS_MAX = MESSAGES_MAX
_NO_TEXT = frozenset({"input_image", "input_file", "input_audio", "computer_screenshot"})


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    """Text of the client's."""

    text: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text of a model's. `annotations` and `logprobs` may stand beside it."""

    text: str


class PlainText(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Text, as chats have it."""

    text: str


class Refusal(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """What a model said instead of an answer; to the model it is text."""

    refusal: str


Part = InputText | OutputText | PlainText | Refusal
Content = str | Annotated[list[Part], Meta(max_length=_PARTS_MAX)]


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A message. Its `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A call that the model has made; `arguments` is JSON text, as it wrote it."""

    name: str
    arguments: str
    call_id: str
    namespace: str | None = None


class CallOutputItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output"):
    """What came of the call with that id."""

    output: Content
    call_id: str | None = None


class CustomCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool; `input` is text."""

    name: str
    input: str
    call_id: str
    namespace: str | None = None


class CustomOutputItem(
    msgspec.Struct, frozen=True, tag_field="type", tag="custom_tool_call_output"
):
    """What came of it."""

    output: Content
    call_id: str | None = None


class SummaryText(msgspec.Struct, frozen=True):
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """What the model thought. The model is given `content`, else what `encrypted_content` of ours
    holds, else `summary`; encrypted content of another server is of no use here."""

    summary: Annotated[list[SummaryText], Meta(max_length=_PARTS_MAX)] | None = None
    content: Annotated[list[SummaryText], Meta(max_length=_PARTS_MAX)] | None = None
    encrypted_content: str | None = None

    @property
    def text(self) -> str:
        if self.content:
            return "\n\n".join(each.text for each in self.content)
        if self.encrypted_content and (text := unseal(self.encrypted_content)):
            return text
        return "\n\n".join(each.text for each in self.summary or ())


class ReferenceItem(msgspec.Struct, frozen=True, tag_field="type", tag="item_reference"):
    """An item of a stored response. Its `type` may be left out."""

    id: str


class AdditionalToolsItem(msgspec.Struct, frozen=True, tag_field="type", tag="additional_tools"):
    """Tools beside those of `tools`."""

    tools: list[AnyTool]


class HostedItem(msgspec.Struct, frozen=True, tag_field="type", tag="hosted"):
    """What a tool of another server has left; without effect."""


Item = (
    MessageItem
    | CallItem
    | CallOutputItem
    | CustomCallItem
    | CustomOutputItem
    | ReasoningItem
    | ReferenceItem
    | AdditionalToolsItem
    | HostedItem
)


class _Items(msgspec.Struct, frozen=True):
    input: Annotated[list[Item], Meta(max_length=MESSAGES_MAX)]


def parse_items(raw: Sequence[Any]) -> list[Item]:
    """Raises the contract's 400 that names the place, `input[…]`."""
    normal = [_normal(each, f"input[{number}]") for number, each in enumerate(raw)]
    try:
        return convert({"input": normal}, _Items).input
    except BulkheadError as error:
        raise _explained(error, normal) from None


def referred_id(item: Any) -> str | None:
    """The item of a stored response that `item` stands for; None where it stands for itself."""
    if not isinstance(item, dict) or not isinstance(id := item.get("id"), str):
        return None
    kind = item.get("type")
    is_one = kind == "item_reference" or (kind is None and item.get("role") is None)
    return id if is_one else None


def kept_forms(items: Sequence[Item], raw: Sequence[Any]) -> list[dict[str, Any]]:
    """What is kept of `items`: all that they are read for, in the form of OpenAI's lists of items,
    with the ids that they have in `raw`. What is without effect is not kept."""
    return [
        _in_full(msgspec.to_builtins(item), given)
        for item, given in zip(items, raw, strict=True)
        if not isinstance(item, HostedItem)
    ]


def _in_full(item: dict[str, Any], given: Any) -> dict[str, Any]:
    made = {name: value for name, value in item.items() if value is not None}
    if made["type"] == "additional_tools":
        made["tools"] = [tool for tool in made["tools"] if tool["type"] != "hosted"]
    if isinstance(id := given.get("id"), str):
        made["id"] = id
    if made["type"] != "message":
        return made
    is_models = made["role"] == "assistant"
    if isinstance(text := made["content"], str):
        made["content"] = [{"type": "output_text" if is_models else "input_text", "text": text}]
    if is_models:
        made["status"] = "completed"
        for part in made["content"]:
            if part["type"] == "output_text":
                part["annotations"] = []
    return made


def hosted_names(items: Iterable[Any]) -> list[str]:
    """The names for `x-bulkhead-ignored` of what changes nothing here among the items that were
    sent, each once: items that hosted tools have left, and such tools."""
    names: list[str] = []
    for item in items:
        if not isinstance(item, dict):
            continue
        kind = item.get("type")
        if kind == "additional_tools":
            names += hosted_places(item.get("tools"))
        elif isinstance(kind, str) and kind in HOSTED_ITEMS:
            names.append(f"input.{kind}")
    return list(dict.fromkeys(names))


def _normal(item: Any, at: str) -> Any:
    """`item` with the type that it is of, and without nulls, which mean absent."""
    if not isinstance(item, dict):
        return item
    item = {name: value for name, value in item.items() if value is not None}
    kind = item.get("type")
    if kind is None:
        if "role" in item:
            return item | {"type": "message"}
        if "id" in item:
            return item | {"type": "item_reference"}
        raise missing_parameter(f"{at}.type")
    if isinstance(kind, str) and kind in HOSTED_ITEMS:
        return {"type": "hosted"}
    if kind == "hosted":
        raise UnsupportedValue(f"Unsupported value for `{at}.type`.", param=f"{at}.type")
    if kind == "compaction":
        raise UnsupportedValue(
            f"`{at}` is a compaction of another server's, which only that server can read. Send "
            "the items that it stands for.",
            param=at,
        )
    if kind == "additional_tools" and isinstance(tools := item.get("tools"), list):
        return item | {
            "tools": [normal_tool(each, f"{at}.tools[{n}]") for n, each in enumerate(tools)]
        }
    return item


def _explained(error: BulkheadError, items: Sequence[Any]) -> BulkheadError:
    """The error to answer with: of a part that is no text, one that says so plainly."""
    param = error.param or ""
    if not isinstance(error, UnsupportedValue | InvalidType) or not param.endswith(".type"):
        return error
    place = param.removesuffix(".type")
    found = _at(items, place)
    if isinstance(found, dict) and found.get("type") in _NO_TEXT:
        return UnsupportedValue(f"`{place}` is not a text part. {TEXT_ONLY}", param=place)
    return error


def _at(items: Sequence[Any], place: str) -> Any:
    """What stands at a place like `input[2].content[0]`; None for what is none."""
    value: Any = {"input": items}
    for name in place.replace("[", ".").replace("]", "").split("."):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def for_templates(
    items: Sequence[Item], instructions: str | None, names: ToolNames
) -> list[dict[str, Any]]:
    """The items as the messages that chat templates take.

    An assistant's reasoning, text and calls are one message, until something else comes between.
    A conversation without any message is one empty message of the user's: templates want one.
    """
    messages: list[dict[str, Any] | _Turn] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    begun = len(messages)
    turn: _Turn | None = None

    def begin() -> _Turn:
        messages.append(new := _Turn())
        return new

    for item in items:
        match item:
            case MessageItem(role="assistant"):
                if turn is None or turn.is_complete:
                    turn = begin()
                turn.say(_text(item.content))
            case ReasoningItem():
                if not (text := item.text):
                    continue
                if turn is None or turn.is_complete:
                    turn = begin()
                turn.think(text)
            case CallItem():
                turn = turn or begin()
                turn.call(item.call_id, names.flat(item.namespace, item.name), item.arguments)
            case CustomCallItem():
                turn = turn or begin()
                name = names.flat(item.namespace, item.name)
                turn.call(item.call_id, name, arguments_of(item.input))
            case CallOutputItem() | CustomOutputItem():
                turn = None
                message = {"role": "tool", "content": _text(item.output)}
                if item.call_id is not None:
                    message["tool_call_id"] = item.call_id
                messages.append(message)
            case MessageItem():
                turn = None
                role = "user" if item.role == "user" else "system"
                messages.append({"role": role, "content": _text(item.content)})
            case _:
                pass
    if len(messages) == begun:
        messages.append({"role": "user", "content": ""})
    return [each.message() if isinstance(each, _Turn) else each for each in messages]


class _Turn:
    """An assistant's message as it grows. Its texts are joined once: there may be thousands."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._has_text = False

    @property
    def is_complete(self) -> bool:
        """Whether what the assistant says next is another message. Calls wait for their outputs,
        between which templates take no text."""
        return self._has_text and not self._calls

    def say(self, text: str) -> None:
        if text or self._texts:
            self._texts.append(text)
        self._has_text = True

    def think(self, text: str) -> None:
        self._thoughts.append(text)

    def call(self, call_id: str, name: str, arguments: str) -> None:
        function = {"name": name, "arguments": arguments}
        self._calls.append({"id": call_id, "type": "function", "function": function})

    def message(self) -> dict[str, Any]:
        made: dict[str, Any] = {"role": "assistant", "content": "\n".join(self._texts)}
        if self._thoughts:
            made["reasoning_content"] = "\n\n".join(self._thoughts)
        if self._calls:
            made["tool_calls"] = self._calls
        return made


def _text(content: str | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(each.refusal if isinstance(each, Refusal) else each.text for each in content)
