"""The error tree: every way a request can end other than well.

docs/errors.md repeats this tree; a test compares the two.

BulkheadError
├── ClientError                    the request is at fault; retrying it unchanged is useless
│   ├── InvalidJSON                400 invalid_json
│   ├── MissingParameter           400 missing_required_parameter
│   ├── InvalidType                400 invalid_type
│   ├── InvalidValue               400 invalid_value
│   ├── UnsupportedParameter       400 unsupported_parameter
│   ├── UnsupportedValue           400 unsupported_value
│   ├── UnsupportedEndpoint        400 unsupported_endpoint
│   ├── ContextLengthExceeded      400 context_length_exceeded
│   ├── PromptTooLarge             400 prompt_too_large
│   ├── PreviousResponseNotFound   400 previous_response_not_found
│   ├── ModelLoadFailed            400 model_load_failed
│   ├── ModelTooLarge              400 model_too_large
│   ├── InvalidAPIKey              401 invalid_api_key
│   ├── Forbidden                  403 forbidden
│   ├── ModelNotFound              404 model_not_found
│   ├── NotFound                   404 not_found
│   ├── MethodNotAllowed           405 method_not_allowed
│   ├── RequestTooLarge            413 request_too_large
│   ├── UnsupportedMediaType       415 unsupported_media_type
│   └── RequestCrashedWorker       422 request_crashed_worker
├── RequestTimeout                 408 request_timeout
├── ModelUnavailable               503 model_unavailable
├── TransientError                 the server is at fault; the same request may succeed later
│   ├── WorkerCrashed              503 worker_crashed
│   ├── WorkerStalled              503 worker_stalled
│   ├── ModelLoading               503 model_loading
│   ├── QueueFull                  503 queue_full
│   ├── InsufficientMemoryNow      503 insufficient_memory_now
│   ├── MemoryPressure             503 memory_pressure
│   └── ShuttingDown               503 shutting_down
└── InternalError                  500 internal_error

An error carries everything that HTTP needs, so that one middleware renders all of them and a
worker's or the supervisor's error crosses the wire as (code, message, param, retry_after).
Statuses follow what SDKs do with them: 503, never 429, for what is transient (Codex never retries
429); never 5xx for what is permanent (every SDK retries 5xx).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

RETRY_AFTER_MIN = 1
"""Seconds. 0 makes the Node SDK and `ai` retry without a pause."""
RETRY_AFTER_MAX = 59
"""Seconds. Above 60 most SDKs ignore the header; above 120 openai-python gives up."""


def clamp_retry_after(seconds: float) -> int:
    """The integer of seconds, 1–59, that every SDK obeys."""
    if not math.isfinite(seconds):
        return RETRY_AFTER_MAX
    return max(RETRY_AFTER_MIN, min(RETRY_AFTER_MAX, math.ceil(seconds)))


class BulkheadError(Exception):
    """Base of the tree.

    `message` is for a person and says what happened and what to do; it never holds prompt text.
    `param` names the request parameter at fault. `retry_after` is in seconds, None = the default,
    without one no header.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    should_retry: ClassVar[bool | None] = None
    """What x-should-retry says; None = the header is absent and the status speaks."""
    default_retry_after: ClassVar[float | None] = None
    """Where nothing better is known."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        # A header can carry any bytes into a message; the body must be UTF-8.
        message = message.encode("utf-8", "replace").decode()
        super().__init__(message)
        self.message = message
        self.param = param
        seconds = self.default_retry_after if retry_after is None else retry_after
        self.retry_after = None if seconds is None else clamp_retry_after(seconds)

    def body(self) -> dict[str, dict[str, str | None]]:
        """The `{"error": {...}}` object that every endpoint and every stream sends."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Response headers that tell an SDK whether and when to try again."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


class ClientError(BulkheadError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidJSON(ClientError):
    code = "invalid_json"


class MissingParameter(ClientError):
    code = "missing_required_parameter"


class InvalidType(ClientError):
    code = "invalid_type"


class InvalidValue(ClientError):
    code = "invalid_value"


class UnsupportedParameter(ClientError):
    code = "unsupported_parameter"


class UnsupportedValue(ClientError):
    code = "unsupported_value"


class UnsupportedEndpoint(ClientError):
    """Of an API that clients know, but not here. A 404 would mean an unknown model to them."""

    code = "unsupported_endpoint"
    should_retry = False


class ContextLengthExceeded(ClientError):
    """The prompt is longer than the model's context."""

    code = "context_length_exceeded"


class PromptTooLarge(ClientError):
    """The model could read it, but its KV cache is more than may ever be lent here."""

    code = "prompt_too_large"


class PreviousResponseNotFound(ClientError):
    code = "previous_response_not_found"


class ModelLoadFailed(ClientError):
    code = "model_load_failed"
    should_retry = False


class ModelTooLarge(ClientError):
    code = "model_too_large"
    should_retry = False


class InvalidAPIKey(ClientError):
    status = 401
    code = "invalid_api_key"


class Forbidden(ClientError):
    status = 403
    code = "forbidden"


class ModelNotFound(ClientError):
    status = 404
    code = "model_not_found"


class NotFound(ClientError):
    status = 404
    code = "not_found"


class MethodNotAllowed(ClientError):
    """`allowed` are the methods that the route has."""

    status = 405
    code = "method_not_allowed"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        allowed: Iterable[str] = (),
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.allowed = tuple(sorted(allowed))

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "Allow": ", ".join(self.allowed)}


class RequestTooLarge(ClientError):
    status = 413
    code = "request_too_large"


class UnsupportedMediaType(ClientError):
    status = 415
    code = "unsupported_media_type"


class RequestCrashedWorker(ClientError):
    status = 422
    code = "request_crashed_worker"
    should_retry = False


class RequestTimeout(BulkheadError):
    """The request did not arrive whole; SDKs send it again, as after any 408."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class ModelUnavailable(BulkheadError):
    """No Retry-After: with one, every SDK would wait and try again."""

    status = 503
    code = "model_unavailable"
    should_retry = False


class TransientError(BulkheadError):
    """Every transient error tells when to come back."""

    status = 503
    code = "model_loading"
    default_retry_after = 5


class WorkerCrashed(TransientError):
    code = "worker_crashed"
    should_retry = True


class WorkerStalled(TransientError):
    code = "worker_stalled"
    should_retry = True


class ModelLoading(TransientError):
    code = "model_loading"


class QueueFull(TransientError):
    code = "queue_full"


class InsufficientMemoryNow(TransientError):
    code = "insufficient_memory_now"


class MemoryPressure(TransientError):
    code = "memory_pressure"


class ShuttingDown(TransientError):
    code = "shutting_down"


class InternalError(BulkheadError):
    """A bug of ours. The message holds the request id, the log holds the traceback."""


def _leaves(cls: type[BulkheadError]) -> dict[str, type[BulkheadError]]:
    found = {} if cls.__subclasses__() else {cls.code: cls}
    for child in cls.__subclasses__():
        found |= _leaves(child)
    return found


def restore(
    code: str, message: str, *, param: str | None = None, retry_after: float | None = None
) -> BulkheadError:
    """The error that another process sent as plain values; an unknown code is a bug of ours."""
    cls = _leaves(BulkheadError).get(code, InternalError)
    return cls(message, param=param, retry_after=retry_after)
