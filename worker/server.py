"""The worker's event loop: frames on one side, the engine thread on the other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from supervisor.errors import BulkheadError, InternalError
from supervisor.wire.codec import REQUEST_LIMIT, ProtocolError
from supervisor.wire.frames import (
    Accepted,
    End,
    Failed,
    FromEngine,
    Generate,
    Hello,
    LoadFailed,
    Loading,
    Ready,
    ToEngine,
    ToWorker,
)
from supervisor.wire.stream import FrameStream, listen
from worker.engine import Engine, EngineThread, Job, Loaded

log = logging.getLogger("bulkhead.worker")


class WorkerServer:
    """Serves one model for one supervisor, until told to stop or the supervisor is gone."""

    def __init__(self, channel: socket.socket, engine: Engine) -> None:
        self._socket = channel
        self._engine = engine
        # Tokenizing a long prompt takes as long as many decode steps, and tokenizers are not safe
        # for two threads: one thread of its own.
        self._prompt_thread = ThreadPoolExecutor(1, "prompt")
        self._closed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Return when the engine is closed and its memory given back."""
        loop = asyncio.get_running_loop()
        self._channel: FrameStream[ToWorker] = FrameStream(ToWorker)
        await loop.create_connection(lambda: self._channel, sock=self._socket)
        self._thread = EngineThread(
            self._engine,
            loop.call_soon_threadsafe,
            on_warm=lambda: self._channel.send(Hello(os.getpid())),
            on_progress=lambda done, total: self._channel.send(Loading(done, total)),
            on_loaded=self._loaded,
            on_unloadable=lambda reason: self._channel.send(LoadFailed(reason)),
            on_closed=self._closed.set,
        )
        loop.add_signal_handler(signal.SIGTERM, self._asked_to_stop)
        self._thread.start()
        load = await self._channel.receive()
        if load is None:
            return
        self._load = load
        self._started = time.monotonic()
        log.info("loading %s for model %s#%d", load.path, load.model, load.generation)
        self._thread.load(load)
        await self._closed.wait()

    def _asked_to_stop(self) -> None:
        if self._serving is None:
            # The engine thread is inside an import or a load, which can't be interrupted and of
            # which nothing is worth keeping.
            os._exit(0)
        self._thread.close()

    def _loaded(self, loaded: Loaded) -> None:
        seconds = time.monotonic() - self._started
        log.info("loaded in %.2f s, %d MB", seconds, loaded.memory_bytes // 10**6)
        self._serving = asyncio.get_running_loop().create_task(self._serve(loaded))

    async def _serve(self, loaded: Loaded) -> None:
        await listen(self._load.socket, ToEngine, self._answer, REQUEST_LIMIT)
        self._channel.send(Ready(loaded.memory_bytes, loaded.context))

    async def _answer(self, stream: FrameStream[ToEngine]) -> None:
        """One connection = one request. The peer's EOF cancels it."""
        try:
            request = await stream.receive()
            if request is None:
                return
            await self._generate(request, stream)
        except ProtocolError as error:
            log.warning("a request connection was closed: %s", error)

    async def _generate(self, request: Generate, stream: FrameStream[ToEngine]) -> None:
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        try:
            prompt = await loop.run_in_executor(self._prompt_thread, self._engine.prepare, request)
        except BulkheadError as error:
            stream.send(Failed(error.code, error.message, error.param, error.retry_after))
            await stream.receive()
            return
        except Exception as error:  # noqa: BLE001
            # A tokenizer that chokes on a request must cost that request alone.
            log.error("request %s: preparing failed: %s", request.request_id, type(error).__name__)
            failure = InternalError("The prompt could not be prepared for the model.")
            stream.send(Failed(failure.code, failure.message, None, None))
            await stream.receive()
            return
        ended = False

        def deliver(frames: Sequence[FromEngine]) -> None:
            nonlocal ended
            ended = ended or isinstance(frames[-1], End)
            stream.send(*frames)

        job = Job(request, prompt, deliver)
        stream.send(Accepted(len(prompt)))
        log.info("request %s: %d prompt tokens", request.request_id, len(prompt))
        self._thread.submit(job)
        try:
            await stream.receive()  # the gateway says nothing more; this is its EOF
        finally:
            if not ended:
                self._thread.cancel(job)
            how = "done" if ended else "cancelled"
            log.info("request %s: %s, %.3f s", request.request_id, how, time.monotonic() - begun)
