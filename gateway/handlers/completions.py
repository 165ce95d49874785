"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from aiohttp import web

from gateway.handlers.answering import Asked, answer, asked
from gateway.handlers.common import read_object
from gateway.openai.chat import CHAT_BODY, parse_chat
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.render import OpenAIRenderer
from gateway.openai.render_chat import ChatShape
from gateway.openai.render_completions import TextRenderer


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    kept, usage = await _chat(request)
    return await answer(
        request, kept, lambda head: OpenAIRenderer(ChatShape, head, include_usage=usage)
    )


async def _chat(request: web.Request) -> tuple[Asked, bool]:
    """And whether a stream tells the usage. Here alone the parsed body is held."""
    parsed = parse_chat(await read_object(request, CHAT_BODY))
    return await asked(request, parsed), parsed.include_usage


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    kept, usage = await _completion(request)
    return await answer(request, kept, lambda head: TextRenderer(head, include_usage=usage))


async def _completion(request: web.Request) -> tuple[Asked, bool]:
    """As `_chat`."""
    parsed = COMPLETION_BODY.parse(await read_object(request, COMPLETION_BODY))
    return await asked(request, parsed), parsed.include_usage
