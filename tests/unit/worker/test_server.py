"""worker.server: what the gateway says while its prompt is still being prepared."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from supervisor.errors import QueueFull
from supervisor.wire.frames import (
    Embed,
    End,
    Failed,
    Frame,
    FromEngine,
    FromWorker,
    Generate,
    Hello,
    Load,
    Ready,
    Text,
    Token,
)
from supervisor.wire.progress import SIZE, ProgressRecord
from supervisor.wire.stream import FrameStream, connect
from tests.helpers.fakes.engine import Script, ScriptedEngine
from worker import server as worker_server
from worker.engine.thread import Job, NoRoom, Prepared
from worker.server import _SHORT_PROMPT, WorkerServer

SECONDS = 20
LONG = Generate("long", Text("x" * (_SHORT_PROMPT + 1)), 1.0, max_tokens=500)
SHORT = Generate("short", Text("x"), 1.0, max_tokens=5)


class Held(ScriptedEngine):
    """It prepares a long prompt only when it is let. It notes what it is told about it."""

    def __init__(self) -> None:
        super().__init__(Script())
        self.entered, self.let = threading.Event(), threading.Event()
        self.told: list[str] = []

    def prepare(self, request: Generate | Embed) -> Prepared:
        if request.request_id == "long":
            self.entered.set()
            assert self.let.wait(SECONDS)
        return super().prepare(request)

    def _note(self, call: str, job: Job) -> None:
        if job.request.request_id == "long":
            self.told.append(call)

    def insert(self, job: Job) -> None:
        self._note("insert", job)
        super().insert(job)


class Desk:
    """A worker's server, and the gateway in front of it."""

    def __init__(self, path: Path) -> None:
        self.engine = Held()
        self._socket = str(path / "s")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        ours, theirs = socket.socketpair()
        server = WorkerServer(theirs, self.engine, ProgressRecord(bytearray(SIZE)))
        running = asyncio.create_task(server.run())
        supervisor: FrameStream[FromWorker] = FrameStream(FromWorker)
        await asyncio.get_running_loop().create_connection(lambda: supervisor, sock=ours)
        assert isinstance(await supervisor.receive(), Hello)
        supervisor.send(Load("m", 1, "/folder", self._socket, 4, 0))
        while not isinstance(await supervisor.receive(), Ready):
            pass
        try:
            yield
        finally:
            self.engine.let.set()
            server._asked_to_stop()
            await running
            server._listener.close()
            supervisor.close()

    async def ask(self, *frames: Frame) -> FrameStream[FromEngine]:
        """A request; of the long one, as soon as it is being prepared and all else has arrived."""
        stream: FrameStream[FromEngine] = await connect(self._socket, FromEngine)
        stream.send(*frames)
        if frames[0] is LONG:
            assert await asyncio.to_thread(self.engine.entered.wait, SECONDS)
        return stream


async def tokens(stream: FrameStream[FromEngine]) -> list[int]:
    """All until the end."""
    ids = []
    while not isinstance(frame := await stream.receive(), End):
        assert frame is not None
        if isinstance(frame, Token):
            ids.append(frame.id)
    stream.close()
    return ids


def test_who_leaves_before_the_prompt_is_prepared_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        desk, left = Desk(tmp_path), asyncio.Event()

        def note(message: str, *_: object) -> None:
            if "cancelled before it was prepared" in message:
                left.set()

        monkeypatch.setattr(logging.getLogger("bulkhead.worker"), "info", note)
        async with asyncio.timeout(SECONDS), desk.serving():
            stream = await desk.ask(LONG)
            stream.close()
            await left.wait()
            desk.engine.let.set()
            assert await tokens(await desk.ask(SHORT)) == [*range(5)]
            assert desk.engine.told == []

    asyncio.run(run())


@pytest.mark.parametrize("how", ["room comes", "no room comes", "the client leaves"])
def test_a_request_waits_for_room_for_its_grammar(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_server, "_ROOM_SECONDS", 0.05 if how == "no room comes" else SECONDS)

    async def scenario() -> None:
        desk, line = Desk(tmp_path), FakeLine()
        prepared: list[str] = []
        prepare = desk.engine.prepare

        def go_on() -> Prepared:
            prepared.append("the rest")
            if len(prepared) < 3:
                raise NoRoom(QueueFull("no room"), line, go_on)
            return prepare(SHORT)

        def prepare_without_room(request: Generate | Embed) -> Prepared:
            prepared.append("all")
            raise NoRoom(QueueFull("no room"), line, go_on)

        monkeypatch.setattr(desk.engine, "prepare", prepare_without_room)
        async with asyncio.timeout(SECONDS), desk.serving():
            stream = await desk.ask(SHORT)
            call = await line.waits.get()
            match how:
                case "room comes":
                    # From the MLX thread, say; and there is none after all at first.
                    await asyncio.to_thread(call)
                    await asyncio.to_thread(await line.waits.get())
                    assert len(await tokens(stream)) == 5
                    assert prepared == ["all", "the rest", "the rest"]
                case "no room comes":
                    refused = await stream.receive()
                    assert isinstance(refused, Failed)
                    assert refused.code == "queue_full"
                case _:
                    stream.close()
            await line.left.wait()
            call()  # too late, and nobody minds
            assert line.waits.empty()

    asyncio.run(scenario())


class FakeLine:
    """Where the only request waits."""

    def __init__(self) -> None:
        self.waits: asyncio.Queue[Callable[[], object]] = asyncio.Queue()
        self.left = asyncio.Event()

    def wait(self, call: Callable[[], object]) -> None:
        self.waits.put_nowait(call)

    def leave(self) -> None:
        self.left.set()
