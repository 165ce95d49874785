"""Managing models by hand, the stream of their events, and crash reports."""

from __future__ import annotations

from contextlib import closing

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.handlers.common import RELAY
from gateway.http.event_stream import EventStream
from gateway.http.exchange import (
    RECORD,
    REQUEST_ID,
    TIMING,
    hold_seconds,
    json_response,
)
from gateway.http.timing import announced_timeout
from gateway.openai.sse import EVENT_STREAM, PING, data_event
from supervisor.wire.codec import ProtocolError
from supervisor.wire.frames import Action, Happened, ToGateway
from supervisor.wire.stream import FrameStream

ACTIONS: tuple[Action, ...] = ("load", "unload", "pin", "unpin")


def manage(action: Action) -> Handler:
    """The handler of POST /admin/models/{id}/`action`.

    A load is answered when the model is ready; the others at once, with the state that follows.
    """

    async def handler(request: web.Request) -> web.Response:
        request[RECORD].model = name = request.match_info["id"]
        managed = await request.app[RELAY].manage(
            request[REQUEST_ID], action, name, hold_seconds(request)
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
    silence = request.app[TIMING].longest_silence(announced_timeout(request.headers))
    with (
        closing(await request.app[RELAY].watch()) as feed,
        closing(EventStream(request, silence, EVENT_STREAM, lambda: PING)) as stream,
    ):
        await stream.begin({})
        await stream.send(b": watching\n\n")
        while (data := await _next(feed)) is not None:
            await stream.send(data)
        return await stream.end()


async def _next(feed: FrameStream[ToGateway]) -> bytes | None:
    try:
        frame = await feed.receive()
    except ProtocolError:
        return None
    return data_event(frame.body) if isinstance(frame, Happened) else None
