"""Connections opened before they are needed."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

from supervisor.wire.listener import reach
from supervisor.wire.stream import FrameStream

F = TypeVar("F")


class Preconnect(Generic[F]):
    """One connection to each socket, opened before the next request needs it.

    A worker's socket is its own, so there are as many connections as workers that live.
    """

    def __init__(self, frames: Any) -> None:
        self._frames = frames
        self._open: dict[str, FrameStream[F]] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}

    def take(self, path: str) -> FrameStream[F] | None:
        """The connection, if there is one that nobody has closed. The caller owns it now."""
        stream = self._open.pop(path, None)
        return None if stream is None or stream.ended else stream

    def refill(self, path: str) -> None:
        """Open the next one meanwhile."""
        if path not in self._open and path not in self._opening:
            self._opening[path] = asyncio.create_task(self._connect(path))

    def close(self) -> None:
        for task in self._opening.values():
            task.cancel()
        for stream in self._open.values():
            stream.close()

    async def _connect(self, path: str) -> None:
        for other in [known for known, stream in self._open.items() if stream.ended]:
            del self._open[other]
        try:
            self._open[path] = await reach(path, self._frames)
        except OSError:
            return  # the next request will find out for itself
        finally:
            del self._opening[path]
