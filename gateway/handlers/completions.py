"""POST /v1/chat/completions and /v1/completions: parse, lease, relay, render."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gateway.handlers.common import checked, read_object, start, worker_headers
from gateway.http.exchange import (
    BEGUN,
    OUTCOME,
    REQUEST_ID,
    hold_seconds,
    json_response,
    set_common_headers,
    wait_until_sent,
)
from gateway.openai.chat import CHAT_BODY, ChatRequest, parse_chat
from gateway.openai.completions import COMPLETION_BODY, CompletionRequest
from gateway.openai.render import (
    PING,
    ChoiceBuffer,
    ChoiceShape,
    Renderer,
    error_event,
    recoveries_comment,
    usage,
)
from gateway.openai.render_chat import ChatShape
from gateway.openai.render_completions import TextShape
from gateway.openai.validation import invalid_value
from gateway.relay.generation import Generation, OutputPaused
from supervisor.errors import BulkheadError, InternalError
from supervisor.wire.frames import Accepted, End, Token

log = logging.getLogger("bulkhead.gateway")

_PING_SECONDS = 10.0
_UNDELAYED = 16 * 1024
"""Bytes that an empty send buffer always has room for."""

OpenAIRequest = ChatRequest | CompletionRequest


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    return await _generate(request, parse_chat(await read_object(request, CHAT_BODY)), ChatShape)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    posted = await read_object(request, COMPLETION_BODY)
    return await _generate(request, COMPLETION_BODY.parse(posted), TextShape)


async def _generate(
    request: web.Request, parsed: OpenAIRequest, shape: type[ChoiceShape]
) -> web.StreamResponse:
    await _check_size(request, parsed.n)
    now, seed = time.time(), secrets.randbits(63)
    choices = await checked(
        request, parsed.model, lambda: parsed.choices(request[REQUEST_ID], now, seed)
    )
    with closing(await start(request, choices, parsed.model)) as generation:
        renderer = Renderer(
            shape,
            id=shape.id_prefix + secrets.token_hex(12),
            created=int(now),
            model=generation.model,
            choices=len(choices),
        )
        answer = _Answer(request, parsed, generation, renderer, len(choices))
        if parsed.stream:
            return await answer.streamed(request[BEGUN] + hold_seconds(request))
        logprobs = choices[0].logprobs is not None
        return await answer.whole([ChoiceBuffer(logprobs=logprobs) for _ in choices])


async def _check_size(request: web.Request, n: int) -> None:
    """Raises InvalidValue when the prompts of all choices, each of which is sent the whole, are
    together larger than a body may be."""
    limit = request.client_max_size
    if n > 1 and n * len(await request.read()) > limit:  # it has been read, this costs nothing
        raise invalid_value(
            "n",
            "a body of this size may ask for fewer choices; `n` times its size may be at most "
            f"{limit} bytes.",
        )


@dataclass(slots=True)
class _Answer:
    """The answer to one request, whole or as a stream."""

    _request: web.Request
    _parsed: OpenAIRequest
    _generation: Generation
    _renderer: Renderer
    _running: int
    """Choices that have not ended."""
    _ends: dict[int, End] = field(default_factory=dict)
    """By the choice's number."""

    async def whole(self, buffers: Sequence[ChoiceBuffer]) -> web.Response:
        """Buffer the answer whole, so that a crash at any point can still become a status."""
        while self._running:
            choice, frame = await self._generation.receive()
            match frame:
                case Token():
                    buffers[choice].add(frame)
                case Accepted(text=text):
                    buffers[choice].echo = text
                case End():
                    buffers[choice].reason = frame.finish_reason
                    self._note_end(choice, frame)
        response = json_response(self._renderer.answer(buffers, self._usage()))
        response.headers.update(worker_headers(self._generation))
        return response

    async def streamed(self, headers_due: float) -> web.StreamResponse:
        """One event a token. Until the headers have left, an error is still an HTTP status."""
        request, renderer = self._request, self._renderer
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # nginx would hold tokens back
            }
        )
        event = await self._next_within(headers_due - time.monotonic())
        response.headers.update(worker_headers(self._generation))
        set_common_headers(request, response)
        await response.prepare(request)
        try:
            while True:
                if event is None:
                    await _write(request, response, PING)
                    event = await self._next_within(_PING_SECONDS)
                    continue
                choice, frame = event
                if isinstance(frame, Token):
                    await _write(request, response, renderer.token(choice, frame))
                else:
                    self._note_end(choice, frame)
                    last = renderer.finish(choice, frame)
                    if not self._running:
                        totals = self._usage() if self._parsed.include_usage else None
                        last += recoveries_comment(self._generation.recoveries)
                        await _write(request, response, last + renderer.done(totals))
                        break
                    await _write(request, response, last)
                event = await self._next() or await self._next_within(_PING_SECONDS)
        except BulkheadError as error:
            await _send_error(request, response, error)
        except ConnectionResetError:
            raise
        except Exception:
            # Headers have left: the middleware can't answer any more, and an end without a word
            # would look like success to every client.
            log.exception("%s failed inside its stream", request[REQUEST_ID])
            detail = f"Internal error. The log has the details under {request[REQUEST_ID]}."
            await _send_error(request, response, InternalError(detail))
        await wait_until_sent(response.write_eof())
        return response

    async def _next(self) -> tuple[int, Token | End] | None:
        """The next token or end; None when there is a pause before it."""
        while True:
            choice, frame = await self._generation.receive()
            if isinstance(frame, (Token, End)):
                return choice, frame
            if isinstance(frame, OutputPaused):
                return None
            if isinstance(frame, Accepted):
                self._renderer.echo(choice, frame.text)

    async def _next_within(self, seconds: float) -> tuple[int, Token | End] | None:
        """The next token or end, across pauses; None when `seconds` pass without."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                while (event := await self._next()) is None:
                    continue
                return event
        except TimeoutError:
            return None

    def _note_end(self, choice: int, end: End) -> None:
        """Note a choice's end and, with the last one, the outcome for the log."""
        self._ends[choice] = end
        self._running -= 1
        if not self._running:
            totals = self._usage()
            reasons = ", ".join(sorted({each.finish_reason for each in self._ends.values()}))
            tokens = f"{totals['prompt_tokens']} + {totals['completion_tokens']} tokens"
            self._request[OUTCOME] = f"200 {reasons}, {tokens}"

    def _usage(self) -> dict[str, Any]:
        return usage([end for _, end in sorted(self._ends.items())], self._parsed.n)


async def _send_error(
    request: web.Request, response: web.StreamResponse, error: BulkheadError
) -> None:
    request[OUTCOME] = f"{error.code} inside the stream"
    await _write(request, response, error_event(error.body()))


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """As `wait_until_sent`, without its deadline where nothing has to be waited for."""
    transport = request.transport
    if transport is not None and not transport.get_write_buffer_size() and len(data) < _UNDELAYED:
        # This is once a token: a deadline would cost 5 % of all tokens a second.
        await response.write(data)
        return
    await wait_until_sent(response.write(data))
