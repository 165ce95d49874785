"""The asyncio shell around the codec: a connection that yields frames.

One pending `receive` at a time. Frames that arrived before a fault are delivered before it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar, cast

from supervisor.wire import codec
from supervisor.wire.codec import REPLY_LIMIT, FrameDecoder, ProtocolError
from supervisor.wire.frames import Frame

F = TypeVar("F")
K = TypeVar("K")

BACKLOG = 1024
"""Connections that the kernel holds for a server that is busy or being restarted."""
_UNREAD_MAX = 2**19
"""Bytes of frames that may wait unread before the socket is no longer read: the whole of most
answers, so that a reader who is slow holds up nobody but itself."""
UNREAD_FRAMES: Final = 2**14
"""Frames that may, for small ones take ten times their bytes: a token's about 150. One read of the
socket may bring more than that, and then nothing follows."""
_BEHIND = 2**20
"""Bytes that may wait unsent before the peer counts as behind."""


class FrameStream(asyncio.Protocol, Generic[F]):
    """One connection. `receive()` returns frames, then None for ever once the peer has closed."""

    def __init__(self, frames: Any, limit: int = REPLY_LIMIT) -> None:
        self._decoder: FrameDecoder[F] = FrameDecoder(frames, limit)
        self._transport: asyncio.Transport | None = None
        self._arrived: deque[F] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._fault: ProtocolError | None = None
        self._note: Callable[[F], F | None] | None = None
        self.unread_frames = UNREAD_FRAMES
        """So many may wait unread before the socket is no longer read. The owner may set it."""
        self._unread = 0
        """Bytes, as of when the frames are received that the socket is paused for, or all."""
        self._paused_below: int | None = None
        """The socket is not read until so few frames wait; None = it is."""

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, whatever their methods.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            if self._note is None:
                self._arrived.extend(self._decoder.feed(data))
            else:
                for frame in self._decoder.feed(data):  # for every token of every request
                    if (noted := self._note(frame)) is not None:
                        self._arrived.append(noted)
        except ProtocolError as fault:
            self._end(fault)
            self.close()
            return
        # A frame that is not whole yet does not count: its rest comes only if the socket is read.
        self._unread = self._unread + len(data) if self._arrived else 0
        if self._paused_below is None and self._transport and self._holds_enough:
            self._pause(self._transport)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        fault: ProtocolError | None = None
        try:
            self._decoder.eof()
        except ProtocolError as torn:
            fault = torn
        self._end(fault)

    @property
    def _holds_enough(self) -> bool:
        return self._unread > _UNREAD_MAX or len(self._arrived) > self.unread_frames

    @property
    def ended(self) -> bool:
        """Whether the peer has closed or broken the connection."""
        return self._ended

    @property
    def is_behind(self) -> bool:
        """Whether so much waits unsent that the peer can't be reading."""
        transport = self._transport
        return transport is not None and transport.get_write_buffer_size() > _BEHIND

    # ── for the owner ────────────────────────────────────────────────────────────────────────────

    def send(self, *frames: Frame) -> None:
        """Queue frames for sending; silently nothing once the connection is closed."""
        if len(frames) == 1:
            for piece in codec.pieces(frames[0]):
                self.send_bytes(piece)
            return
        self.send_bytes(b"".join(map(codec.encode, frames)))

    def send_bytes(self, data: bytes | memoryview) -> None:
        """Like `send`, for frames that are encoded already."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def duplicate(self) -> socket.socket | None:
        """The connection's socket once more, for a thread that sends; None once it is closed.

        Whoever sends there must be the only one from then on: what this stream still holds unsent
        would come later.
        """
        if self._transport is None or self._transport.is_closing():
            return None
        endpoint = self._transport.get_extra_info("socket")
        # By number: uvloop's own socket objects can't be duplicated.
        duplicate = socket.fromfd(endpoint.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
        duplicate.setblocking(False)
        return duplicate

    async def receive(self) -> F | None:
        """The next frame; None when the peer has closed; raises ProtocolError for a fault."""
        while not self._arrived:
            if self._ended:
                if self._fault is not None:
                    raise self._fault
                return None
            await self.arrival()
        return self._pop()

    def take(self, kind: type[K]) -> K | None:
        """The next frame, if it is there already and of that kind."""
        if self._arrived and isinstance(self._arrived[0], kind):
            return cast(K, self._pop())
        return None

    def arrival(self) -> asyncio.Future[None]:
        """Done once a frame is there or the connection has ended. In place of `receive`, for which
        it may be cancelled just as well; whoever asks has found that nothing is there."""
        assert not self._ended
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    @property
    def is_empty(self) -> bool:
        """Whether the next `receive` would have to wait."""
        return not (self._arrived or self._ended)

    def _pause(self, transport: asyncio.Transport) -> None:
        count = len(self._arrived)
        self._paused_below = min(count, self.unread_frames) // 2
        self._unread = self._unread * self._paused_below // count  # more comes no sooner
        transport.pause_reading()

    def _pop(self) -> F:
        frame = self._arrived.popleft()
        if not self._arrived:
            self._unread = 0
        if self._paused_below is not None and len(self._arrived) <= self._paused_below:
            self._paused_below = None
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return frame

    def drain(self) -> list[F]:
        """All frames that have arrived and were not received: after the connection's end, say."""
        frames = list(self._arrived)
        self._arrived.clear()
        return frames

    def note_arrivals(self, note: Callable[[F], F | None]) -> None:
        """From now on give each frame to `note` when it arrives, whether anybody receives it yet or
        not; `receive` yields what that returns, None = nothing. To be called before the peer has
        anything to say."""
        self._note = note

    def finish(self) -> None:
        """Close once all is sent."""
        if self._transport is not None:
            self._transport.close()

    def close(self) -> None:
        """Close at once; what is unsent is dropped, which to the peer is a cancel."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self, fault: ProtocolError | None) -> None:
        if not self._ended:
            self._ended, self._fault = True, fault
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(path: str, frames: Any) -> FrameStream[F]:
    """Connect to a Unix socket. Raises OSError when nobody listens there."""
    loop = asyncio.get_running_loop()
    stream: FrameStream[F] = FrameStream(frames)
    await loop.create_unix_connection(lambda: stream, path)
    return stream


Handler = Callable[[FrameStream[F]], Awaitable[None]]


class _ServerStream(FrameStream[F]):
    """A server's end of a connection: runs the handler as a task of its own."""

    def __init__(
        self, frames: Any, limit: int, handler: Handler[F], tasks: set[asyncio.Task[None]]
    ) -> None:
        super().__init__(frames, limit)
        self._handler = handler
        self._tasks = tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        task = asyncio.get_running_loop().create_task(self._serve())
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        try:
            await self._handler(self)
        finally:
            self.close()


async def listen(
    path: str, frames: Any, handler: Handler[F], limit: int = REPLY_LIMIT
) -> asyncio.Server:
    """Serve a Unix socket of mode 0600; `handler` runs once a connection and then it is closed.

    Hold the result: uvloop closes a server that nobody refers to.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)  # before listen(): nobody can have connected yet
        return await loop.create_unix_server(
            lambda: _ServerStream(frames, limit, handler, tasks), sock=listener, backlog=BACKLOG
        )
    except BaseException:
        listener.close()
        raise
