"""worker.counting.server: one connection a count, and an answer whatever a tokenizer does."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

from supervisor.errors import InvalidValue
from supervisor.wire.codec import HEADER
from supervisor.wire.frames import Chat, Count, Counted, Failed, FromCounter, Hello
from supervisor.wire.progress import SIZE, ProgressRecord
from supervisor.wire.stream import FrameStream, connect
from tests.helpers.serving import DEADLINE
from worker.counting.server import CountingServer
from worker.engine.thread import Unloadable

CHAT = Chat([{"role": "user", "content": "what-the-client-said"}])


class PanicError(BaseException):
    """As pyo3's."""


class Played:
    """`Tokenizers` that does what the model's name says."""

    def __init__(self) -> None:
        self.waiting, self.cancelled = asyncio.Event(), asyncio.Event()

    async def count(self, request: Count) -> int:
        match request.model:
            case "waits":
                self.waiting.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            case "refuses":
                raise InvalidValue("The template rejected the messages.", param="messages")
            case "broken":
                raise Unloadable("tokenizer.json is not JSON")
            case "slow disk":
                raise OSError(errno.EIO, "Input/output error")
            case "no memory":
                raise MemoryError
            case "panics":
                raise PanicError("what-the-client-said")
            case "raises":
                raise KeyError("what-the-client-said")
        return len(request.chat.messages[0]["content"])


class World:
    def __init__(self, path: str, played: Played, channel: FrameStream[Hello]) -> None:
        self.path, self.played, self.channel = path, played, channel

    async def connection(self) -> FrameStream[FromCounter]:
        stream: FrameStream[FromCounter] = await connect(self.path, FromCounter)
        return stream

    async def count(self, model: str) -> FromCounter | None:
        stream = await self.connection()
        stream.send(Count("r", model, "/nowhere", CHAT, 1.0))
        answer = await stream.receive()
        stream.close()
        return answer


@pytest.fixture
def play() -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(story: Callable[[World], Awaitable[None]]) -> None:
        async def whole(folder: str) -> None:
            ours, theirs = socket.socketpair()
            played, path = Played(), f"{folder}/c.sock"
            record = ProgressRecord(bytearray(SIZE))
            server = CountingServer(theirs, path, cast(Any, played), record)
            running = asyncio.create_task(server.run())
            channel: FrameStream[Hello] = FrameStream(Hello)
            await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
            async with asyncio.timeout(DEADLINE):
                assert await channel.receive() == Hello(os.getpid())
                await story(World(path, played, channel))
                channel.close()
                await running  # the supervisor is gone

        with TemporaryDirectory(prefix="bulkhead-", dir="/tmp") as folder:
            asyncio.run(whole(folder))
            assert list(Path(folder).iterdir()) == []  # its socket

    return run


Play = Callable[[Callable[[World], Awaitable[None]]], None]


def test_a_count_is_answered(play: Play) -> None:
    async def story(world: World) -> None:
        assert await world.count("m") == Counted(20)

    play(story)


@pytest.mark.parametrize(
    ("model", "code", "param", "part"),
    [
        ("refuses", "invalid_value", "messages", "The template rejected the messages."),
        ("broken", "model_load_failed", "model", "`broken` cannot be loaded here: tokenizer.json"),
        ("slow disk", "model_loading", None, "at the moment (Input/output error). Try again"),
        ("no memory", "model_loading", None, "at the moment (MemoryError). Try again"),
        ("panics", "internal_error", None, "could not be prepared"),
        ("raises", "internal_error", None, "could not be prepared"),
    ],
)
def test_whatever_is_raised_is_an_error_of_the_contract(
    play: Play,
    caplog: pytest.LogCaptureFixture,
    model: str,
    code: str,
    param: str | None,
    part: str,
) -> None:
    async def story(world: World) -> None:
        answer = await world.count(model)
        assert isinstance(answer, Failed)
        assert (answer.code, answer.param) == (code, param)
        assert part in answer.message
        assert await world.count("m") == Counted(20)

    play(story)
    assert "what-the-client-said" not in caplog.text


def test_who_leaves_gives_its_count_up(play: Play) -> None:
    async def story(world: World) -> None:
        stream = await world.connection()
        stream.send(Count("r", "waits", "/nowhere", CHAT, 1.0))
        await world.played.waiting.wait()
        stream.close()
        await world.played.cancelled.wait()
        (await world.connection()).close()  # without a word
        assert await world.count("m") == Counted(20)

    play(story)


def test_bytes_that_are_no_frame_cost_their_connection_alone(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        stream = await world.connection()
        stream.send_bytes(HEADER.pack(4) + b"\xc1\xc1\xc1\xc1")
        assert await stream.receive() is None
        assert await world.count("m") == Counted(20)

    play(story)
    assert "a request connection was closed: malformed frame" in caplog.text
