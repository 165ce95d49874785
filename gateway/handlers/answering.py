"""Answering a request for generated text in any dialect: lease, relay, render."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from aiohttp import web

from gateway.dialect import (
    AnswerHead,
    ChoiceBuffer,
    GenerationRequest,
    PromptRenderer,
    Renderer,
    Usage,
)
from gateway.handlers.common import checked, pack, start, worker_headers
from gateway.http.access_log import AccessRecord
from gateway.http.event_stream import EventStream
from gateway.http.exchange import (
    BEGUN,
    BODY_SIZE,
    RECORD,
    REQUEST_ID,
    SETTINGS,
    TIMING,
    hold_seconds,
    json_response,
)
from gateway.http.timing import announced_timeout
from gateway.openai.validation import invalid_value
from gateway.relay.generation import Event, Generation, OutputPaused
from supervisor.errors import BulkheadError, InternalError
from supervisor.wire.frames import Accepted, End, Generate, Progress, PromptLogprobs, Token

log = logging.getLogger("bulkhead.gateway")

_WRITE_BYTES = 2**15
"""Of one write, after which it is seen whether the client reads."""

Rendered = PromptLogprobs | Token | End
"""Frames that have events of their own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is left of a parsed request while it waits and runs. Its body is not: of what takes
    room the worker's requests alone are kept, packed."""

    model: str
    stream: bool
    n: int
    """Choices of each prompt."""
    at: float
    """The request's time, seconds since the epoch."""
    choices: Sequence[Generate]


async def asked(request: web.Request, parsed: GenerationRequest, more: int = 0) -> Asked:
    """What is to be kept of the request, which the caller must let go of. The body has been read;
    `more` bytes of it are kept beside it. Raises BulkheadError."""
    request[RECORD].model, request[RECORD].stream = parsed.model, parsed.stream
    _check_size(request, parsed.n)
    now, seed = time.time(), secrets.randbits(63)
    choices = await checked(
        request, parsed.model, lambda: parsed.choices(request[REQUEST_ID], now, seed)
    )
    kept = pack(request, choices, more)
    return Asked(parsed.model, parsed.stream, parsed.n, now, kept)


async def answer(
    request: web.Request,
    asked: Asked,
    make_renderer: Callable[[AnswerHead], Renderer],
    keep_alive: float | None = None,
) -> web.StreamResponse:
    """Whole or as a stream, as was asked. `keep_alive` is as `Acquire`'s. Raises BulkheadError as
    long as nothing has been sent."""
    choices = asked.choices
    with closing(await start(request, choices, asked.model, keep_alive)) as generation:
        renderer = make_renderer(AnswerHead(asked.at, generation.model, len(choices)))
        made = _Answer(request, request[RECORD], asked.n, generation, renderer, len(choices))
        try:
            if asked.stream:
                return await made.streamed()
            logprobs = choices[0].logprobs is not None
            return await made.whole([ChoiceBuffer(logprobs=logprobs) for _ in choices])
        finally:
            made.note_outcome()


def _check_size(request: web.Request, n: int) -> None:
    """Raises InvalidValue when the prompts of all choices, each of which is sent the whole, are
    together larger than a body may be."""
    limit = request.client_max_size
    if n > 1 and n * request[BODY_SIZE] > limit:
        raise invalid_value(
            "n",
            "a body of this size may ask for fewer choices; `n` times its size may be at most "
            f"{limit} bytes.",
        )


