"""The HTTP application: routes and the one middleware that every request passes."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import time

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.handlers import admin, models
from gateway.handlers.common import RELAY
from gateway.handlers.completions import chat_completions, completions
from gateway.handlers.embeddings import embeddings
from gateway.handlers.openapi import openapi
from gateway.http.auth import AccessRules
from gateway.http.endpoints import lacking
from gateway.http.exchange import (
    ACCESS,
    ACTIVE,
    BEGUN,
    OUTCOME,
    REQUEST_ID,
    SETTINGS,
    STARTED,
    ActiveRequests,
    body_too_large,
    new_request_id,
    render_error,
    set_common_headers,
)
from gateway.relay.attempt import choices_at_once
from gateway.relay.client import Relay
from supervisor.config.files import read_api_keys
from supervisor.config.schema import ServerSettings
from supervisor.errors import (
    BulkheadError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    UnsupportedEndpoint,
)
from supervisor.wire.codec import REQUEST_LIMIT

log = logging.getLogger("bulkhead.gateway")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PATH_MAX = 200
_OPEN_PATHS = frozenset({"/health"})
"""Answered without a key, if tersely: load balancers have none."""


def build(settings: ServerSettings, control: str) -> web.Application:
    """The application. Raises ConfigError when the key file can't be used."""
    # A worker's frame limit must be above any body that passes here.
    limit = min(settings.max_body_bytes, REQUEST_LIMIT - 2**20)
    app = web.Application(middlewares=[_middleware], client_max_size=limit)
    app[SETTINGS] = settings
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    app[RELAY] = Relay(control, choices_at_once(files))
    app[ACCESS] = AccessRules(
        frozenset(host.lower() for host in settings.allowed_hosts),
        frozenset(settings.allowed_origins),
        read_api_keys(settings.api_keys_file) if settings.api_keys_file else frozenset(),
    )
    app.on_cleanup.append(_close_relay)
    app[ACTIVE] = ActiveRequests()
    app[STARTED] = int(time.time())
    for prefix in ("/v1", ""):
        app.router.add_post(f"{prefix}/chat/completions", chat_completions)
        app.router.add_post(f"{prefix}/completions", completions)
        app.router.add_post(f"{prefix}/embeddings", embeddings)
        app.router.add_get(f"{prefix}/models", models.listing)
        app.router.add_get(f"{prefix}/models/{{id:(?s:.+)}}", models.one)
    for action in admin.ACTIONS:
        app.router.add_post(f"/admin/models/{{id:(?s:.+)}}/{action}", admin.manage(action))
    app.router.add_get("/admin/events", admin.events, allow_head=False)
    app.router.add_get("/admin/crashes", admin.crashes)
    app.router.add_get("/admin/crashes/{id}", admin.crashes)
    app.router.add_get("/health", models.health)
    app.router.add_get("/", models.health)
    app.router.add_get("/openapi.json", openapi(keys=bool(app[ACCESS].keys)))
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
    active = request.app[ACTIVE]
    # A line costs a quarter of a millisecond: what the request sends goes first.
    later = asyncio.get_running_loop().call_soon
    active.count += 1
    try:
        path = request.rel_url.raw_path  # not decoded: a decoded one could break the line
        later(log.info, "%s %s %s, %d active", request_id, request.method, path, active.count)
        response = await _admit_and_handle(request, handler)
        request.setdefault(OUTCOME, str(response.status))
    except BulkheadError as error:
        request[OUTCOME] = f"{error.status} {error.code}"
        response = render_error(error)
    except ConnectionResetError:
        # The client left and nobody can be answered; aiohttp would log this error with a
        # traceback.
        raise asyncio.CancelledError from None
    except Exception:
        # The last net under our own code: the client gets a body and an id, the log the
        # traceback.
        log.exception("%s failed", request_id)
        request[OUTCOME] = "500 internal_error"
        detail = f"Internal error. The log has the details under {request_id}."
        response = render_error(InternalError(detail))
    finally:
        active.count -= 1
        outcome = request.get(OUTCOME, "the client left")
        elapsed = time.monotonic() - request[BEGUN]
        later(log.info, "%s ended: %s, %.3f s", request_id, outcome, elapsed)
    if not response.prepared:
        set_common_headers(request, response)
    return response


async def _admit_and_handle(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check who asks, then what. Raises BulkheadError."""
    access = request.app[ACCESS]
    origin = request.headers.get("Origin")
    access.check_host(request.headers.get("Host"))
    access.check_origin(origin, request.headers.get("Host"))
    if request.method == "OPTIONS" and origin is not None:
        return web.Response(status=204)
    if request.path not in _OPEN_PATHS:
        access.check_key(request.headers)
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
        if whose := lacking(request.path):
            return UnsupportedEndpoint(
                f"{came} is an endpoint of {whose} that this version of Bulkhead lacks. See "
                "docs/api.md for what is served."
            )
        return NotFound(
            f"There is no route {came}. The base URL of clients ends in /v1; see docs/api.md for "
            "what is served."
        )
    return InternalError(f"The request could not be handled ({error.status}).")
