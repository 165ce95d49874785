"""The types of all answers of responses, for `/openapi.json` and for the tests, which check answers
with them. Answers are not rendered from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.openai.schemas import AnswerStruct, Count, Seconds, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(AnswerStruct, tag_field="type", tag="output_text"):
    text: str
    annotations: Annotated[list[None], Meta(max_length=0)]
    logprobs: list[TokenLogprob] | UnsetType = UNSET


class SummaryPart(AnswerStruct, tag_field="type", tag="summary_text"):
    text: str


class OutputMessage(AnswerStruct, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputTextPart]


class OutputReasoning(AnswerStruct, tag_field="type", tag="reasoning"):
    """What the model thought. `encrypted_content` is there if it was asked for."""

    id: str
    status: ItemStatus
    summary: list[SummaryPart]
    encrypted_content: str | UnsetType = UNSET


class OutputCall(AnswerStruct, tag_field="type", tag="function_call"):
    """A call; `arguments` is JSON text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    namespace: str | UnsetType = UNSET


class OutputCustomCall(AnswerStruct, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    input: str
    namespace: str | UnsetType = UNSET


OutputItem = OutputMessage | OutputReasoning | OutputCall | OutputCustomCall


class InputTokensDetails(AnswerStruct):
    cached_tokens: Count
    cache_write_tokens: Count


class OutputTokensDetails(AnswerStruct):
    reasoning_tokens: Count


class ResponseUsage(AnswerStruct):
    input_tokens: Count
    input_tokens_details: InputTokensDetails
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class ResponseErrorObject(AnswerStruct):
    """As in the body of an error."""

    code: str
    message: Annotated[str, Meta(min_length=1)]
    type: Literal["invalid_request_error", "server_error"]
    param: str | None


class IncompleteDetails(AnswerStruct):
    reason: Literal["max_output_tokens"]


class ResponseReasoning(AnswerStruct):
    effort: str | None
    summary: str | None


class ResponseText(AnswerStruct):
    format: dict[str, Any]
    verbosity: str


class ResponseObject(AnswerStruct):
    """A response. What was asked for stands in it as it came."""

    id: str
    object: Literal["response"]
    created_at: Seconds
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    completed_at: Seconds | None
    error: ResponseErrorObject | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float | None
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: Count
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, Any]


class DeletedResponse(AnswerStruct):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(AnswerStruct):
    """Items of a response's own input."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


# ── events ───────────────────────────────────────────────────────────────────────────────────────


class Event(msgspec.Struct, forbid_unknown_fields=True, tag_field="type"):
    """Base of all; `sequence_number` counts from 0 without a gap."""

    sequence_number: Count


class StateEvent(Event):
    response: ResponseObject


class Created(StateEvent, tag="response.created"):
    """The first event."""


class InProgress(StateEvent, tag="response.in_progress"):
    """It goes on; repeated while nothing else is told."""


class Completed(StateEvent, tag="response.completed"):
    """The last event."""


class Incomplete(StateEvent, tag="response.incomplete"):
    """The last event of what was cut."""


class FailedResponse(StateEvent, tag="response.failed"):
    """The last event after a failure."""


class PlacedEvent(Event):
    output_index: Count


class ItemAdded(PlacedEvent, tag="response.output_item.added"):
    item: OutputItem


class ItemDone(PlacedEvent, tag="response.output_item.done"):
    item: OutputItem


class ItemEvent(PlacedEvent):
    item_id: str


class PartAdded(ItemEvent, tag="response.content_part.added"):
    content_index: Count
    part: OutputTextPart


class PartDone(ItemEvent, tag="response.content_part.done"):
    content_index: Count
    part: OutputTextPart


class OutputTextDelta(ItemEvent, tag="response.output_text.delta"):
    content_index: Count
    delta: str
    logprobs: list[TokenLogprob]


class OutputTextDone(ItemEvent, tag="response.output_text.done"):
    content_index: Count
    text: str
    logprobs: list[TokenLogprob]


class SummaryPartAdded(ItemEvent, tag="response.reasoning_summary_part.added"):
    summary_index: Count
    part: SummaryPart


class SummaryPartDone(ItemEvent, tag="response.reasoning_summary_part.done"):
    summary_index: Count
    part: SummaryPart


class SummaryDelta(ItemEvent, tag="response.reasoning_summary_text.delta"):
    summary_index: Count
    delta: str


class SummaryDone(ItemEvent, tag="response.reasoning_summary_text.done"):
    summary_index: Count
    text: str


class ArgumentsDelta(ItemEvent, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(ItemEvent, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class CustomInputDelta(ItemEvent, tag="response.custom_tool_call_input.delta"):
    delta: str


class CustomInputDone(ItemEvent, tag="response.custom_tool_call_input.done"):
    input: str


ResponseEvent = (
    Created
    | InProgress
    | Completed
    | Incomplete
    | FailedResponse
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | OutputTextDelta
    | OutputTextDone
    | SummaryPartAdded
    | SummaryPartDone
    | SummaryDelta
    | SummaryDone
    | ArgumentsDelta
    | ArgumentsDone
    | CustomInputDelta
    | CustomInputDone
)