@dataclass(slots=True)
class _Answer:
    """The answer to one request, whole or as a stream."""

    _request: web.Request
    _record: AccessRecord
    _n: int
    """Choices of each prompt."""
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
                    self._note_first(frame)
                    buffers[choice].add(frame)
                case Accepted(text=text) if text:
                    buffers[choice].echo = text
                    self._note_echo(choice, frame)
                case PromptLogprobs() if isinstance(self._renderer, PromptRenderer):
                    self._renderer.keep_prompt(choice, frame)
                case End():
                    buffers[choice].reason, buffers[choice].stop = frame.finish_reason, frame.stop
                    self._note_end(choice, frame)
        response = json_response(self._renderer.answer(buffers, self._usage()))
        response.headers.update(worker_headers(self._generation))
        return response

    async def streamed(self) -> web.StreamResponse:
        """One event a token. Until the headers have left, an error is still an HTTP status."""
        request = self._request
        silence = request.app[TIMING].longest_silence(announced_timeout(request.headers))
        event = await self._first()
        renderer = self._renderer
        with closing(EventStream(request, silence, renderer.content_type, renderer.ping)) as stream:
            await stream.begin(worker_headers(self._generation))
            # Its pings keep the client from giving up.
            self._generation.wait_longer(request.app[SETTINGS].hold_seconds)
            try:
                begun = renderer.begin(self._generation.prompt_tokens)
                if event is None:
                    await stream.send(begun + renderer.ping())
                    begun, event = b"", await self._next()
                while self._running:
                    await stream.send(begun + self._render(*event) + self._render_ready())
                    begun = b""
                    if self._running:
                        event = await self._next()
            except BulkheadError as error:
                await self._send_error(stream, error)
            except ConnectionResetError:
                raise
            except Exception:
                # Headers have left: the middleware can't answer any more, and an end without a
                # word would look like success to every client.
                log.exception("%s failed inside its stream", request[REQUEST_ID])
                detail = f"Internal error. The log has the details under {request[REQUEST_ID]}."
                await self._send_error(stream, InternalError(detail))
            return await stream.end()

    async def _first(self) -> tuple[int, Rendered] | None:
        """The first frame to be rendered; None when the headers must leave before it.

        While the request waits for a place, the first time or again after a death, they are held
        back, so that a refusal is a status; for as long as the hold.
        """
        request, loop = self._request, asyncio.get_running_loop()
        timing, announced = request.app[TIMING], announced_timeout(request.headers)
        held = request[BEGUN] + hold_seconds(request)
        is_worked_on = False
        try:
            async with asyncio.timeout(max(0.0, held - time.monotonic())) as limit:
                while True:
                    choice, frame = await self._generation.receive()
                    now = time.monotonic()
                    match frame:
                        case PromptLogprobs() | Token() | End():
                            self._note_first(frame)
                            return choice, frame
                        case OutputPaused():
                            is_worked_on, due = False, held
                        case Accepted() | Progress():
                            self._note_echo(choice, frame)
                            if is_worked_on:
                                continue
                            is_worked_on = True
                            due = timing.headers_due(request[BEGUN], now, announced)
                    limit.reschedule(loop.time() + max(0.0, due - now))
        except TimeoutError:
            return None

    def note_outcome(self) -> None:
        """For the log: who answered in the end, and how far one came that has no end."""
        record, generation = self._record, self._generation
        record.worker, record.recoveries = generation.worker, generation.recoveries
        if self._running:
            record.prompt_tokens = generation.prompt_tokens
            record.completion_tokens = generation.position

    async def _next(self) -> tuple[int, Rendered]:
        """The next frame to be rendered, across pauses."""
        while True:
            choice, frame = await self._generation.receive()
            if isinstance(frame, (PromptLogprobs, Token, End)):
                self._note_first(frame)
                return choice, frame
            self._note_echo(choice, frame)

    def _note_echo(self, choice: int, frame: Event) -> None:
        if isinstance(frame, Accepted) and frame.text:
            self._renderer.echo(choice, frame.text)

    def _render(self, choice: int, frame: Rendered) -> bytes:
        """The events of a frame; with the last one the stream's last events."""
        if isinstance(frame, Token):
            return self._renderer.token(choice, frame)
        if isinstance(frame, PromptLogprobs):
            renderer = self._renderer
            return renderer.prompt(choice, frame) if isinstance(renderer, PromptRenderer) else b""
        self._note_end(choice, frame)
        last = self._renderer.finish(choice, frame)
        if self._running:
            return last
        return last + self._renderer.done(self._usage(), self._generation.recoveries)

    def _render_ready(self) -> bytes:
        """The events of the tokens that are there already: one write for all of them."""
        events: list[bytes] = []
        size = 0
        # Nothing may be asked for after the last end.
        while self._running and size < _WRITE_BYTES and (ready := self._generation.take()):
            events.append(self._renderer.token(*ready))
            size += len(events[-1])
        return b"".join(events)

    def _note_first(self, frame: Rendered) -> None:
        if isinstance(frame, Token) and self._record.first_at is None:
            self._record.first_at = time.monotonic()

    def _note_end(self, choice: int, end: End) -> None:
        """Note a choice's end and, with the last one, what the log will tell."""
        self._ends[choice] = end
        self._running -= 1
        if not self._running:
            usage, record = self._usage(), self._record
            record.finish = ",".join(sorted({each.finish_reason for each in self._ends.values()}))
            record.prompt_tokens = usage.prompt
            record.cached_tokens = usage.cached
            record.completion_tokens = usage.completion

    def _usage(self) -> Usage:
        return Usage.of([end for _, end in sorted(self._ends.items())], self._n)

    async def _send_error(self, stream: EventStream, error: BulkheadError) -> None:
        self._record.code = error.code
        await stream.send(self._renderer.error(error))
