"""The types of all answers of Anthropic's messages, for `/openapi.json` and for the tests, which
check answers with them. Answers are not rendered from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.anthropic.render import StopReason

Count = Annotated[int, Meta(ge=0)]


class AnswerStruct(msgspec.Struct, forbid_unknown_fields=True):
    """Base of all: an answer has the fields of its type and no other."""


class MessagesErrorDetails(AnswerStruct):
    error_code: Annotated[str, Meta(description="The contract's code.")]


class MessagesErrorObject(AnswerStruct):
    """`message` is for a person."""

    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "timeout_error",
        "request_too_large",
        "api_error",
        "overloaded_error",
    ]
    message: Annotated[str, Meta(min_length=1)]
    details: MessagesErrorDetails


class MessagesError(AnswerStruct):
    """The body of every error, and the data of a stream's event `error`."""

    type: Literal["error"]
    error: MessagesErrorObject
    request_id: str


class TextContent(AnswerStruct, tag_field="type", tag="text"):
    text: str


class ThinkingContent(AnswerStruct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class ToolUseContent(AnswerStruct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class ThinkingTokens(AnswerStruct):
    thinking_tokens: Count


class MessageUsage(AnswerStruct):
    """Cached tokens are not among the `input_tokens`."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count
    output_tokens_details: ThinkingTokens


class MessageAnswer(AnswerStruct):
    """The model's message. A call that was cut by its length is left out."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TextDelta(AnswerStruct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(AnswerStruct, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(AnswerStruct, tag_field="type", tag="signature_delta"):
    signature: str


class InputDelta(AnswerStruct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class MessageStart(AnswerStruct, tag_field="type", tag="message_start"):
    """Without content; of its usage the input alone is known."""

    message: MessageAnswer


class BlockStart(AnswerStruct, tag_field="type", tag="content_block_start"):
    index: Count
    content_block: Content


class BlockDelta(AnswerStruct, tag_field="type", tag="content_block_delta"):
    index: Count
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(AnswerStruct, tag_field="type", tag="content_block_stop"):
    index: Count


class StopDelta(AnswerStruct):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(AnswerStruct, tag_field="type", tag="message_delta"):
    """Why the message ends, and its whole usage."""

    delta: StopDelta
    usage: MessageUsage


class MessageStop(AnswerStruct, tag_field="type", tag="message_stop"):
    """The stream's last event."""


class Ping(AnswerStruct, tag_field="type", tag="ping"):
    """Comes between any two."""


class StreamError(AnswerStruct, tag_field="type", tag="error"):
    """The last event of a stream that fails."""

    error: MessagesErrorObject
    request_id: str


MessageEvent = (
    MessageStart
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | StreamError
)


class TokenCount(AnswerStruct):
    """The tokens of the prompt that a request would have."""

    input_tokens: Count
