"""What all handlers share: the application's keys, bodies in, headers and errors out."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from gateway.http.auth import AccessRules
from supervisor.config.schema import ServerSettings
from supervisor.errors import BulkheadError, InvalidJSON, RequestTooLarge, UnsupportedMediaType

_BODY_SECONDS = 120.0
_EXPOSED = (
    "x-request-id, openai-processing-ms, x-bulkhead-model, x-bulkhead-worker, "
    "x-bulkhead-recoveries, x-bulkhead-fallback, x-bulkhead-ignored, Retry-After, x-should-retry"
)
"""The headers that scripts of a page may read; SDKs obey the last two."""
_WRITE_SECONDS = 60.0
_JSON_CHARSETS = ("utf-8", "utf8", "us-ascii")


@dataclass(slots=True)
class ActiveRequests:
    """How many requests are being answered; the log tells it, for whoever looks into a crash."""

    count: int = 0


SETTINGS = web.AppKey("settings", ServerSettings)
ACCESS = web.AppKey("access", AccessRules)
ACTIVE = web.AppKey("active", ActiveRequests)
STARTED = web.AppKey("started", int)
"""Epoch seconds; what `/v1/models` gives as `created`."""

REQUEST_ID = web.RequestKey("request_id", str)
BEGUN = web.RequestKey("begun", float)
"""Monotonic seconds."""
OUTCOME = web.RequestKey("outcome", str)
"""How the request ended, for the log; its status where no handler has more to tell."""

IGNORED = web.RequestKey("ignored", tuple[str, ...])
"""The parameters of other local servers that the body has and that change nothing here."""


async def read_body(request: web.Request) -> bytes:
    """The JSON that was posted, unparsed. Raises the contract's 400, 413 or 415.

    A body without a type is taken as JSON; a browser's form is always sent with one, so this opens
    no door to pages of other sites.
    """
    if "Content-Type" in request.headers and request.content_type != "application/json":
        raise UnsupportedMediaType("Send the body as `Content-Type: application/json`.")
    if (request.charset or "utf-8").lower() not in _JSON_CHARSETS:
        raise UnsupportedMediaType("Send the body in UTF-8: JSON has no other `charset`.")
    if (request.content_length or 0) > request.client_max_size:
        raise body_too_large(request.client_max_size)
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise InvalidJSON(f"The body did not arrive within {_BODY_SECONDS:g} s.") from None
    except web.RequestPayloadError:
        raise InvalidJSON(
            "The body could not be read: it is not what its `Content-Encoding` says, or broke off."
        ) from None


async def wait_until_sent(sending: Awaitable[None]) -> None:
    """Wait for a slow client's buffers, but not for ever.

    Raises ConnectionResetError when the client has left, or has read nothing for too long.
    """
    try:
        async with asyncio.timeout(_WRITE_SECONDS):
            await sending
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None


def body_too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The body is larger than {limit} bytes. server.max_body sets the limit."
    )


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def hold_seconds(request: web.Request) -> float:
    """How long this request may wait before it is refused.

    The configured hold, but only 0.8 of what the client says it will wait, so that it gets our
    answer and not its own timeout.
    """
    configured = request.app[SETTINGS].hold_seconds
    try:
        announced = float(request.headers["x-stainless-read-timeout"])
    except (KeyError, ValueError):
        return configured
    return min(0.8 * announced, configured) if announced > 0 else configured


def set_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The headers that every answer has; call it before the response is prepared."""
    elapsed = (time.monotonic() - request[BEGUN]) * 1000
    response.headers["x-request-id"] = request[REQUEST_ID]
    response.headers["openai-processing-ms"] = str(round(elapsed))
    if ignored := request.get(IGNORED):
        response.headers["x-bulkhead-ignored"] = ", ".join(ignored)
    origin = request.headers.get("Origin")
    if origin is None or not request.app[ACCESS].allows_origin(origin):
        return
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Vary"] = "Origin"
    response.headers["Access-Control-Expose-Headers"] = _EXPOSED
    if request.method == "OPTIONS":
        wanted = request.headers.get("Access-Control-Request-Headers", "*")
        response.headers["Access-Control-Allow-Headers"] = wanted
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"


async def body_digest(request: web.Request) -> bytes:
    """What equal requests have in common; the body has been read, so this costs a hash."""
    path = request.path.removeprefix("/v1").encode()
    return hashlib.blake2b(path + b"\0" + await request.read(), digest_size=16).digest()


def render_error(error: BulkheadError) -> web.Response:
    """The contract's body and headers for an error before the first byte."""
    return json_response(msgspec.json.encode(error.body()), error.status, error.headers())


def json_response(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=body, status=status, headers=headers, content_type="application/json", charset="utf-8"
    )
