"""The two generating endpoints: parse, lease, relay, render."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from gateway.http.exchange import (
    BEGUN,
    MAX_BODY,
    OUTCOME,
    RELAY,
    REQUEST_ID,
    body_digest,
    decorate,
    hold_seconds,
    json_response,
    patiently,
    read_object,
    worker_headers,
)
from gateway.openai.chat import (
    ChatRequest,
    CompletionRequest,
    parse_chat,
    parse_completion,
)
from gateway.openai.render import PING, Collected, Renderer, error_event, recoveries, usage
from gateway.relay.generation import Generation, Recovering
from supervisor.errors import BulkheadError, InternalError, InvalidValue
from supervisor.wire.frames import Accepted, End, Token

log = logging.getLogger("bulkhead.gateway")

_PING_SECONDS = 10.0
_UNDELAYED = 16 * 1024
"""Bytes that an empty send buffer always has room for."""

OpenAIRequest = ChatRequest | CompletionRequest


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    return await _generate(request, parse_chat(await read_object(request)))


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    return await _generate(request, parse_completion(await read_object(request)))


async def _generate(request: web.Request, parsed: OpenAIRequest) -> web.StreamResponse:
    hold = hold_seconds(request)
    await _check_size(request, parsed.n)
    now = time.time()
    choices = parsed.choices(request[REQUEST_ID], now, secrets.randbits(63))
    digest = await body_digest(request)
    generation = await request.app[RELAY].start(choices, parsed.model, hold, digest)
    chat = isinstance(parsed, ChatRequest)
    renderer = Renderer(
        chat=chat,
        id=("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
        created=int(now),
        model=generation.model,
        choices=len(choices),
    )
    answer = _Answer(request, parsed, generation, renderer, len(choices))
    try:
        if parsed.stream:
            return await answer.streamed(request[BEGUN] + hold)
        logprobs = choices[0].logprobs is not None
        return await answer.whole([Collected(logprobs=logprobs) for _ in choices])
    finally:
        generation.close()


async def _check_size(request: web.Request, n: int) -> None:
    """Each choice is given a prompt of its own: together they may be as large as one body."""
    limit = request.app[MAX_BODY]
    if n > 1 and n * len(await request.read()) > limit:  # it has been read, this costs nothing
        raise InvalidValue(
            f"Invalid value for `n`: a body of this size may ask for fewer choices; `n` times its "
            f"size may be at most {limit} bytes.",
            param="n",
        )


class _Answer:
    """One request's way back to its client."""

    def __init__(
        self,
        request: web.Request,
        parsed: OpenAIRequest,
        generation: Generation,
        renderer: Renderer,
        choices: int,
    ) -> None:
        self._request = request
        self._parsed = parsed
        self._generation = generation
        self._renderer = renderer
        self._ends: list[End | None] = [None] * choices
        self._left = choices

    async def whole(self, collected: Sequence[Collected]) -> web.Response:
        """Buffer the answer whole, so that a crash at any point can still become a status."""
        while self._left:
            choice, frame = await self._generation.receive()
            match frame:
                case Token():
                    collected[choice].add(frame)
                case Accepted(text=text):
                    collected[choice].echo = text
                case End():
                    collected[choice].end = frame
                    self._ended(choice, frame)
        response = json_response(self._renderer.answer(collected, self._usage()))
        response.headers.update(worker_headers(self._generation))
        return response

    async def streamed(self, headers_due: float) -> web.StreamResponse:
        """One event a token. Until the headers have left, an error is still an HTTP status."""
        request, renderer = self._request, self._renderer
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"  # nginx would hold tokens back
        first = await self._first(headers_due - time.monotonic())
        response.headers.update(worker_headers(self._generation))
        decorate(request, response)
        await response.prepare(request)
        try:
            while first is None:
                await _write(request, response, PING)
                first = await self._first(_PING_SECONDS)
            choice, frame = first
            while True:
                if isinstance(frame, Token):
                    await _write(request, response, renderer.token(choice, frame))
                else:
                    self._ended(choice, frame)
                    closing = renderer.finish(choice, frame)
                    if not self._left:
                        totals = self._usage() if self._parsed.include_usage else None
                        told = recoveries(self._generation.recoveries)
                        await _write(request, response, closing + told + renderer.done(totals))
                        break
                    await _write(request, response, closing)
                after = await self._next()
                while after is None:
                    if (after := await self._first(_PING_SECONDS)) is None:
                        await _write(request, response, PING)
                choice, frame = after
        except BulkheadError as error:
            await _fail(request, response, error)
        except ConnectionResetError:
            raise
        except Exception:
            # Headers have left: the middleware can't answer any more, and an end without a word
            # would look like success to every client.
            log.exception("%s failed inside its stream", request[REQUEST_ID])
            detail = f"Internal error. The log has the details under {request[REQUEST_ID]}."
            await _fail(request, response, InternalError(detail))
        await patiently(response.write_eof())
        return response

    async def _next(self) -> tuple[int, Token | End] | None:
        """The next token or end; None when there is a pause before it."""
        while True:
            choice, frame = await self._generation.receive()
            if isinstance(frame, (Token, End)):
                return choice, frame
            if isinstance(frame, Recovering):
                return None
            if isinstance(frame, Accepted):
                self._renderer.echo(choice, frame.text)

    async def _first(self, seconds: float) -> tuple[int, Token | End] | None:
        """The next token or end, across pauses; None when `seconds` pass without."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                while (event := await self._next()) is None:
                    continue
                return event
        except TimeoutError:
            return None

    def _ended(self, choice: int, end: End) -> None:
        """Note a choice's end, and what the log tells with the last."""
        self._ends[choice] = end
        self._left -= 1
        if not self._left:
            totals = self._usage()
            reasons = ", ".join(sorted({each.finish_reason for each in self._ends if each}))
            tokens = f"{totals['prompt_tokens']} + {totals['completion_tokens']} tokens"
            self._request[OUTCOME] = f"200 {reasons}, {tokens}"

    def _usage(self) -> dict[str, Any]:
        return usage([end for end in self._ends if end is not None], self._parsed.n)


async def _fail(request: web.Request, response: web.StreamResponse, error: BulkheadError) -> None:
    request[OUTCOME] = f"{error.code} inside the stream"
    await _write(request, response, error_event(error.body()))


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Send, waiting for a slow client's buffers but not for ever.

    Raises ConnectionResetError when the client has left, or has read nothing for too long.
    """
    transport = request.transport
    if transport is not None and not transport.get_write_buffer_size() and len(data) < _UNDELAYED:
        # Nothing to wait for, and this is once a token: a deadline costs 5 % of all tokens a second.
        await response.write(data)
        return
    await patiently(response.write(data))
