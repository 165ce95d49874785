"""The served models and the server's health: the supervisor answers, without any worker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from gateway.handlers.common import RELAY
from gateway.http.exchange import KEYS, RECORD, STARTED, json_response
from supervisor.errors import BulkheadError, InvalidAPIKey

_NO_PAGE = {"has_more": False, "first_id": None, "last_id": None}


async def listing(request: web.Request) -> web.Response:
    """GET /v1/models"""
    report = await request.app[RELAY].report()
    models = msgspec.json.decode(report.body)["models"]
    data = [_model(model, request.app[STARTED]) for model in models]
    ids = [model["id"] for model in data]
    # What pages in Anthropic's API; there is one.
    page = {"has_more": False, "first_id": ids[0], "last_id": ids[-1]} if ids else _NO_PAGE
    return json_response(msgspec.json.encode({"object": "list", "data": data, **page}))


async def one(request: web.Request) -> web.Response:
    """GET /v1/models/{id}; the id may be an alias and may hold slashes."""
    request[RECORD].model = name = request.match_info["id"]
    report = await request.app[RELAY].report(name)
    models = msgspec.json.decode(report.body)["models"]
    found = next(model for model in models if model["name"] == report.model)
    return json_response(msgspec.json.encode(_model(found, request.app[STARTED])))


async def health(request: web.Request) -> web.Response:
    """GET /health and GET /: 200 while requests can be accepted, else 503."""
    try:
        report = await request.app[RELAY].report()
    except BulkheadError as error:
        body = {"status": "unavailable", "reason": error.message}
        return json_response(msgspec.json.encode(body), 503, error.headers())
    status = 200 if report.accepting else 503
    try:
        await request.app[KEYS].check(request.headers)
    except InvalidAPIKey:
        # A balancer without a key learns whether to send requests here, and no more.
        terse = {"status": msgspec.json.decode(report.body)["status"]}
        return json_response(msgspec.json.encode(terse), status)
    return json_response(report.body, status)


def _model(model: dict[str, Any], created: int) -> dict[str, Any]:
    """One of the supervisor's report, as clients of OpenAI's API and of Anthropic's know it."""
    return {
        "id": model["name"],
        "object": "model",
        "created": created,
        "owned_by": "bulkhead",
        "aliases": model["aliases"],
        "state": model["state"],
        # vLLM's clients look for the one name, OpenRouter's and LM Studio's for the other.
        "context_length": model["context"],
        "max_model_len": model["context"],
        # Anthropic's.
        "type": "model",
        "display_name": model["name"],
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model["context"],
        "max_tokens": model["context"],
    }
