"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from gateway.anthropic.messages import stable
from gateway.anthropic.render import MessagesRenderer
from gateway.anthropic.request import COUNT_BODY, MESSAGES_BODY, parse_count, parse_messages
from gateway.handlers.answering import answer
from gateway.handlers.common import DEFAULT_MODEL, RELAY, checked, read_object
from gateway.http.exchange import IGNORED, REQUEST_ID, STABLE_BODY, json_response


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
    """POST /v1/messages/count_tokens: loads no model."""
    parsed = parse_count(await read_object(request, COUNT_BODY))
    request[IGNORED] += await checked(request, parsed.model, parsed.ignored)
    chat = await checked(request, parsed.model, parsed.chat)
    model = parsed.model or DEFAULT_MODEL
    tokens = await request.app[RELAY].count(chat, model, time.time(), request[REQUEST_ID])
    return json_response(msgspec.json.encode({"input_tokens": tokens}))
