"""What all handlers share: the application's keys, bodies in, headers and errors out."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Sequence

from aiohttp import StreamReader, web

from gateway.dialect import ErrorForm
from gateway.http.access_log import AccessRecord
from gateway.http.auth import AccessRules
from gateway.http.bodies import LARGE, BodyBytes, HeldBody
from gateway.http.keys import APIKeys
from gateway.http.timing import Timing, announced_timeout
from supervisor.config.schema import ServerSettings
from supervisor.errors import (
    BulkheadError,
    InvalidJSON,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedMediaType,
)

_EXPOSED = (
    "x-request-id, request-id, openai-processing-ms, x-bulkhead-model, x-bulkhead-worker, "
    "x-bulkhead-recoveries, x-bulkhead-fallback, x-bulkhead-ignored, Retry-After, x-should-retry"
)
"""The headers that scripts of a page may read; SDKs obey the last two."""
_NAMES_MAX = 4000
"""Characters of `x-bulkhead-ignored`; some clients read 8 KB of all headers together."""
_JSON_CHARSETS = ("utf-8", "utf8", "us-ascii")


SETTINGS = web.AppKey("settings", ServerSettings)
TIMING = web.AppKey("timing", Timing)
ACCESS = web.AppKey("access", AccessRules)
KEYS = web.AppKey("keys", APIKeys)
FORM_OF: web.AppKey[Callable[[str], ErrorForm]] = web.AppKey("form_of")
"""By a request's path, how its dialect tells an error."""
BODIES = web.AppKey("bodies", BodyBytes)
STARTED = web.AppKey("started", int)
"""Epoch seconds; what `/v1/models` gives as `created`."""

REQUEST_ID = web.RequestKey("request_id", str)
BEGUN = web.RequestKey("begun", float)
"""Monotonic seconds."""
RECORD = web.RequestKey("record", AccessRecord)
"""What the access log will tell of the request."""

HELD = web.RequestKey("held", HeldBody)
"""What the request holds of this process' memory, from the first byte of its body on."""
DIGEST = web.RequestKey("digest", bytes)
"""What equal requests have in common."""
BODY_SIZE = web.RequestKey("body_size", int)
"""Bytes of the body as it was parsed."""

IGNORED = web.RequestKey("ignored", tuple[str, ...])
"""The parameters of other local servers that the body has and that change nothing here."""


async def read_body(
    request: web.Request,
    *,
    of_curl: bool = False,
    stable: Callable[[bytes | bytearray], bytes | bytearray] = lambda body: body,
) -> bytearray:
    """The JSON that was posted, unparsed. Raises the contract's 400, 408, 413, 415 or 503.

    It is given once: whoever keeps anything of it says so by `keep` of the request's `HELD`. Of
    `stable`, which leaves out what changes from one equal request to the next, the digest is made.

    A body without a type is taken as JSON; a browser's form is always sent with one, so this opens
    no door to pages of other sites. With `of_curl` JSON may also call itself a form, as curl does
    unless told otherwise: a browser says where a form comes from.
    """
    kinds = {"application/json"}
    if of_curl and "Origin" not in request.headers:
        kinds.add("application/x-www-form-urlencoded")
    if "Content-Type" in request.headers and request.content_type not in kinds:
        raise UnsupportedMediaType("Send the body as `Content-Type: application/json`.")
    if (request.charset or "utf-8").lower() not in _JSON_CHARSETS:
        raise UnsupportedMediaType("Send the body in UTF-8: JSON has no other `charset`.")
    announced = request.content_length or 0
    if announced > request.client_max_size:
        raise body_too_large(request.client_max_size)
    bodies, timing = request.app[BODIES], request.app[TIMING]
    held = request[HELD] = bodies.hold()
    held.announce(announced, timing.announced)
    body = await _read(request, held, bodies, timing)
    if len(body) > LARGE:
        await bodies.parsing_turn()
    request[BODY_SIZE], request[DIGEST] = len(body), _digest(request, stable(body))
    return body


async def _read(
    request: web.Request, held: HeldBody, bodies: BodyBytes, timing: Timing
) -> bytearray:
    """The whole body. Not by aiohttp's own `read`, which keeps it as long as the request lives."""
    body, limit = bytearray(), request.client_max_size
    pace = _BodyPace(request.content, timing)
    try:
        while chunk := await request.content.readany():
            if len(body) + len(chunk) > limit:
                raise body_too_large(limit)
            held.arrived(len(body) + len(chunk))
            body += chunk
            if len(body) > LARGE:
                await bodies.reading_turn()
        return body
    except _TooSlow:
        raise RequestTimeout(
            "The body stopped arriving, or came too slowly. Send the request again."
        ) from None
    except web.RequestPayloadError:
        raise InvalidJSON(
            "The body could not be read: it is not what its `Content-Encoding` says, or broke off."
        ) from None
    finally:
        pace.stop()


class _TooSlow(web.RequestPayloadError):
    """The body does not keep the pace. A payload's error, so that aiohttp does not log it."""


class _BodyPace:
    """Breaks a body off that does not keep the pace: whoever reads it gets _TooSlow."""

    def __init__(self, content: StreamReader, timing: Timing) -> None:
        self._content = content
        self._timing = timing
        self._seen = 0
        self._timer = self._set()

    def stop(self) -> None:
        self._timer.cancel()

    def _set(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._timing.body, self._look)

    def _look(self) -> None:
        seen, self._seen = self._seen, self._content.total_bytes
        if self._seen - seen >= self._timing.body_share:
            self._timer = self._set()
        else:
            self._content.set_exception(_TooSlow())


def body_too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The body is larger than {limit} bytes. server.max_body sets the limit."
    )


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def hold_seconds(request: web.Request) -> float:
    """How long this request may wait before it is refused: the configured hold, or less if its
    client waits for less."""
    configured = request.app[SETTINGS].hold_seconds
    return request.app[TIMING].hold(configured, announced_timeout(request.headers))


def set_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The headers that every answer has; call it before the response is prepared."""
    request[RECORD].status = response.status
    elapsed = (time.monotonic() - request[BEGUN]) * 1000
    # Anthropic's SDKs look for the second name, everybody else for the first.
    response.headers["x-request-id"] = response.headers["request-id"] = request[REQUEST_ID]
    response.headers["openai-processing-ms"] = str(round(elapsed))
    if ignored := request.get(IGNORED):
        response.headers["x-bulkhead-ignored"] = _names(ignored)
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


def _names(names: Sequence[str]) -> str:
    """Names as a header holds them. A client may have made them up: no letter is one that headers
    can't have, and no list longer than what clients read of one."""
    told, length = [], 0
    for name in names:
        told.append(name.encode("unicode_escape").decode("ascii"))
        length += len(told[-1]) + 2
        if length > _NAMES_MAX:
            return ", ".join([*told[:-1], "..."])
    return ", ".join(told)


def _digest(request: web.Request, body: bytes | bytearray) -> bytes:
    digest = hashlib.blake2b(request.path.removeprefix("/v1").encode() + b"\0", digest_size=16)
    digest.update(body)
    return digest.digest()


def render_error(error: BulkheadError, form: ErrorForm, request_id: str) -> web.Response:
    """The contract's body and headers for an error before the first byte."""
    status, body = form(error, request_id)
    return json_response(body, status, error.headers())


def json_response(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=body, status=status, headers=headers, content_type="application/json", charset="utf-8"
    )
