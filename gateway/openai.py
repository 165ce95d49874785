"""OpenAI's chat and legacy completions: parse a body, render answers and chunks. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.validation import check_known, convert
from supervisor.errors import InvalidValue, MissingParameter, UnsupportedValue
from supervisor.wire.frames import Chat, End, Generate, Sampling, Text

MESSAGES_MAX = 10_000
"""Far above any conversation: each costs time on the loop that all streams share."""
Positive = Annotated[int, Meta(ge=1, le=2**53)]
StopString = Annotated[str, Meta(min_length=1)]

HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "verbosity",
        "reasoning_effort",
    }
)
"""Accepted and without effect: nothing a client can see in the answer depends on them."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0, 0.0),
    "logprobs": (False,),
}
_NEUTRAL_CHAT: Mapping[str, tuple[object, ...]] = {
    **_NEUTRAL,
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_NEUTRAL_TEXT: Mapping[str, tuple[object, ...]] = {
    **_NEUTRAL,
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
"""Parameters that later versions implement, with the values that ask for nothing."""


_ANSWER_ONLY = frozenset({"refusal", "annotations"})
"""Fields of an answer's message that say nothing to a model when they come back."""


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    text: str


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: (
        StopString | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=4)] | None
    ) = None
    ignore_eos: bool = False

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(_Common, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None

    def generate(self, request_id: str, now: float) -> Generate:
        """The worker's request. Raises UnsupportedValue for parts other than text."""
        messages = [_message(message, i) for i, message in enumerate(self.messages)]
        limit = self.max_completion_tokens
        return _generate(
            self, request_id, Chat(messages), now, self.max_tokens if limit is None else limit
        )


class CompletionRequest(_Common, frozen=True, kw_only=True):
    prompt: str | list[Any]

    def generate(self, request_id: str, now: float) -> Generate:
        """The worker's request. Raises UnsupportedValue for prompts other than one text."""
        prompt = self.prompt
        if isinstance(prompt, list):
            if len(prompt) != 1 or not isinstance(prompt[0], str):
                raise UnsupportedValue(
                    "`prompt` must be one string; lists of prompts and token arrays are not "
                    "supported by this version of Bulkhead.",
                    param="prompt",
                )
            prompt = prompt[0]
        return _generate(self, request_id, Text(prompt), now, self.max_tokens)


def parse_chat(raw: Mapping[str, Any]) -> ChatRequest:
    """Raises the contract's 400 that names the parameter."""
    known = check_known(raw, _CHAT_FIELDS, HARMLESS, _NEUTRAL_CHAT)
    if isinstance(messages := known.get("messages"), list):
        if len(messages) > MESSAGES_MAX:
            raise InvalidValue(
                f"Invalid value for `messages`: more than {MESSAGES_MAX} messages.",
                param="messages",
            )
        known["messages"] = [_without_nothing(message) for message in messages]
    return convert(known, ChatRequest)


def _without_nothing(message: Any) -> Any:
    """A message less what says nothing in it: SDKs send their own answers back, empty fields
    included."""
    if not isinstance(message, dict):
        return message
    empty = {name for name in message if message[name] is None or message[name] == []}
    return {
        name: value
        for name, value in message.items()
        if name not in _ANSWER_ONLY and (name == "content" or name not in empty)
    }


def parse_completion(raw: Mapping[str, Any]) -> CompletionRequest:
    """Raises the contract's 400 that names the parameter."""
    return convert(check_known(raw, _TEXT_FIELDS, HARMLESS, _NEUTRAL_TEXT), CompletionRequest)


_CHAT_FIELDS = frozenset(ChatRequest.__struct_fields__)
_TEXT_FIELDS = frozenset(CompletionRequest.__struct_fields__)


def _generate(
    request: _Common, request_id: str, prompt: Chat | Text, now: float, max_tokens: int | None
) -> Generate:
    return Generate(
        request_id=request_id,
        prompt=prompt,
        now=now,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=request.temperature, top_p=request.top_p),
        stop=request.stops,
        ignore_eos=request.ignore_eos,
    )


def _message(message: Message, index: int) -> dict[str, Any]:
    """The message as chat templates take it: text content, and `developer` as the older `system`."""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": _content(message, index)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _content(message: Message, index: int) -> str:
    if message.content is None:
        if message.role != "assistant":
            param = f"messages[{index}].content"
            raise MissingParameter(f"Missing required parameter: `{param}`.", param=param)
        return ""
    if isinstance(message.content, str):
        return message.content
    texts = []
    for number, part in enumerate(message.content):
        param = f"messages[{index}].content[{number}]"
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UnsupportedValue(
                f"`{param}` is not a text part; this model takes text only.", param=param
            )
        texts.append(part["text"])
    return "".join(texts)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def usage(end: End) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


class Renderer:
    """Renders one request's answer. `chat` chooses between the two endpoints' shapes.

    Everything that is the same in all chunks is encoded once.
    """

    def __init__(self, *, chat: bool, id: str, created: int, model: str) -> None:
        self._chat = chat
        self._head = {"id": id, "created": created, "model": model}
        self._object = "chat.completion" if chat else "text_completion"
        self._chunk_object = "chat.completion.chunk" if chat else "text_completion"
        mark = "\0"
        delta = {"delta": {"content": mark}} if chat else {"text": mark}
        chunk = self._chunk([{"index": 0, **delta, "logprobs": None, "finish_reason": None}])
        self._before, self._after = chunk.split(msgspec.json.encode(mark))
        self._first = chat

    def answer(self, text: str, end: End) -> bytes:
        """The whole body of a request that is not streamed."""
        content: dict[str, Any]
        if self._chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            content = {"message": message}
        else:
            content = {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": end.finish_reason}
        return msgspec.json.encode(
            {**self._head, "object": self._object, "choices": [choice], "usage": usage(end)}
        )

    def token(self, text: str) -> bytes:
        """The SSE event of one token. The first of a chat carries the role."""
        if self._first:
            self._first = False
            delta = {"role": "assistant", "content": text}
            return self._chunk(
                [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]
            )
        return self._before + msgspec.json.encode(text) + self._after

    def end(self, end: End, *, include_usage: bool) -> bytes:
        """The closing events: finish reason, usage if asked for, `[DONE]`."""
        content: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        events = b""
        if self._first:
            events += self.token("")  # not one token: the role must be told all the same
        events += self._chunk(
            [{"index": 0, **content, "logprobs": None, "finish_reason": end.finish_reason}]
        )
        if include_usage:
            events += self._chunk([], usage=usage(end))
        return events + b"data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {**self._head, "object": self._chunk_object, "choices": choices, **more}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def error_event(body: Mapping[str, Any]) -> bytes:
    """An error inside a stream; after it the body ends cleanly and without `[DONE]`."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


PING = b": ping\n\n"
