"""The types of all answers, for `/openapi.json` and for the tests, which check answers with them.

Answers are not rendered from them: a tree of objects a token would cost too much.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[int, Meta(ge=0, description="Seconds since the epoch.")]
Time = Annotated[
    str, Meta(description="ISO 8601 with zone.", extra_json_schema={"format": "date-time"})
]
Byte = Annotated[int, Meta(ge=0, le=255)]
Reason = Literal["stop", "length", "tool_calls"]


class AnswerStruct(msgspec.Struct, forbid_unknown_fields=True):
    """Base of all: an answer has the fields of its type and no other."""


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


class ErrorObject(AnswerStruct):
    """`message` is for a person; `param` names the request parameter at fault."""

    message: Annotated[str, Meta(min_length=1)]
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class OllamaError(msgspec.Struct, frozen=True):
    """An error on /api; Ollama's clients read `error`."""

    error: str
    type: str
    param: str | None
    code: str


class Error(AnswerStruct):
    """The body of every error, and an event of a stream that fails after its first byte."""

    error: ErrorObject


# ── chat and completions ─────────────────────────────────────────────────────────────────────────


class Generated(AnswerStruct):
    """What answers and chunks have in common."""

    id: str
    created: Seconds
    model: str


class PromptTokensDetails(AnswerStruct):
    cached_tokens: Count


class CompletionTokensDetails(AnswerStruct):
    reasoning_tokens: Count


class Usage(AnswerStruct):
    """Tokens. A prompt counts once, however many choices it has."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(AnswerStruct):
    """A token, its natural log probability, and its bytes, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[Byte]


class TokenLogprob(TopLogprob):
    """The token that was sampled, with the likeliest ones beside it."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(AnswerStruct):
    content: list[TokenLogprob]
    refusal: None


class FunctionCall(AnswerStruct):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class MessageToolCall(AnswerStruct):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(AnswerStruct):
    """The model's message. Clients read its reasoning under one name or the other."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChoice(AnswerStruct):
    index: Count
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatCompletion(Generated):
    object: Literal["chat.completion"]
    choices: Annotated[list[ChatChoice], Meta(min_length=1)]
    usage: Usage


class FunctionCallDelta(AnswerStruct):
    """The name comes with a call's first piece alone."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(AnswerStruct):
    """Id, type and name come with a call's first piece alone."""

    index: Count
    function: FunctionCallDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(AnswerStruct):
    """What is new in a choice; the role comes with its first chunk."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(AnswerStruct):
    index: Count
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | None


class ChatCompletionChunk(Generated):
    """An event of a streamed chat. The one with the usage has no choices."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: Usage | UnsetType = UNSET


class LegacyLogprobs(AnswerStruct):
    """One entry a token in each list; offsets are in characters of the choice's text. With an echo
    the prompt's tokens come first, the very first of which follows nothing."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class TextChunkChoice(AnswerStruct):
    index: Count
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Reason | None


class TextChoice(TextChunkChoice):
    finish_reason: Reason


class Completion(Generated):
    object: Literal["text_completion"]
    choices: Annotated[list[TextChoice], Meta(min_length=1)]
    usage: Usage


class CompletionChunk(Generated):
    """An event of a streamed completion. The one with the usage has no choices."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | UnsetType = UNSET


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────


class Embedding(AnswerStruct):
    """A vector of length 1: its numbers, or the base64 of them as little-endian float32."""

    object: Literal["embedding"]
    index: Count
    embedding: list[float] | str


class EmbeddingUsage(AnswerStruct):
    prompt_tokens: Count
    total_tokens: Count


class EmbeddingList(AnswerStruct):
    object: Literal["list"]
    data: Annotated[list[Embedding], Meta(min_length=1)]
    model: str
    usage: EmbeddingUsage


# ── models and health ────────────────────────────────────────────────────────────────────────────


class Model(AnswerStruct):
    """OpenAI's members, Anthropic's from `type` on, and what clients of local servers look for. The
    context is in tokens, under the names that clients know; null where it is not known before the
    model's first load."""

    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: Literal["bulkhead"]
    aliases: list[str]
    state: str
    context_length: Count | None
    max_model_len: Count | None
    type: Literal["model"]
    display_name: str
    created_at: Time
    lifecycle: Literal["active"]
    max_input_tokens: Count | None
    max_tokens: Count | None


class ModelList(AnswerStruct):
    """One page, as Anthropic's API has them."""

    object: Literal["list"]
    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None


