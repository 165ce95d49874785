"""gateway.http.event_stream: when a stream pings, by a clock of the test's.

tests/unit/gateway/handlers/test_answering.py shows it on real connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http.event_stream import EventStream

PING = b": ping\n\n"


class Clock:
    """What a stream asks of its event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Any:
        self.due = (when, call)
        return SimpleNamespace(cancel=self._cancel)

    def _cancel(self) -> None:
        self.due = None

    def create_task(self, writing: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(writing)

    async def go_to(self, when: float) -> None:
        while self.due is not None and self.due[0] <= when:
            self.now, call = self.due
            self.due = None
            call()
            await asyncio.sleep(0)  # a ping is a task
        self.now = when


class Transport:
    def __init__(self) -> None:
        self.unread = 0
        self.closing = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing


class Played:
    """A stream of which nothing is silent for more than 10 s, begun at 0."""

    def __init__(self) -> None:
        self.clock, self.transport = Clock(), Transport()
        self.written: list[tuple[float, bytes]] = []
        request: Any = SimpleNamespace(transport=self.transport)
        self.stream = EventStream(request, 10, "text/event-stream", lambda: PING)
        part: Any = self.stream
        part._loop = self.clock
        part._response = SimpleNamespace(write=self._write, write_eof=self._end)
        part._rest()

    async def _write(self, data: bytes) -> None:
        self.written.append((self.clock.now, data))

    async def _end(self) -> None: ...

    @property
    def pings(self) -> list[float]:
        return [when for when, data in self.written if data == PING]


def run(scenario: Callable[[Played], Any]) -> None:
    async def whole() -> None:
        await scenario(Played())

    asyncio.run(whole())


def test_a_silent_stream_pings_at_that_interval() -> None:
    async def scenario(played: Played) -> None:
        await played.clock.go_to(35)
        assert played.pings == [10, 20, 30]

    run(scenario)


def test_the_interval_begins_with_what_was_sent_last() -> None:
    async def scenario(played: Played) -> None:
        for second in (4, 13, 22.5, 22.75):
            await played.clock.go_to(second)
            await played.stream.send(b"data: x\n\n")
        await played.clock.go_to(43)
        assert played.pings == [32.75, 42.75]

    run(scenario)


def test_nothing_is_added_to_what_is_not_read() -> None:
    async def scenario(played: Played) -> None:
        played.transport.unread = 1
        await played.clock.go_to(35)
        assert played.pings == []
        played.transport.unread = 0
        await played.clock.go_to(45)
        assert played.pings == [40]

    run(scenario)


@pytest.mark.parametrize("over", ["ended", "closed", "closing"])
def test_a_stream_that_is_over_does_not_ping(over: str) -> None:
    async def scenario(played: Played) -> None:
        await played.clock.go_to(10)
        match over:
            case "ended":
                await played.stream.end()
            case "closed":
                played.stream.close()
            case "closing":
                played.transport.closing = True
        await played.clock.go_to(100)
        assert played.pings == [10]

    run(scenario)


def test_a_ping_that_is_decided_on_and_not_yet_written_does_not_follow_the_end() -> None:
    async def scenario(played: Played) -> None:
        played.clock.now = 10
        assert played.clock.due is not None
        played.clock.due[1]()
        await played.stream.end()
        await asyncio.sleep(0)
        assert played.pings == []

    run(scenario)


def test_a_client_that_leaves_while_it_is_pinged_is_no_error() -> None:
    async def scenario(played: Played) -> None:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        part: Any = played.stream

        async def reset(data: bytes) -> None:
            raise ConnectionResetError

        part._response.write = reset
        await played.clock.go_to(10)
        await asyncio.sleep(0)
        assert complaints == []

        async def broken(data: bytes) -> None:
            raise ValueError

        part._response.write = broken
        await played.clock.go_to(20)
        await asyncio.sleep(0)
        assert len(complaints) == 1

    run(scenario)
