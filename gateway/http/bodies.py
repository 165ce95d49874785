"""What requests hold of the gateway: their bodies, from the first byte to the end of the answer.

A body counts as *waiting* from the moment it is announced until its request has a place on a worker
or is over: first as it comes in, then in the one encoded copy that is left of it. Then that copy is
*running*: another worker may have to be given it. Waiting ones are bounded by what is configured,
and both together by `RUNNING_MAX` more, so that the process is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from supervisor.errors import QueueFull

RUNNING_MAX = 128 * 2**20
"""Bytes of running requests, beyond those that may wait: 64 of half a million tokens."""
LARGE = 2**16
"""Bytes of a body from which on reading and parsing it takes its turn."""
_READ_AT_ONCE = 8
"""Pieces of bodies, up to 64 KB each, in one turn of the loop: a millisecond."""
_RETRY_SECONDS = 2.0


class BodyBytes:
    """The bytes that all requests of this process hold."""

    def __init__(
        self, waiting_max: int, freed: Callable[[int], object] = lambda size: None
    ) -> None:
        """`freed` is told how many bytes are held no longer."""
        self.waiting = self.running = 0
        self._waiting_max = waiting_max
        self._freed = freed
        self._reading, self._parsing = asyncio.Semaphore(_READ_AT_ONCE), asyncio.Lock()

    def hold(self) -> HeldBody:
        """What a request that has come holds: nothing yet."""
        return HeldBody(self)

    async def reading_turn(self) -> None:
        """Wait until it is the caller's turn to take the next piece of a large body. Few do so in
        one turn of the loop, which has others to serve."""
        async with self._reading:
            await asyncio.sleep(0)

    async def parsing_turn(self) -> None:
        """Wait until it is the caller's turn to parse a large body, one in a turn of the loop."""
        async with self._parsing:
            await asyncio.sleep(0)

    def grow(self, size: int, held: int) -> None:
        """Somebody who waits with `held` bytes wants so many more. One alone gets any number.
        Raises QueueFull."""
        others = self.waiting - held
        wanted, most = held + size, self._waiting_max + RUNNING_MAX
        if size > 0 and others and others + wanted > self._waiting_max:
            raise QueueFull(
                f"The requests that wait fill the {self._waiting_max} bytes that their bodies may "
                "have together (server.max_queue_bytes). Try again shortly.",
                retry_after=_RETRY_SECONDS,
            )
        if size > 0 and others + self.running and others + self.running + wanted > most:
            raise QueueFull(
                f"The requests that are being answered hold {self.running} bytes, and together "
                f"with those that wait they may hold {most}. This one fits once some of them are "
                "over: send fewer large requests at once, or try again later.",
                retry_after=_RETRY_SECONDS,
            )
        self.waiting += size

    def move(self, size: int) -> None:
        """So many bytes do not wait any more, but run."""
        self.waiting -= size
        self.running += size

    def free(self, waiting: int = 0, running: int = 0) -> None:
        """So many bytes are held no longer."""
        self.waiting -= waiting
        self.running -= running
        if waiting or running:
            self._freed(waiting + running)


class HeldBody:
    """What one request holds."""

    def __init__(self, bodies: BodyBytes) -> None:
        self._bodies = bodies
        self._size = 0
        self._runs = False
        self._arrived = 0
        self._late: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        return self._size

    def announce(self, size: int, seconds: float) -> None:
        """So many bytes will come. They count as held for `seconds`, in which they should be there:
        who sends slowly must not take the others' room. Raises QueueFull."""
        self._set(size)
        if size:
            self._late = asyncio.get_running_loop().call_later(seconds, self._lapse)

    def arrived(self, size: int) -> None:
        """So many bytes have come, all in all. Raises QueueFull."""
        self._arrived = size
        if size > self._size or self._late is None:
            self._set(size)

    def keep(self, size: int) -> None:
        """The body is here, and what is left of it has this size. Raises QueueFull."""
        self._stop_waiting()
        self._set(size)

    def run(self) -> None:
        """The request has a place on a worker."""
        self._stop_waiting()
        if not self._runs:
            self._runs = True
            self._bodies.move(self._size)

    def release(self) -> None:
        """The request is over. May be called again."""
        self._stop_waiting()
        size, self._size = self._size, 0
        if self._runs:
            self._bodies.free(running=size)
        else:
            self._bodies.free(waiting=size)

    def _lapse(self) -> None:
        self._late = None
        self._set(self._arrived)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _set(self, size: int) -> None:
        if size >= self._size:
            self._bodies.grow(size - self._size, self._size)
        else:
            self._bodies.free(waiting=self._size - size)
        self._size = size
