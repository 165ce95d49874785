"""A streamed answer, which is never silent for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import HttpVersion11, web

from gateway.http.exchange import set_common_headers


class EventStream:
    """A response of events, one after the other. From `begin` until `close` its client gets what
    `ping` makes whenever it has got nothing for `silence` seconds; where earlier bytes are not
    read, nothing is added to them.

    How long a client may leave bytes unread is the connection's to say, which ends then: whatever
    waits here is cancelled.
    """

    def __init__(
        self,
        request: web.Request,
        silence: float,
        content_type: str,
        ping: Callable[[], bytes],
    ) -> None:
        self._request = request
        self._silence = silence
        self._make_ping = ping
        self._loop = asyncio.get_running_loop()
        self._response = web.StreamResponse(
            headers={
                "Content-Type": content_type,
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # nginx would hold events back
            }
        )
        self._sent = 0.0
        """The loop's time when the client was last sent something."""
        self._timer: asyncio.TimerHandle | None = None
        self._ping: asyncio.Task[None] | None = None

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Send status 200 and the headers; from now on an error is no status any more."""
        self._response.headers.update(headers)
        set_common_headers(self._request, self._response)
        if self._request.version < HttpVersion11:
            # Without chunks the end of the connection is the only end that the client sees.
            self._response.force_close()
        await self._response.prepare(self._request)
        self._rest()

    async def send(self, events: bytes) -> None:
        """Send whole events; wait while the client is behind."""
        self._sent = self._loop.time()
        await self._response.write(events)

    async def end(self) -> web.StreamResponse:
        """End the body cleanly. What the handler returns."""
        self.close()
        await self._response.write_eof()
        return self._response

    def close(self) -> None:
        """Nothing is sent by itself any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    def _rest(self) -> None:
        self._sent = self._loop.time()
        self._timer = self._loop.call_at(self._sent + self._silence, self._look)

    def _look(self) -> None:
        """The timer is not set anew with every event, which would cost each token something."""
        due = self._sent + self._silence
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._look)
            return
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return
        if not transport.get_write_buffer_size():
            self._ping = self._loop.create_task(self._write_ping())
            self._ping.add_done_callback(_ignore_reset)
        self._rest()

    async def _write_ping(self) -> None:
        """Events are made and written without a pause between, so that none falls into the middle
        of another and numbered ones keep their order."""
        await self._response.write(self._make_ping())


def _ignore_reset(ping: asyncio.Task[None]) -> None:
    """Between the decision to write and the writing the client may leave, which its handler learns
    as a cancellation."""
    if not ping.cancelled() and not isinstance(
        ping.exception(), (ConnectionResetError, type(None))
    ):
        ping.result()
