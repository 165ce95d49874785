"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from aiohttp import web

from gateway.handlers.answering import answer
from gateway.handlers.common import read_object
from gateway.openai.chat import CHAT_BODY, parse_chat
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.render import OpenAIRenderer
from gateway.openai.render_chat import ChatShape
from gateway.openai.render_completions import TextShape


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    parsed = parse_chat(await read_object(request, CHAT_BODY))
    return await answer(
        request,
        parsed,
        lambda head: OpenAIRenderer(ChatShape, head, include_usage=parsed.include_usage),
    )


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    parsed = COMPLETION_BODY.parse(await read_object(request, COMPLETION_BODY))
    return await answer(
        request,
        parsed,
        lambda head: OpenAIRenderer(TextShape, head, include_usage=parsed.include_usage),
    )
