"""The API's own description."""

from __future__ import annotations

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.document.openapi import document
from gateway.http.exchange import json_response


def openapi(*, keys: bool) -> Handler:
    """The handler of GET /openapi.json. `keys`: some are configured."""
    body = msgspec.json.encode(document(keys=keys))

    async def handler(request: web.Request) -> web.Response:
        return json_response(body)

    return handler
