"""The two generating endpoints: parse, lease, relay, render."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from aiohttp import web

from gateway import openai
from gateway.http import (
    BEGUN,
    OUTCOME,
    RELAY,
    REQUEST_ID,
    decorate,
    hold_seconds,
    json_response,
    read_object,
)
from gateway.relay import Generation
from supervisor.errors import BulkheadError, InternalError
from supervisor.wire.frames import End, Progress, Token

log = logging.getLogger("bulkhead.gateway")

_PING_SECONDS = 10.0
_WRITE_SECONDS = 60.0

OpenAIRequest = openai.ChatRequest | openai.CompletionRequest


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    return await _generate(request, openai.parse_chat(await read_object(request)))


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    return await _generate(request, openai.parse_completion(await read_object(request)))


async def _generate(request: web.Request, parsed: OpenAIRequest) -> web.StreamResponse:
    hold = hold_seconds(request)
    generate = parsed.generate(request[REQUEST_ID], time.time())
    generation = await request.app[RELAY].start(generate, parsed.model, hold)
    chat = isinstance(parsed, openai.ChatRequest)
    renderer = openai.Renderer(
        chat=chat,
        id=("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
        created=int(generate.now),
        model=generation.model,
    )
    try:
        if parsed.stream:
            headers_due = request[BEGUN] + hold
            return await _stream(
                request, generation, renderer, headers_due, include_usage=parsed.include_usage
            )
        return await _whole(request, generation, renderer)
    finally:
        generation.close()


async def _whole(
    request: web.Request, generation: Generation, renderer: openai.Renderer
) -> web.Response:
    """Buffer the answer whole, so that a crash at any point can still become a status."""
    texts = []
    while not isinstance(frame := await generation.receive(), End):
        if isinstance(frame, Token):
            texts.append(frame.text)
    request[OUTCOME] = _summary(frame)
    response = json_response(renderer.answer("".join(texts), frame))
    _tell_worker(response, generation)
    return response


async def _stream(
    request: web.Request,
    generation: Generation,
    renderer: openai.Renderer,
    headers_due: float,
    *,
    include_usage: bool,
) -> web.StreamResponse:
    """One event a token. Until the headers have left, an error is still an HTTP status."""
    response = web.StreamResponse()
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold tokens back
    _tell_worker(response, generation)
    frame = await _first(generation, headers_due - time.monotonic())
    decorate(request, response)
    await response.prepare(request)
    try:
        while frame is None:
            await _write(response, openai.PING)
            frame = await _first(generation, _PING_SECONDS)
        while not isinstance(frame, End):
            await _write(response, renderer.token(frame.text))
            frame = await _next(generation)
        await _write(response, renderer.end(frame, include_usage=include_usage))
        request[OUTCOME] = _summary(frame)
    except BulkheadError as error:
        await _fail(request, response, error)
    except ConnectionResetError:
        raise
    except Exception:
        # Headers have left: the middleware can't answer any more, and an end without a word would
        # look like success to every client.
        log.exception("%s failed inside its stream", request[REQUEST_ID])
        detail = f"Internal error. The log has the details under {request[REQUEST_ID]}."
        await _fail(request, response, InternalError(detail))
    await response.write_eof()
    return response


async def _next(generation: Generation) -> Token | End:
    while isinstance(frame := await generation.receive(), Progress):
        continue
    return frame


async def _first(generation: Generation, seconds: float) -> Token | End | None:
    """The first token or the end; None when `seconds` pass without."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await _next(generation)
    except TimeoutError:
        return None


async def _fail(request: web.Request, response: web.StreamResponse, error: BulkheadError) -> None:
    request[OUTCOME] = f"{error.code} inside the stream"
    await _write(response, openai.error_event(error.body()))


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Send, waiting for a slow client's buffers but not for ever.

    Raises ConnectionResetError when the client has left, or has read nothing for too long.
    """
    try:
        async with asyncio.timeout(_WRITE_SECONDS):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None


def _tell_worker(response: web.StreamResponse, generation: Generation) -> None:
    response.headers["x-bulkhead-model"] = _header(generation.model)
    response.headers["x-bulkhead-worker"] = _header(generation.worker)


def _header(text: str) -> str:
    """Model names may hold any character, headers may not."""
    return text.encode("ascii", "backslashreplace").decode()


def _summary(end: End) -> str:
    return f"200 {end.finish_reason}, {end.prompt_tokens} + {end.completion_tokens} tokens"
