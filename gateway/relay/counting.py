"""Counts of tokens, by the process that has tokenizers and no weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

from gateway.relay.control import (
    LACKING,
    ControlStream,
    receive_answer,
    too_many_connections,
    unexpected_answer,
    unsendable,
)
from supervisor.errors import (
    BulkheadError,
    QueueFull,
    RequestTooLarge,
    ShuttingDown,
    WorkerCrashed,
    restore,
)
from supervisor.wire.codec import HEADER, REPLY_LIMIT, ProtocolError, encode
from supervisor.wire.control_frames import Counter, WorkerFault
from supervisor.wire.frames import Chat, Count, Counted, Failed, FromCounter
from supervisor.wire.listener import reach
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.gateway")

MOST = 128
"""Counts that run or wait, over all models: their prompts are in memory."""
_TURN_SECONDS = 60.0
"""How long a count waits for those before it on the same model."""
_COUNT_SECONDS = 60.0
"""How long one takes at most: ten times what 8 MB do."""
_END_SECONDS = 5.0
"""Between the end of the counter, or our word that it has to end, and the supervisor's on it."""


class Counting:
    """All counts of this gateway. A model has one at a time: its tokenizer takes no more, and one
    that takes long holds up no other model's."""

    def __init__(self) -> None:
        self._running = 0
        self._turns: dict[str, asyncio.Lock] = {}
        """By model."""

    @contextmanager
    def place(self) -> Iterator[None]:
        """Has a count of its own meanwhile. Raises QueueFull."""
        if self._running >= MOST:
            raise QueueFull(
                f"{MOST} requests to count tokens are running or waiting. Try again shortly.",
                retry_after=1,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def count(
        self, use: ControlStream, counter: Counter, chat: Chat, now: float, request_id: str
    ) -> int:
        """The tokens, by the `counter` that `use` has asked for. Raises BulkheadError."""
        turn = self._turns.setdefault(counter.model, asyncio.Lock())
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await turn.acquire()
        except TimeoutError:
            raise QueueFull(
                f"Other requests to count tokens of model `{counter.model}` come first, and they "
                "take long. Try again shortly."
            ) from None
        try:
            sent = _encoded(Count(request_id, counter.model, counter.folder, chat, now))
            return await self._count(use, counter, sent)
        finally:
            turn.release()

    async def _count(self, use: ControlStream, counter: Counter, sent: bytes) -> int:
        try:
            async with asyncio.timeout(_COUNT_SECONDS):
                answer = await _answer(counter.socket, sent)
        except TimeoutError:
            use.send(WorkerFault(f"it stalled: a count took more than {_COUNT_SECONDS:g} s"))
            raise await _end_of(use) from None
        except ProtocolError as error:
            use.send(WorkerFault(f"bad message: {error}"))
            raise await _end_of(use) from None
        except OSError as error:
            if error.errno in LACKING:
                raise too_many_connections() from None
            raise await _end_of(use) from None
        match answer:
            case Counted(tokens):
                return tokens
            case Failed(code, message, param, retry_after):
                raise restore(code, message, param=param, retry_after=retry_after)
        raise await _end_of(use)


async def _answer(socket: str, sent: bytes) -> FromCounter | None:
    """None = it has ended. Raises OSError where it has ended before, ProtocolError."""
    stream: FrameStream[FromCounter] = await reach(socket, FromCounter)
    with closing(stream):
        stream.send_bytes(sent)
        return await stream.receive()


async def _end_of(use: ControlStream) -> BulkheadError:
    """Why the counter has ended, as the supervisor tells it."""
    try:
        await receive_answer(use, _END_SECONDS)
    except ShuttingDown:  # it says nothing, or is gone
        return WorkerCrashed("The process that counts tokens does not answer. Try again.")
    except BulkheadError as error:
        return error
    return unexpected_answer()


def _encoded(count: Count) -> bytes:
    """Raises BulkheadError."""
    try:
        sent = encode(count)
    except ProtocolError as error:
        raise unsendable(count.request_id, error) from None
    if len(sent) - HEADER.size > REPLY_LIMIT:
        raise RequestTooLarge(
            f"The prompt is too long to be counted: {len(sent)} bytes, of which {REPLY_LIMIT} are "
            "the most."
        )
    return sent
