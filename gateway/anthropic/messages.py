"""Anthropic's system prompt and messages, in the form that chat templates take. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.anthropic.blocks import (
    BLOCKS_MAX,
    CompactionBlock,
    ContentBlock,
    DocumentBlock,
    Fallback,
    PassedBlock,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    joined,
    text_of,
)
from gateway.openai.messages import TEXT_ONLY
from gateway.openai.thoughts import unseal
from gateway.openai.validation import check_plain, invalid_value
from supervisor.errors import BulkheadError, UnsupportedValue

_BILLING = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?", re.IGNORECASE)
_BILLING_BYTES = re.compile(
    rb'"(?:\s|\\[nrt])*x-anthropic-billing-header:(?:[^"\\]|\\[^n"])*', re.IGNORECASE
)
_BLOCK_TYPE = re.compile(
    r"(?P<place>(?:system|messages\[\d+\]\.content)\[\d+\](?:\.content\[\d+\])?)"
    r"(?:\.source(?:\.content\[\d+\])?)?\.type"
)
_IS_ERROR = re.compile(r"\W*error\b", re.IGNORECASE)

System = str | Annotated[list[TextBlock], Meta(max_length=BLOCKS_MAX)]


class Turn(msgspec.Struct, frozen=True):
    """One message. An answer may be sent back as it came."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[ContentBlock], Meta(max_length=BLOCKS_MAX)]


class Conversation(msgspec.Struct, frozen=True):
    """Messages as chat templates take them; `continues`: the last one is the assistant's beginning
    of the answer."""

    messages: list[dict[str, Any]]
    continues: bool


def conversation(system: System | None, messages: Sequence[Turn]) -> Conversation:
    """The messages for chat templates, the system prompt first.

    A last message of the assistant's is what the answer goes on with, unless it is empty. Raises
    InvalidValue or UnsupportedValue.
    """
    plain: list[dict[str, Any]] = []
    if text := _system_text(system):
        plain.append({"role": "system", "content": text})
    names: dict[str, str] = {}
    """Of the tools, by the ids of their calls."""
    for index, message in enumerate(messages):
        plain += _plain(message, f"messages[{index}].content", names)
    last = messages[-1]
    if last.role != "assistant":
        return Conversation(plain, False)
    if not _said(plain[-1]):
        if len(messages) == 1:
            raise invalid_value("messages", "nobody says anything.")
        return Conversation(plain[:-1], False)
    _check_prefill(plain[-1], f"messages[{len(messages) - 1}].content")
    return Conversation(plain, True)


def stable(body: bytes | bytearray) -> bytes:
    """The body without what Claude Code changes in each of its requests: requests that are
    otherwise equal are equal."""
    return _BILLING_BYTES.sub(b'"', body)


def _system_text(system: System | None) -> str:
    """Claude Code's first block is a header that changes and tells the model nothing; a prompt that
    begins with it would have no prefix in common with the next."""
    if system is None:
        return ""
    texts = [system] if isinstance(system, str) else [block.text for block in system]
    for number, text in enumerate(texts):
        while found := _BILLING.match(text):
            text = text[found.end() :]
        texts[number] = text
        if text:  # behind the prompt's head it is text as any other
            break
    return "\n\n".join(text for text in texts if text)


def _said(message: dict[str, Any]) -> bool:
    return any(message.get(name) for name in ("content", "reasoning_content", "tool_calls"))


def _check_prefill(message: dict[str, Any], param: str) -> None:
    if message.get("tool_calls"):
        raise invalid_value(param, "a `tool_use` of the last message has no `tool_result` yet.")
    if not message["content"]:
        raise invalid_value(param, "the last message holds a thought alone: nothing to go on with.")
    if message["content"] != message["content"].rstrip():
        raise invalid_value(param, "the answer can't go on after white space: leave it out.")


