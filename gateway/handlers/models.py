"""The served models and the server's health: the supervisor answers, without any worker."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from gateway.handlers.common import RELAY
from gateway.http.exchange import KEYS, RECORD, STARTED, json_response
from supervisor.errors import BulkheadError, InvalidAPIKey


async def listing(request: web.Request) -> web.Response:
    """GET /v1/models"""
    report = await request.app[RELAY].report()
    names = [model["name"] for model in msgspec.json.decode(report.body)["models"]]
    data = [_model(name, request.app[STARTED]) for name in names]
    return json_response(msgspec.json.encode({"object": "list", "data": data}))


async def one(request: web.Request) -> web.Response:
    """GET /v1/models/{id}; the id may be an alias and may hold slashes."""
    request[RECORD].model = name = request.match_info["id"]
    report = await request.app[RELAY].report(name)
    return json_response(msgspec.json.encode(_model(report.model, request.app[STARTED])))


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


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "bulkhead"}
