"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from gateway.anthropic.messages import stable
from gateway.anthropic.render import MessagesRenderer
from gateway.anthropic.request import COUNT_BODY, MESSAGES_BODY, parse_count, parse_messages
from gateway.handlers.answering import Asked, answer, asked
from gateway.handlers.common import DEFAULT_MODEL, RELAY, checked, pack_chat, read_object
from gateway.http.exchange import IGNORED, REQUEST_ID, json_response
from supervisor.wire.frames import Chat


async def messages(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages"""
    kept, max_tokens, shows_thoughts = await _message(request)
    return await answer(
        request,
        kept,
        lambda head: MessagesRenderer(
            head, request[REQUEST_ID], max_tokens=max_tokens, shows_thoughts=shows_thoughts
        ),
    )


async def _message(request: web.Request) -> tuple[Asked, int, bool]:
    """And the most tokens, and whether thoughts are shown. Here alone the parsed body is held."""
    parsed = parse_messages(await read_object(request, MESSAGES_BODY, stable))
    request[IGNORED] += await checked(request, parsed.model, parsed.ignored)
    return await asked(request, parsed), parsed.max_tokens, parsed.shows_thoughts


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages/count_tokens: loads no model."""
    chat, model = await _counted(request)
    tokens = await request.app[RELAY].count(chat, model, time.time(), request[REQUEST_ID])
    return json_response(msgspec.json.encode({"input_tokens": tokens}))


async def _counted(request: web.Request) -> tuple[Chat, str]:
    """The chat, packed, and the model. Here alone the parsed body is held."""
    parsed = parse_count(await read_object(request, COUNT_BODY))
    request[IGNORED] += await checked(request, parsed.model, parsed.ignored)
    chat = await checked(request, parsed.model, parsed.chat)
    return pack_chat(request, chat), parsed.model or DEFAULT_MODEL