def _plain(message: Turn, place: str, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    content = message.content
    if isinstance(content, str):
        yield {"role": message.role, "content": content}
        return
    match message.role:
        case "assistant":
            yield _assistant(content, place, names)
        case "user":
            yield from _user(content, place, names)
        case "system":
            yield {"role": "system", "content": joined(list(_texts(content, place)))}


def _texts(
    content: Sequence[ContentBlock], place: str, *, results: bool = False
) -> Iterator[TextBlock | DocumentBlock | SearchResultBlock | CompactionBlock]:
    """The blocks of text of a message that may have no others, but for `results` of calls. Raises
    UnsupportedValue."""
    for number, block in enumerate(content):
        match block:
            case TextBlock() | DocumentBlock() | SearchResultBlock() | CompactionBlock():
                yield block
            case PassedBlock():
                continue
            case ToolResultBlock() if results:
                continue
            case _:
                raise _misplaced(block, f"{place}[{number}]")


def _user(
    content: Sequence[ContentBlock], place: str, names: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Results of calls are messages of their own, and templates want them right behind the calls:
    what the user says besides comes after them."""
    results = [block for block in content if isinstance(block, ToolResultBlock)]
    for block in results:
        result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
        name = names.get(block.tool_use_id)
        yield result if name is None else {**result, "name": name}
    texts = list(_texts(content, place, results=True))
    if texts or not results:
        yield {"role": "user", "content": joined(texts)}


def _result(block: ToolResultBlock) -> str:
    text = block.content if isinstance(block.content, str) else joined(block.content or [])
    if not block.is_error or _IS_ERROR.match(text):
        return text
    return f"Error: {text}" if text else "Error"


def _assistant(
    content: Sequence[ContentBlock], place: str, names: dict[str, str]
) -> dict[str, Any]:
    """Neighbouring texts are one text that was cut; others stand apart."""
    text, thoughts, calls = "", [], []
    apart = False
    for number, block in enumerate(content):
        match block:
            case TextBlock() | DocumentBlock() | SearchResultBlock() | CompactionBlock():
                piece = text_of(block)
                text += ("\n\n" if apart and text and piece else "") + piece
                apart = False
                continue
            case ThinkingBlock(thinking=thought, signature=signature):
                thoughts.append(thought or unseal(signature or ""))
            case ToolUseBlock(id=id, name=name, input=given):
                names[id] = name
                check_plain(given, f"{place}[{number}].input")
                arguments = msgspec.json.encode(given).decode()
                function = {"name": name, "arguments": arguments}
                calls.append({"id": id, "type": "function", "function": function})
            case RedactedThinkingBlock() | PassedBlock():
                pass
            case _:
                raise _misplaced(block, f"{place}[{number}]")
        apart = True
    plain: dict[str, Any] = {"role": "assistant", "content": text}
    if thought := "\n\n".join(each for each in thoughts if each):
        plain["reasoning_content"] = thought
    if calls:
        plain["tool_calls"] = calls
    return plain


def passed_types(messages: Sequence[Turn]) -> tuple[str, ...]:
    """The types of blocks that Anthropic's servers have left in a conversation and that the model
    is not shown, each once."""
    kinds = (
        str(block.__struct_config__.tag)
        for message in messages
        if not isinstance(message.content, str)
        for block in message.content
        if isinstance(block, PassedBlock) and not isinstance(block, Fallback)
    )
    return tuple(dict.fromkeys(kinds))


def _misplaced(block: ContentBlock, place: str) -> UnsupportedValue:
    kind = type(block).__struct_config__.tag
    return UnsupportedValue(
        f"`{place}` is a `{kind}` block, which a message of this role can't have.", param=place
    )


def explain_block_error(error: BulkheadError) -> BulkheadError:
    """The error to answer with: of a content block that is no text, one that says so plainly."""
    found = _BLOCK_TYPE.fullmatch(error.param or "")
    if found is None or not isinstance(error, UnsupportedValue):
        return error
    place = found["place"]
    return UnsupportedValue(f"`{place}` is not a block of text. {TEXT_ONLY}", param=place)