class MemoryHealth(AnswerStruct):
    budget_bytes: Count | None
    charged_bytes: Count
    reserved_bytes: Annotated[
        Count, Meta(description="The part of it that is no model's: the gateway's, the spare's.")
    ]
    physical_bytes: Count | None
    limited_by: Annotated[
        str | None,
        Meta(description="The file of the control group's limit that stands for the RAM."),
    ]
    used_percent: float | None
    level: Literal["normal", "warn", "high", "critical"]
    stranded_bytes: Annotated[
        Count, Meta(description="What dead workers still hold: above 0, a reboot is needed.")
    ]
    advice: str | None
    spare: Annotated[
        Literal["off", "waiting", "importing", "ready"],
        Meta(description="The worker that waits for the next load."),
    ]
    counter: Annotated[
        Literal["off", "starting", "ready"],
        Meta(description="The process that counts tokens, which the first count starts."),
    ]


class LastCrash(AnswerStruct):
    """`/admin/crashes/{id}` has the report."""

    id: str
    cause: str
    time: Time


class PrefillProgress(AnswerStruct):
    """Of the requests that have no token yet, all together."""

    done_tokens: Count
    total_tokens: Count


class LoadProgress(AnswerStruct):
    """Of the weights."""

    done_bytes: Count
    total_bytes: Count


class CachedModel(AnswerStruct):
    """A model that is loading or loaded."""

    name: str
    state: Literal["loading", "ready", "draining"]
    pid: int | None
    generation: Count
    use_count: Count
    last_used: Time | None
    loaded_at: Time | None
    load_time_seconds: float | None
    memory_bytes: Annotated[Count, Meta(description="What its process holds now.")]
    charge_bytes: Annotated[Count, Meta(description="Its part of `charged_bytes`.")]
    lent_bytes: Annotated[
        Count, Meta(description="The part of that which is lent for KV cache, and comes back.")
    ]
    idle_bytes: Annotated[
        Count, Meta(description="The part of that which serves no request: cached prefixes.")
    ]
    in_flight: Count
    queued: Count
    tokens_per_second: Annotated[
        float, Meta(description="Of all its requests together, over the last seconds.")
    ]
    prefill: PrefillProgress | None
    loading: LoadProgress | None
    stalled_seconds: Annotated[
        float | None,
        Meta(description="For how long it has stood still with work to do; null = it moves."),
    ]
    context: Annotated[Count | None, Meta(description="Tokens.")]
    pinned: bool
    expires_at: Time | None
    """When it is unloaded if nobody asks for it any more; null = it stays."""
    deaths: Count
    last_crash: LastCrash | None


class ConfiguredModel(AnswerStruct):
    """A model that may be asked for, with the reason when it is unavailable."""

    name: str
    aliases: list[str]
    source: str
    state: str
    estimate: Annotated[
        Count | None, Meta(description="What its files say that it needs, with room for requests.")
    ]
    measured: Annotated[
        Count | None, Meta(description="What its process held at the end of its last load.")
    ]
    charge_bytes: Annotated[
        Count, Meta(description="Its part of `charged_bytes`; 0 = it has no process.")
    ]
    lent_bytes: Annotated[
        Count, Meta(description="The part of that which was lent for its KV cache since its load.")
    ]
    next_charge_bytes: Annotated[
        Count | None, Meta(description="What its next load is charged; null = not known.")
    ]
    next_charge_source: Annotated[
        Literal["configured", "measured", "estimated"] | None,
        Meta(description="Where that figure comes from."),
    ]
    context: Annotated[
        Count | None,
        Meta(description="Tokens. Null if not even the model's files say it."),
    ]
    queued: Count
    pinned: bool
    max_concurrency: Count | None
    learned_limit: Annotated[
        bool, Meta(description="Whether it is lower than configured after running out of memory.")
    ]
    deaths: Count
    last_crash: LastCrash | None
    reason: str | None
    retry_seconds: Annotated[
        float | None,
        Meta(description="Until it may be loaded again, after it has died too often."),
    ]


class PassedOver(AnswerStruct):
    """A model in the Hugging Face cache that is not served, or not in its newest form."""

    source: str
    reason: str
    mlx: Annotated[bool, Meta(description="Whether one would expect it to be served.")]


class Health(AnswerStruct):
    """Without a key, where keys are configured, the status alone."""

    status: Literal["ok", "shutting_down", "unavailable"]
    version: str | UnsetType = UNSET
    memory: MemoryHealth | UnsetType = UNSET
    cached_models: list[CachedModel] | UnsetType = UNSET
    models: list[ConfiguredModel] | UnsetType = UNSET
    passed_over: list[PassedOver] | UnsetType = UNSET
    reason: Annotated[str, Meta(description="Why the server is unavailable.")] | UnsetType = UNSET


class ManagedModel(AnswerStruct):
    """A model after it was managed by hand: what is under way shows in `state`."""

    id: str
    state: str
    pinned: bool
