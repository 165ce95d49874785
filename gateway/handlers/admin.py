"""Managing models by hand, the stream of their events, and crash reports."""

from __future__ import annotations

import asyncio
from contextlib import closing

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.handlers.common import RELAY
from gateway.http.exchange import (
    OUTCOME,
    REQUEST_ID,
    hold_seconds,
    json_response,
    set_common_headers,
    wait_until_sent,
)
from gateway.openai.sse import data_event
from supervisor.wire.codec import ProtocolError
from supervisor.wire.frames import Action, Happened, ToGateway
from supervisor.wire.stream import FrameStream

ACTIONS: tuple[Action, ...] = ("load", "unload", "pin", "unpin")
_PING_SECONDS = 10.0


def manage(action: Action) -> Handler:
    """The handler of POST /admin/models/{id}/`action`.

    A load is answered when the model is ready; the others at once, with the state that follows.
    """

    async def handler(request: web.Request) -> web.Response:
        managed = await request.app[RELAY].manage(
            request[REQUEST_ID], action, request.match_info["id"], hold_seconds(request)
        )
        body = {"id": managed.model, "state": managed.state, "pinned": managed.pinned}
        return json_response(msgspec.json.encode(body))

    return handler


async def crashes(request: web.Request) -> web.Response:
    """GET /admin/crashes, and /admin/crashes/{id}."""
    name = request.match_info.get("id", "")
    return json_response(await request.app[RELAY].crashes(name))


async def events(request: web.Request) -> web.StreamResponse:
    """GET /admin/events: server-sent events from now on, until the client leaves.

    The stream ends when the server stops, and when the client reads too slowly.
    """
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    with closing(await request.app[RELAY].watch()) as feed:
        set_common_headers(request, response)
        await response.prepare(request)
        await wait_until_sent(response.write(b": watching\n\n"))
        request[OUTCOME] = "200, the events ended"
        while (data := await _next(feed)) is not None:
            await wait_until_sent(response.write(data))
    return response


async def _next(feed: FrameStream[ToGateway]) -> bytes | None:
    try:
        async with asyncio.timeout(_PING_SECONDS):
            frame = await feed.receive()
    except TimeoutError:
        return b": ping\n\n"
    except ProtocolError:
        return None
    return data_event(frame.body) if isinstance(frame, Happened) else None
