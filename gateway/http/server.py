"""The HTTP server around the application, and what is refused before a handler is asked.

aiohttp would answer what is no proper HTTP by itself: with a text that quotes the client's bytes,
and an ERROR in the log. The classes here answer in the contract's form. They override public names
of aiohttp alone; should a later version not call them any more, its own answers are back and all
else works as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage

from gateway.dialect import ErrorForm, contract_form
from gateway.http.access_log import AccessRecord
from gateway.http.bodies import LARGE, BodyBytes
from gateway.http.exchange import BODIES, FORM_OF, TIMING, new_request_id, render_error
from gateway.http.paths import meant_path
from gateway.http.timing import Timing
from supervisor.errors import BulkheadError, InternalError, InvalidJSON, InvalidValue

log = logging.getLogger("bulkhead.gateway")
access_log = logging.getLogger("bulkhead.access")

_DESCRIPTORS = 4
"""Of this process, for each connection: its own, its lease's, its worker's and one to spare."""
_TARGET_MAX = 200
"""Bytes of a request that tell whose dialect it speaks."""
_TARGET = re.compile(rb"[A-Z]+ (/[^\s?]*)")
_PIECE = 2**16
"""Bytes that a connection takes from its socket at once, and as a rule the most that waits in it
unread: hundreds send large bodies at the same time."""


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, listener: socket.socket, *, backlog: int, shutdown_seconds: float
) -> AsyncIterator[None]:
    """Serve `app` on the socket; at the end wait up to `shutdown_seconds` for running answers."""
    application = web.AppRunner(app)
    await application.setup()
    assert application.server is not None
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    at_most = connections_at_most(files)
    server = _Server(application.server, app[TIMING], at_most, app[FORM_OF], app[BODIES])
    runner = web.ServerRunner(server, shutdown_timeout=shutdown_seconds)
    await runner.setup()
    # aiohttp listens anew on the inherited socket, with a backlog of 128 unless told.
    await web.SockSite(runner, listener, backlog=backlog).start()
    try:
        yield
    finally:
        await runner.cleanup()
        await application.cleanup()


def connections_at_most(files: int) -> float:
    """From how many connections on those that only stall make room for others, in a process that
    may open so many `files`."""
    return math.inf if files == resource.RLIM_INFINITY else files // _DESCRIPTORS


class _Server(web.Server):
    """The application's server with connections of our own."""

    def __init__(
        self,
        application: web.Server,
        timing: Timing,
        at_most: float,
        form_of: Callable[[str], ErrorForm],
        bodies: BodyBytes,
    ) -> None:
        self.form_of = form_of
        self._bodies = bodies
        self._handle = application.request_handler
        self._timing = timing
        self._at_most = at_most
        self._piece = bytearray(_PIECE)
        super().__init__(
            self._answer,
            request_factory=_addressed(application.request_factory),
            # Without it a client that leaves is noticed only when something is written to it.
            handler_cancellation=True,
        )

    def __call__(self) -> asyncio.BaseProtocol:  # type: ignore[override]
        return _Pieces(_Connection(self, self._timing), self._piece)

    def make_room(self, newest: _Connection) -> None:
        """If there are too many connections, end the one that has stalled for longest, if that is a
        while: clients that come at once have not sent yet what they want. Beyond twice as many
        it is ended in any case, before no descriptor is left for whoever comes next. Those whose
        requests have arrived stay, however many they are."""
        others = [each for each in self.connections if isinstance(each, _Connection)]
        if len(others) <= self._at_most:
            return
        stalled = [each for each in others if each.has_stalled and each is not newest]
        longest = min(stalled, key=lambda each: each.since, default=None)
        if longest is None:
            return
        grace = self._timing.stalling if len(others) <= 2 * self._at_most else 0.0
        if newest.since - longest.since >= grace:
            longest.abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.begin(request)
        try:
            response = await self._handle(request)
            await self._let_end(request, response)
            return response
        except web.HTTPExpectationFailed:  # before any middleware
            return _refusal(
                request,
                InvalidValue("An `Expect` header other than `100-continue` can't be met."),
                self.form_of(request.path),
            )
        finally:
            connection.end()

    async def _let_end(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Let a client finish sending a large body that nobody reads: it may not look at the answer
        before. aiohttp would do so as well, but with all such bodies at once."""
        if request.content.is_eof() or (request.content_length or 0) <= LARGE:
            return
        await response.prepare(request)
        await response.write_eof()
        with contextlib.suppress(TimeoutError, web.RequestPayloadError):
            async with asyncio.timeout(self._timing.lingering):
                while await request.content.readany():
                    await self._bodies.reading_turn()
        if not request.content.is_eof():
            self._cut(request)

    def _cut(self, request: web.BaseRequest) -> None:
        """No more of this body is waited for."""
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.force_close()


def _addressed(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """`make` for messages whose URL has the path that the client means. Their `raw_path` stays what
    was sent."""

    def addressed(message: RawRequestMessage, *args: Any, **more: Any) -> web.BaseRequest:
        path = message.url.raw_path
        if (meant := meant_path(path)) != path:
            message = message._replace(
                url=message.url.with_path(meant, encoded=True, keep_query=True)
            )
        return make(message, *args, **more)

    return addressed


class _Pieces(asyncio.BufferedProtocol):
    """Hands a connection what its client sends in pieces of the size of `buffer`, which all
    connections of a loop may share. uvloop gives others up to 256,000 bytes at once, each in memory
    of its own."""

    def __init__(self, connection: _Connection, buffer: bytearray) -> None:
        self._connection = connection
        self._buffer = memoryview(buffer)
        self.connection_made = connection.connection_made  # type: ignore[method-assign]
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._buffer[:nbytes]))


class _Connection(web.RequestHandler):
    """One client's connection.

    It ends when the headers of a request take too long, when nothing is asked for too long, and
    when the client reads nothing for too long of what there is for it.
    """

    __slots__ = (
        "_client",
        "_head_timer",
        "_later",
        "_reading_timer",
        "_requests",
        "_server",
        "_taken",
        "_target",
        "_timing",
        "answering",
        "since",
    )

    def __init__(self, server: _Server, timing: Timing) -> None:
        # The access log has lines of our own. Reading stops when a piece lies there unread.
        options: dict[str, Any] = {"access_log": None, "read_bufsize": _PIECE // 4}
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, keepalive_timeout=timing.keep_alive, **options)
        self.answering: web.BaseRequest | None = None
        self.since = loop.time()
        """When the last request began or ended; the loop's time."""
        self._server = server
        self._timing = timing
        self._later = loop.call_later
        self._requests = 0
        self._client: asyncio.Transport
        """The transport until it is lost; aiohttp forgets it as soon as it is to be closed."""
        self._head_timer: asyncio.TimerHandle | None = None
        """Set while a request's headers are awaited, of which something has come."""
        self._reading_timer: asyncio.TimerHandle
        self._target = b""
        """How the request begins that no handler has seen yet."""
        self._taken: tuple[int, int] | None = None
        """What the client had taken at the last look, if there was more for it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client = cast(asyncio.Transport, transport)
        self._await_head()
        self._reading_timer = self._later(self._timing.reading, self._look_at_reading)
        self._server.make_room(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._end_head()
        self._reading_timer.cancel()

    def begin(self, request: web.BaseRequest) -> None:
        """The headers of a request are complete."""
        self.answering = request
        self.since = asyncio.get_running_loop().time()
        self._requests += 1
        self._target = b""
        self._end_head()

    def end(self) -> None:
        """The handler is done with the request."""
        self.answering = None  # an idle connection must not keep a body
        self.since = asyncio.get_running_loop().time()

    @property
    def has_stalled(self) -> bool:
        """Whether no request has arrived whole, and no answer is on its way."""
        if self.answering is not None:
            return not self.answering.content.is_eof()
        return not self._client.get_write_buffer_size()

    def abort(self) -> None:
        """End it at once; what is unsent is dropped."""
        self._client.abort()

    def _await_head(self) -> None:
        self._head_timer = self._later(self._timing.request_head, self._head_is_late)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.answering is None and not getattr(self, "_messages", None):
            self.force_close()

    def _look_at_reading(self) -> None:
        """End the connection if the client has taken nothing since the last look. Its bytes would
        wait for ever, also those of a connection that is being closed."""
        waiting = self._client.get_write_buffer_size()
        written = 0 if self.answering is None else self.answering.writer.output_size
        taken = (self._requests, written - waiting) if waiting else None
        if waiting and taken == self._taken:
            self.abort()
            return
        self._taken = taken
        self._reading_timer = self._later(self._timing.reading, self._look_at_reading)

    def data_received(self, data: bytes) -> None:
        """As in aiohttp, except that whoever reads a body learns at once that it is broken.

        No request follows one whose body has not ended: what aiohttp has queued behind it is an
        error about that body's bytes, which it would tell only after the reader's time is over.
        """
        if self.answering is None and len(self._target) < _TARGET_MAX:
            self._target += data[: _TARGET_MAX - len(self._target)]
        super().data_received(data)
        request = self.answering
        if request is None:
            if data and self._head_timer is None:
                self._await_head()
            return
        if request.content.is_eof() or request.content.exception() is not None:
            return
        if getattr(self, "_messages", None):  # no public name tells
            request.content.set_exception(web.RequestPayloadError("malformed"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what no handler has seen, or to a bug outside of all handlers. As in
        aiohttp, ConnectionError is raised when an answer has begun."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        found = _TARGET.match(self._target)
        path = meant_path(found[1].decode("latin-1")) if found else ""
        error = _contract_error(status, type(exc).__name__)
        return _refusal(request, error, self._server.form_of(path))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """As in aiohttp, but not for an unreadable body: the client has been told, and aiohttp only
        fails once more on the rest of it."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)


def _contract_error(status: int, kind: str) -> BulkheadError:
    """`kind` is the name of aiohttp's exception: a message would quote what the client sent."""
    if status >= 500:
        return InternalError(f"Internal error ({kind}).")
    match kind:
        case "LineTooLong":
            return InvalidValue("The request line or a header is too long.")
        case "ContentEncodingError":
            return InvalidJSON(
                "The body could not be read: it is not what its `Content-Encoding` says, or that "
                "is not supported. Send it as it is, or in gzip or zstd."
            )
        case _:
            return InvalidValue(f"The request is no valid HTTP/1.1 ({kind}).")


def _refusal(
    request: web.BaseRequest, error: BulkheadError, form: ErrorForm = contract_form
) -> web.Response:
    """Its method and path are not told: they may be any bytes that a client sent."""
    request_id, now = new_request_id(), time.monotonic()
    if error.status >= 500:
        log.error("%s: %s", request_id, error.message)
    record = AccessRecord(now, "-", "-", request.remote or "-")
    response = render_error(error, form, request_id)
    record.status, record.code = response.status, error.code
    access_log.info("%s", record.line(request_id, now))
    response.headers["x-request-id"] = response.headers["request-id"] = request_id
    response.headers["openai-processing-ms"] = "0"
    response.force_close()
    return response
