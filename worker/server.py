"""The worker's event loop: frames on one side, the engine thread on the other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from supervisor.errors import BulkheadError, InternalError, QueueFull
from supervisor.wire.codec import REQUEST_LIMIT, ProtocolError
from supervisor.wire.frames import (
    Accepted,
    Chat,
    Embed,
    Generate,
    Grammar,
    Hello,
    Lend,
    Limit,
    Load,
    LoadFailed,
    Loading,
    MayPrefill,
    Pattern,
    Ready,
    Recall,
    Schema,
    Shrink,
    Structure,
    Text,
    ToEngine,
    Tokens,
    ToWorker,
)
from supervisor.wire.listener import Listener
from supervisor.wire.progress import ProgressRecord
from supervisor.wire.stream import FrameStream
from worker.engine.thread import (
    Engine,
    EngineThread,
    Job,
    Line,
    LoadResult,
    NoRoom,
    Prepared,
    failed,
)
from worker.sink import Overflow, SocketSink

log = logging.getLogger("bulkhead.worker")

EXIT_CANNOT_LISTEN = 71
"""Exit status (EX_OSERR) of a worker that has loaded its model and cannot be reached."""
_ROOM_SECONDS = 60.0
"""How long a request waits for room for its grammar."""
_SHORT_PROMPT = 2000
"""Characters: about a quarter of a millisecond."""


class WorkerServer:
    """Serves one model for one supervisor, until told to stop or the supervisor is gone."""

    def __init__(self, channel: socket.socket, engine: Engine, record: ProgressRecord) -> None:
        self._socket = channel
        self._engine = engine
        self._record = record
        # Tokenizing a long prompt takes as long as many decode steps, and tokenizers are not safe
        # for two threads: one thread of its own.
        self._prompt_thread = ThreadPoolExecutor(1, "prompt")
        self._preparing = 0
        """Requests on that thread."""
        self._closed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Return when the engine is closed and its memory given back."""
        loop = asyncio.get_running_loop()
        self._channel: FrameStream[ToWorker] = FrameStream(ToWorker)
        await loop.create_connection(lambda: self._channel, sock=self._socket)
        self._thread = EngineThread(
            self._engine,
            self._record,
            loop.call_soon_threadsafe,
            on_warm=lambda: self._channel.send(Hello(os.getpid())),
            on_progress=lambda done, total: self._channel.send(Loading(done, total)),
            on_loaded=self._loaded,
            on_unloadable=lambda reason: self._channel.send(LoadFailed(reason)),
            on_news=lambda news: self._channel.send(*news),
            on_closed=self._closed.set,
        )
        loop.add_signal_handler(signal.SIGTERM, self._asked_to_stop)
        beating = loop.create_task(self._record.beat())
        self._thread.start()
        load = await self._channel.receive()
        if not isinstance(load, Load):
            return
        self._load = load
        self._started = time.monotonic()
        log.info("loading %s for model %s#%d", load.path, load.model, load.generation)
        self._thread.load(load)
        listening = loop.create_task(self._listen())
        await self._closed.wait()
        listening.cancel()
        beating.cancel()

    async def _listen(self) -> None:
        """What the supervisor says later."""
        while (said := await self._channel.receive()) is not None:
            match said:
                case Shrink():
                    log.info("memory is short: caches are given back")
                    self._thread.shrink()
                case Lend(size):
                    self._thread.lend(size)
                case Recall():
                    self._thread.recall(said)
                case Limit(sequences):
                    self._thread.limit(sequences)
                case MayPrefill(allowed):
                    self._thread.allow_prefill(allowed)
                case Load():
                    return  # one is all that a worker takes

    def _asked_to_stop(self) -> None:
        if self._serving is None:
            # The engine thread is inside an import or a load, which can't be interrupted and of
            # which nothing is worth keeping.
            os._exit(0)
        self._thread.close()

    def _loaded(self, loaded: LoadResult) -> None:
        seconds = time.monotonic() - self._started
        log.info("loaded in %.2f s, MLX holds %d MB", seconds, loaded.memory_bytes // 10**6)
        self._serving = asyncio.get_running_loop().create_task(self._serve(loaded))

    async def _serve(self, loaded: LoadResult) -> None:
        listener = self._listener = Listener(
            self._load.socket, ToEngine, self._answer, REQUEST_LIMIT
        )
        try:
            await listener.open()
        except OSError as error:
            log.critical("cannot listen on %s: %s", self._load.socket, error.strerror or error)
            os._exit(EXIT_CANNOT_LISTEN)
        self._channel.send(Ready(loaded.memory_bytes, loaded.context))
        await listener.keep()

    async def _answer(self, stream: FrameStream[ToEngine]) -> None:
        """One connection = one request. The peer's EOF cancels it."""
        try:
            request = await stream.receive()
            if not isinstance(request, Generate | Embed):
                return
            await self._generate(request, stream)
        except ProtocolError as error:
            log.warning("a request connection was closed: %s", error)

    async def _prepare_in_time(
        self, request: Generate | Embed, gone: asyncio.Task[None]
    ) -> Prepared | None:
        """As `_prepare`; where the grammars of others leave no room for its own, the request waits
        in line with what was made of it so far. Raises BulkheadError."""
        deadline = time.monotonic() + _ROOM_SECONDS
        line: Line | None = None
        work: Callable[[], Prepared] = partial(self._engine.prepare, request)
        try:
            while True:
                try:
                    return await self._prepare(request, work, gone)
                except NoRoom as error:
                    line, work, refusal = error.line, error.go_on, error.refusal
                if not await self._room(line, gone, deadline - time.monotonic()):
                    raise refusal
                if gone.done():
                    return None
        finally:
            if line is not None:
                line.leave()

    async def _room(self, line: Line, gone: asyncio.Task[None], seconds: float) -> bool:
        """Wait until there is room, or the client has left. False: that took too long."""
        loop = asyncio.get_running_loop()
        room: asyncio.Future[None] = loop.create_future()
        line.wait(lambda: loop.call_soon_threadsafe(_set, room))
        either: set[asyncio.Future[Any]] = {room, gone}
        done, _ = await asyncio.wait(
            either, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED
        )
        return bool(done)

    async def _prepare(
        self,
        request: Generate | Embed,
        work: Callable[[], Prepared],
        gone: asyncio.Task[None],
    ) -> Prepared | None:
        """What comes of the `work`: the request ready for its turn, or None when the client has
        left first. Raises BulkheadError, or NoRoom.

        A short prompt costs less than the way to the other thread and back, and is prepared right
        here while that thread is idle.
        """
        if self._preparing == 0 and _is_quick(request):
            return self._prepare_now(request, work)
        loop = asyncio.get_running_loop()
        self._preparing += 1
        # Counted until the thread is really done, which a cancelled request does not hasten.
        submitted = self._prompt_thread.submit(self._prepare_on_thread, request, work)
        submitted.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count_prepared))
        prepared = asyncio.wrap_future(submitted)
        either: set[asyncio.Future[Any]] = {prepared, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not prepared.done():
            log.info("request %s: cancelled before it was prepared", request.request_id)
            prepared.cancel()  # one that waits for the thread never reaches it
            return None
        return prepared.result()

    def _prepare_on_thread(
        self, request: Generate | Embed, work: Callable[[], Prepared]
    ) -> Prepared:
        with self._record.preparing():
            return self._prepare_now(request, work)

    def _prepare_now(self, request: Generate | Embed, work: Callable[[], Prepared]) -> Prepared:
        try:
            return work()
        except (BulkheadError, NoRoom, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001
            # A tokenizer that chokes on a request must cost that request alone. A panic of one
            # written in Rust is no Exception.
            log.error("request %s: preparing failed: %s", request.request_id, type(error).__name__)
            raise InternalError("The prompt could not be prepared for the model.") from None

    def _count_prepared(self) -> None:
        self._preparing -= 1

    def _accept(
        self, request: Generate | Embed, prepared: Prepared, stream: FrameStream[ToEngine]
    ) -> SocketSink | None:
        """Tell the gateway that the request is accepted. Returns where its output goes; None when
        there is none to come. Raises QueueFull."""
        accepted = Accepted(prepared.size, prepared.echo)
        if prepared.end is not None:
            stream.send(accepted, prepared.end)
            return None
        try:
            connection = stream.duplicate()
        except OSError as error:
            log.error("request %s: no descriptor is left: %s", request.request_id, error.strerror)
            raise QueueFull(
                "The model's worker has too many requests open.", retry_after=1
            ) from None
        if connection is None:
            return None  # the gateway has left meanwhile
        loop = asyncio.get_running_loop()
        sink = SocketSink(connection, Overflow(loop.call_soon_threadsafe, stream.send_bytes).put)
        sink.send([accepted])
        return sink

    async def _generate(self, request: Generate | Embed, stream: FrameStream[ToEngine]) -> None:
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        gone = loop.create_task(_leaving(stream))
        try:
            prepared = await self._prepare_in_time(request, gone)
            sink = None if prepared is None else self._accept(request, prepared, stream)
        except BulkheadError as error:
            stream.send(failed(error))
            prepared = sink = None
        if prepared is None or sink is None:
            await gone  # which may have failed
            return
        job = Job(request, prepared, sink)
        self._thread.submit(job)
        try:
            await gone
        finally:
            gone.cancel()
            if not sink.ended:
                self._thread.cancel(job)
            how = "done" if sink.ended else "cancelled"
            log.info(
                "request %s: %d prompt tokens, %s, %.3f s",
                request.request_id,
                prepared.size,
                how,
                time.monotonic() - begun,
            )


def _set(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)


async def _leaving(stream: FrameStream[ToEngine]) -> None:
    """Return when the gateway has left, which says nothing after its request. Raises
    ProtocolError."""
    while await stream.receive() is not None:
        continue


def _is_quick(request: Generate | Embed) -> bool:
    """Whether preparing takes less than the way to another thread. The first grammar of a model
    takes a second."""
    if isinstance(request, Generate) and (request.structure or request.calling or request.emitted):
        return False
    return _prompt_size(request) <= _SHORT_PROMPT


def _structure_size(structure: Structure) -> int:
    match structure:
        case Schema(schema=text) | Pattern(pattern=text) | Grammar(rules=text):
            return len(text)


def _prompt_size(request: Generate | Embed) -> int:
    """Characters that a request is made of, about."""
    if isinstance(request, Embed):
        return sum(map(len, request.inputs))
    size = 0 if request.structure is None else _structure_size(request.structure)
    match request.prompt:
        case Text(text):
            return size + len(text)
        case Tokens(ids):
            return size + len(ids)
        case Chat(messages, tools):
            values = [value for message in messages for value in message.values()]
            return size + sum(len(str(value)) for value in [*values, *tools])
