"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from aiohttp import web

from gateway.anthropic.messages import stable
from gateway.anthropic.render import MessagesRenderer
from gateway.anthropic.request import COUNT_BODY, MESSAGES_BODY, parse_count, parse_messages
from gateway.handlers.answering import answer
from gateway.handlers.common import checked, read_object
from gateway.http.exchange import IGNORED, REQUEST_ID, STABLE_BODY
from supervisor.errors import UnsupportedEndpoint


async def messages(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages"""
    parsed = parse_messages(await read_object(request, MESSAGES_BODY))
    request[IGNORED] += await checked(request, parsed.model, parsed.ignored)
    request[STABLE_BODY] = stable(await request.read())
    return await answer(
        request,
        parsed,
        lambda head: MessagesRenderer(
            head,
            request[REQUEST_ID],
            max_tokens=parsed.max_tokens,
            shows_thoughts=parsed.shows_thoughts,
        ),
    )


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages/count_tokens"""
    parsed = parse_count(await read_object(request, COUNT_BODY))
    request[IGNORED] += await checked(request, parsed.model, parsed.ignored)
    await checked(request, parsed.model, parsed.chat)
    raise UnsupportedEndpoint("Tokens can't be counted yet. See docs/api.md for what is served.")
