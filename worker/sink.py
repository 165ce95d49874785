"""From the MLX thread straight to a request's socket.

The event loop is not asked: it would have to win the interpreter lock from the very thread that has
just made the token, once to wake and once after every write. Only what the kernel does not take at
once goes through the loop.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence

from supervisor.errors import InternalError
from supervisor.wire import codec
from supervisor.wire.frames import FromEngine
from worker.engine.thread import FINAL_FRAMES, failed


class Overflow:
    """Bytes on their way from the MLX thread to the loop, which is woken once for all that have
    come by the time it looks."""

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        send: Callable[[bytes], object],
    ) -> None:
        """`call_soon` has the loop call something, from any thread; `send` is called there."""
        self._call_soon = call_soon
        self._send = send
        self._waiting: deque[bytes] = deque()
        self._is_called = False

    def put(self, data: bytes) -> None:
        """On the MLX thread."""
        self._waiting.append(data)
        if not self._is_called:
            self._is_called = True
            self._call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._is_called = False  # before the look: what comes after it calls again
        pieces = []
        while self._waiting:
            pieces.append(self._waiting.popleft())
        if pieces:
            self._send(b"".join(pieces))


class SocketSink:
    """A `Sink` that writes to a duplicate of the connection's descriptor.

    The duplicate belongs to the MLX thread: the loop may close the connection at any moment, and
    its number may then be another request's.
    """

    def __init__(self, connection: socket.socket, overflow: Callable[[bytes], object]) -> None:
        """`overflow` hands bytes to the loop, which sends them in the order given."""
        self._socket = connection
        self._overflow = overflow
        self._overflowing = False
        self._refused = False
        self.ended = False
        """Whether the end frame has been given to us: what comes later is no cancel."""

    def send(self, frames: Sequence[FromEngine]) -> None:
        if self._refused:
            return
        try:
            data = b"".join(map(_bounded, frames))
            self.ended = isinstance(frames[-1], FINAL_FRAMES)
        except codec.ProtocolError as error:
            # To the gateway such a frame is a fault of the worker, for which it is killed.
            failure = InternalError(f"The answer can't be passed on: {error}.")
            data = codec.encode(failed(failure))
            self._refused = True
        if not self._overflowing:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                pass  # the peer is slow: nothing was taken
            except OSError:
                return  # the peer has left; the loop sees its EOF and cancels
        if data:
            # From now on always, for order's sake.
            self._overflowing = True
            self._overflow(data)

    def close(self) -> None:
        self._socket.close()


def _bounded(frame: FromEngine) -> bytes:
    """Raises ProtocolError for a frame that the gateway would not take."""
    data = codec.encode(frame)
    if len(data) - codec.HEADER.size > codec.REPLY_LIMIT:
        raise codec.ProtocolError(f"{len(data)} bytes in one piece")
    return data
