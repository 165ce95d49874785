"""The HTTP application: routes and the one middleware that every request passes."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import socket
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.anthropic.errors import error_form as anthropic_form
from gateway.dialect import ErrorForm, contract_form
from gateway.handlers import admin, models, ollama, responses
from gateway.handlers.common import RELAY
from gateway.handlers.completions import chat_completions, completions
from gateway.handlers.embeddings import embeddings
from gateway.handlers.messages import count_tokens, messages
from gateway.handlers.openapi import openapi
from gateway.http.access_log import CLIENT_LEFT, AccessRecord
from gateway.http.auth import AccessRules
from gateway.http.bodies import BodyBytes
from gateway.http.endpoints import by_hand, lacking
from gateway.http.exchange import (
    ACCESS,
    BEGUN,
    BODIES,
    FORM_OF,
    HELD,
    KEYS,
    RECORD,
    REQUEST_ID,
    SETTINGS,
    STARTED,
    TIMING,
    body_too_large,
    new_request_id,
    render_error,
    set_common_headers,
)
from gateway.http.keys import APIKeys
from gateway.http.timing import Timing
from gateway.ollama.render import error_form as ollama_form
from gateway.relay.attempt import choices_at_once
from gateway.relay.client import Relay
from supervisor.config.schema import ServerSettings
from supervisor.errors import (
    BulkheadError,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    UnsupportedEndpoint,
)
from supervisor.wire.codec import REQUEST_LIMIT

log = logging.getLogger("bulkhead.gateway")
access_log = logging.getLogger("bulkhead.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PATH_MAX = 200
_OPEN_PATHS = frozenset({"/health"})
"""Answered without a key, if tersely: load balancers have none."""
_POLLED = frozenset({"/health", "/"})
"""Asked every few seconds by whoever watches the server."""
_ERROR_FORMS: tuple[tuple[str, ErrorForm], ...] = (
    ("/messages", anthropic_form),
    ("/api/", ollama_form),
)
"""Beginning of a path, behind `/v1` if that is there → how its dialect tells an error; everything
else does as OpenAI's API."""


def build(
    settings: ServerSettings,
    control: str,
    timing: Timing | None = None,
    freed: Callable[[int], object] = lambda size: None,
) -> web.Application:
    """The application. `freed` is told of bytes of bodies that are held no longer."""
    # A worker's frame limit must be above any body that passes here.
    limit = min(settings.max_body_bytes, REQUEST_LIMIT - 2**20)
    app = web.Application(middlewares=[_middleware], client_max_size=limit)
    app[SETTINGS] = settings
    app[TIMING] = timing or Timing()
    app[BODIES] = BodyBytes(settings.queue_bytes, freed)
    app[FORM_OF] = _form_of
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    app[RELAY] = Relay(control, choices_at_once(files))
    app[ACCESS] = AccessRules.of(
        settings.allowed_hosts, settings.allowed_origins, socket.gethostname()
    )
    app[responses.STORE] = responses.new_store()
    app[KEYS] = APIKeys(settings.api_keys_file)
    app.on_cleanup.append(_close_relay)
    app[STARTED] = int(time.time())
    for prefix in ("/v1", ""):
        app.router.add_post(f"{prefix}/chat/completions", chat_completions)
        app.router.add_post(f"{prefix}/completions", completions)
        app.router.add_post(f"{prefix}/embeddings", embeddings)
        app.router.add_post(f"{prefix}/responses", responses.create)
        one = f"{prefix}/responses/{{id:{responses.ID}}}"
        app.router.add_get(one, responses.retrieve)
        app.router.add_delete(one, responses.delete)
        app.router.add_get(f"{one}/input_items", responses.input_items)
        app.router.add_post(f"{prefix}/messages", messages)
        app.router.add_post(f"{prefix}/messages/count_tokens", count_tokens)
        app.router.add_get(f"{prefix}/models", models.listing)
        app.router.add_get(f"{prefix}/models/{{id:(?s:.+)}}", models.one)
    app.router.add_post("/api/chat", ollama.chat)
    app.router.add_post("/api/generate", ollama.generate)
    app.router.add_post("/api/embed", ollama.embed)
    app.router.add_post("/api/embeddings", ollama.embeddings)
    app.router.add_get("/api/tags", ollama.tags)
    app.router.add_get("/api/ps", ollama.ps)
    app.router.add_post("/api/show", ollama.show)
    app.router.add_post("/api/pull", ollama.pull)
    app.router.add_get("/api/version", ollama.version)
    for action in admin.ACTIONS:
        app.router.add_post(f"/admin/models/{{id:(?s:.+)}}/{action}", admin.manage(action))
    app.router.add_get("/admin/events", admin.events, allow_head=False)  # it would not end
    app.router.add_get("/admin/crashes", admin.crashes)
    app.router.add_get("/admin/crashes/{id}", admin.crashes)
    app.router.add_get("/health", models.health)
    app.router.add_get("/", models.health)
    app.router.add_get("/openapi.json", openapi(keys=app[KEYS].required))
    return app


