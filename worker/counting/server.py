"""The counter's event loop: frames on one side, threads with tokenizers on the other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from typing import Any

from supervisor.errors import BulkheadError, InternalError, ModelLoadFailed, ModelLoading
from supervisor.wire.codec import ProtocolError
from supervisor.wire.frames import Count, Counted, Failed, Hello, ToCounter
from supervisor.wire.listener import Listener
from supervisor.wire.progress import ProgressRecord
from supervisor.wire.stream import FrameStream
from worker.counting.tokenizers import Tokenizers
from worker.engine.thread import Unloadable

log = logging.getLogger("bulkhead.counter")


class CountingServer:
    """Counts for one gateway at `path`, until told to stop or the supervisor is gone."""

    def __init__(
        self, channel: socket.socket, path: str, tokenizers: Tokenizers, record: ProgressRecord
    ) -> None:
        self._socket = channel
        self._path = path
        self._tokenizers = tokenizers
        self._record = record

    async def run(self) -> None:
        """Return once the supervisor has closed the channel. Raises OSError when it can't
        listen."""
        loop = asyncio.get_running_loop()
        channel: FrameStream[Hello] = FrameStream(Hello)
        await loop.create_connection(lambda: channel, sock=self._socket)
        # Nothing is lost with it, and what runs on its threads can't be interrupted.
        loop.add_signal_handler(signal.SIGTERM, os._exit, 0)
        listener = Listener(self._path, ToCounter, self._answer)
        await listener.open()
        keeping = [loop.create_task(work) for work in (self._record.beat(), listener.keep())]
        channel.send(Hello(os.getpid()))
        await channel.receive()  # nothing is ever said there
        for task in keeping:
            task.cancel()
        listener.close()

    async def _answer(self, stream: FrameStream[ToCounter]) -> None:
        """One connection = one count. The peer's EOF cancels it."""
        try:
            request = await stream.receive()
            if request is None:
                return
            gone = asyncio.ensure_future(stream.receive())
            counting = asyncio.ensure_future(self._count(request))
            either: set[asyncio.Future[Any]] = {gone, counting}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not counting.done():
                counting.cancel()
                log.info("request %s: cancelled", request.request_id)
            else:
                stream.send(counting.result())
            await gone
        except ProtocolError as error:
            log.warning("a request connection was closed: %s", error)

    async def _count(self, request: Count) -> Counted | Failed:
        begun = time.monotonic()
        try:
            tokens = await self._tokenizers.count(request)
        except BulkheadError as error:
            return _failed(error)
        except Unloadable as error:
            log.error(
                "request %s: no tokenizer of %s: %s", request.request_id, request.model, error
            )
            return _failed(
                ModelLoadFailed(
                    f"The model `{request.model}` cannot be loaded here: {error}", param="model"
                )
            )
        except (OSError, MemoryError) as error:
            log.error(
                "request %s: no tokenizer of %s: %r", request.request_id, request.model, error
            )
            why = getattr(error, "strerror", None) or type(error).__name__
            return _failed(
                ModelLoading(
                    f"The tokenizer of model `{request.model}` cannot be read at the moment "
                    f"({why}). Try again."
                )
            )
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001
            # Of others' code, which a request can make raise anything. A panic of a tokenizer
            # written in Rust is no Exception, and its words may quote the prompt.
            log.error("request %s: counting failed: %s", request.request_id, type(error).__name__)
            return _failed(InternalError("The prompt could not be prepared for the model."))
        log.info(
            "request %s: %d prompt tokens of %s, %.3f s",
            request.request_id,
            tokens,
            request.model,
            time.monotonic() - begun,
        )
        return Counted(tokens)


def _failed(error: BulkheadError) -> Failed:
    return Failed(error.code, error.message, error.param, error.retry_after)
