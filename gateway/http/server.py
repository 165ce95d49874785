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
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web
from aiohttp.http import RawRequestMessage

from gateway.http.exchange import new_request_id, render_error
from gateway.http.paths import meant_path
from supervisor.errors import BulkheadError, InternalError, InvalidJSON, InvalidValue

log = logging.getLogger("bulkhead.gateway")


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, listener: socket.socket, *, backlog: int, shutdown_seconds: float
) -> AsyncIterator[None]:
    """Serve `app` on the socket; at the end wait up to `shutdown_seconds` for running answers."""
    application = web.AppRunner(app)
    await application.setup()
    assert application.server is not None
    runner = web.ServerRunner(_Server(application.server), shutdown_timeout=shutdown_seconds)
    await runner.setup()
    # aiohttp listens anew on the inherited socket, with a backlog of 128 unless told.
    await web.SockSite(runner, listener, backlog=backlog).start()
    try:
        yield
    finally:
        await runner.cleanup()
        await application.cleanup()


class _Server(web.Server):
    """The application's server with connections of our own."""

    def __init__(self, application: web.Server) -> None:
        self._handle = application.request_handler
        super().__init__(
            self._answer,
            request_factory=_addressed(application.request_factory),
            # Without it a client that leaves is noticed only when something is written to it.
            handler_cancellation=True,
        )

    def __call__(self) -> web.RequestHandler:
        # No access log: ours has lines of its own.
        return _Connection(self, loop=asyncio.get_running_loop(), access_log=None)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.answering = request
        try:
            return await self._handle(request)
        except web.HTTPExpectationFailed:  # before any middleware
            return _refusal(
                InvalidValue("An `Expect` header other than `100-continue` can't be met.")
            )
        finally:
            connection.answering = None  # an idle connection must not keep a body


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


class _Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ("answering",)

    def __init__(self, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self.answering: web.BaseRequest | None = None

    def data_received(self, data: bytes) -> None:
        """As in aiohttp, except that whoever reads a body learns at once that it is broken.

        No request follows one whose body has not ended: what aiohttp has queued behind it is an
        error about that body's bytes, which it would tell only after the reader's time is over.
        """
        super().data_received(data)
        request = self.answering
        if request is None or request.content.is_eof() or request.content.exception() is not None:
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
        return _refusal(_contract_error(status, type(exc).__name__))

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
                "is not supported. Send it as it is, or with gzip."
            )
        case _:
            return InvalidValue(f"The request is no valid HTTP/1.1 ({kind}).")


def _refusal(error: BulkheadError) -> web.Response:
    request_id = new_request_id()
    level = logging.ERROR if error.status >= 500 else logging.INFO
    log.log(level, "%s refused: %d %s: %s", request_id, error.status, error.code, error.message)
    response = render_error(error)
    response.headers["x-request-id"] = request_id
    response.headers["openai-processing-ms"] = "0"
    response.force_close()
    return response