async def _close_relay(app: web.Application) -> None:
    await app[RELAY].close()


@web.middleware
async def _middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Request id, admission of the caller, errors as the contract has them, and the log.

    An error after the headers have left is not seen here: it became an event of the stream.
    """
    request_id = request.headers.get("x-request-id", "")
    if not _SANE_ID.fullmatch(request_id):
        request_id = new_request_id()
    request[REQUEST_ID], request[BEGUN] = request_id, time.monotonic()
    request[RECORD] = record = AccessRecord(
        request[BEGUN],
        request.method,
        request.rel_url.raw_path,  # not decoded: a decoded one could break the line
        request.remote or "-",
    )
    try:
        response = await _admit_and_handle(request, handler)
        record.status = response.status
    except BulkheadError as error:
        response = _answer_error(request, error)
    except ConnectionResetError:
        # The client left and nobody can be answered; aiohttp would log this error with a
        # traceback.
        record.code = CLIENT_LEFT
        raise asyncio.CancelledError from None
    except asyncio.CancelledError:
        record.code = CLIENT_LEFT
        raise
    except Exception:
        # The last net under our own code: the client gets a body and an id, the log the
        # traceback.
        log.exception("%s failed", request_id)
        detail = f"Internal error. The log has the details under {request_id}."
        bug = InternalError(detail)
        response = _answer_error(request, bug)
    finally:
        if (held := request.get(HELD)) is not None:
            held.release()
        # A line costs a quarter of a millisecond: the answer goes first.
        asyncio.get_running_loop().call_soon(_log, request_id, record, time.monotonic())
    if not response.prepared:
        set_common_headers(request, response)
    return response


def _answer_error(request: web.Request, error: BulkheadError) -> web.Response:
    """In the form of the dialect whose path it is, whatever is wrong with the request."""
    response = render_error(error, _form_of(request.path), request[REQUEST_ID])
    request[RECORD].status, request[RECORD].code = response.status, error.code
    return response


def _form_of(path: str) -> ErrorForm:
    path = path.removeprefix("/v1")
    return next((form for prefix, form in _ERROR_FORMS if path.startswith(prefix)), contract_form)


def _log(request_id: str, record: AccessRecord, now: float) -> None:
    """Those who poll the state every second would fill the log."""
    polls = record.path in _POLLED and record.status == 200 and not record.code
    access_log.log(logging.DEBUG if polls else logging.INFO, "%s", record.line(request_id, now))


async def _admit_and_handle(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check who asks, then what. Raises BulkheadError."""
    access, record = request.app[ACCESS], request[RECORD]
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    try:
        access.check_host(host)
        access.check_origin(origin, host)
    except Forbidden:
        record.refused = {name: said for name, said in (("host", host), ("origin", origin)) if said}
        raise
    if request.method == "OPTIONS" and origin is not None:
        return web.Response(status=204)
    if request.path not in _OPEN_PATHS:
        record.key = await request.app[KEYS].check(request.headers)
    try:
        return await handler(request)
    except web.HTTPException as error:
        raise _translate_http_exception(request, error) from None


def _translate_http_exception(request: web.Request, error: web.HTTPException) -> BulkheadError:
    """aiohttp's own refusals as the contract has them."""
    # As it came, undecoded and shortened: a decoded one could hold anything.
    came = request.raw_path.partition("?")[0][:_PATH_MAX]
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        return MethodNotAllowed(
            f"{request.method} is not allowed here. Use {', '.join(allowed)}.", allowed=allowed
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return body_too_large(request.client_max_size)
    if isinstance(error, web.HTTPNotFound):
        if instead := by_hand(request.path):
            return UnsupportedEndpoint(
                f"{came}: no request changes which models there are. {instead}. See docs/api.md."
            )
        if whose := lacking(request.path):
            return UnsupportedEndpoint(
                f"{came} is an endpoint of {whose} that this version of Bulkhead lacks. See "
                "docs/api.md for what is served."
            )
        return NotFound(
            f"There is no route {came}. The base URL is the server's address, for OpenAI's clients "
            "with /v1 at its end and nothing else; see docs/api.md for what is served."
        )
    return InternalError(f"The request could not be handled ({error.status}).")
