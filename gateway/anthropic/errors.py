"""Anthropic's form of an error, before and inside a stream. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.dialect import ErrorAnswer
from gateway.openai.sse import named_event
from supervisor.errors import (
    BulkheadError,
    ContextLengthExceeded,
    InsufficientMemoryNow,
    MemoryPressure,
    PromptTooLarge,
    QueueFull,
)

OVERLOADED = 529
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    OVERLOADED: "overloaded_error",
}
"""By status; of all others, `invalid_request_error` below 500 and `api_error` from there on."""
_TOO_LONG = re.compile(
    r"(?:maximum context length is|machine can hold) (?P<most>\d+) (?:tokens\.|of ).* resulted in "
    r"(?P<size>\d+) (?P<unit>\w+)"
)
_TOO_LONG_ERRORS = (ContextLengthExceeded, PromptTooLarge)
_WORDS = (
    ("response_format.json_schema.schema", "output_config.format.schema"),
    ("response_format", "output_config.format"),
    (".function.parameters", ".input_schema"),
    (".function.name", ".name"),
)
"""Parameters as workers call them, and as this dialect does."""


def error_form(error: BulkheadError, request_id: str) -> ErrorAnswer:
    """The answer to a request that failed before the first byte."""
    status = status_of(type(error))
    return ErrorAnswer(status, msgspec.json.encode(_body(error, status, request_id)))


def error_event(error: BulkheadError, request_id: str) -> bytes:
    """The last event of a stream that fails."""
    body = _body(error, status_of(type(error)), request_id)
    return named_event("error", msgspec.json.encode(body))


def status_of(kind: type[BulkheadError]) -> int:
    """Queue and memory are what Anthropic calls overloaded."""
    overloaded = issubclass(kind, QueueFull | InsufficientMemoryNow | MemoryPressure)
    return OVERLOADED if overloaded else kind.status


def _body(error: BulkheadError, status: int, request_id: str) -> dict[str, Any]:
    """With the contract's code where Anthropic's API has codes of its own."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    told = {"type": kind, "message": _message(error), "details": {"error_code": error.code}}
    return {"type": "error", "error": told, "request_id": request_id}


def _message(error: BulkheadError) -> str:
    message = error.message
    if isinstance(error, _TOO_LONG_ERRORS) and (found := _TOO_LONG.search(message)):
        return _too_long(int(found["most"]), int(found["size"]), found["unit"])
    for ours, theirs in _WORDS:
        message = message.replace(ours, theirs)
    return message


def _too_long(most: int, size: int, unit: str) -> str:
    """The words by which Claude Code knows that it has to compact the conversation, and reads by
    how much. Of a text so long that nobody has counted its tokens, the least that they are."""
    if unit == "tokens":
        return f"prompt is too long: {size} tokens > {most} maximum"
    return f"prompt is too long: at least {most + 1} tokens > {most} maximum ({size} {unit})"
