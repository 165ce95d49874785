"""The relay between a supervisor and a worker that are sockets of the test, which chooses the order
of events.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from msgspec.structs import replace

from gateway.relay import attempt, client, generation
from gateway.relay.attempt import AT_ONCE
from gateway.relay.client import Relay
from gateway.relay.generation import Event, Generation
from supervisor.errors import BulkheadError
from supervisor.wire.codec import FrameDecoder, encode
from supervisor.wire.control_frames import Acquire, Died, Granted, Holds, Refused, ToSupervisor
from supervisor.wire.frames import Failed, Frame, Generate, Text, ToEngine

REQUEST = Generate("r1", Text("hello"), 1.5, max_tokens=7, stop=("x",))
DIED = Died("worker_crashed", "The worker m#1 died (SIGABRT).", None, 9)
NEVER = 1000.0
"""Seconds: a test that waits for this long has failed by its own limit before."""


class Peer:
    """The far end of one of the relay's connections."""

    def __init__(self, connection: socket.socket, direction: Any) -> None:
        self._socket = connection
        self._decoder: FrameDecoder[Frame] = FrameDecoder(direction)
        self._arrived: deque[Frame] = deque()
        self.holds: list[Holds] = []
        """What it has said of its places, which nobody is bothered with."""

    async def receive(self) -> Frame | None:
        while not self._arrived:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._socket, 2**16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            for frame in self._decoder.feed(data):
                if isinstance(frame, Holds):
                    self.holds.append(frame)
                else:
                    self._arrived.append(frame)
        return self._arrived.popleft()

    def unread(self, frame: Frame) -> None:
        self._arrived.appendleft(frame)

    async def send(self, *frames: Frame) -> None:
        await self.send_bytes(b"".join(map(encode, frames)))

    async def send_bytes(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def close(self) -> None:
        self._socket.close()


class Peers:
    """Listening sockets for both peers, and the relay between them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.control = str(folder / "control.sock")
        self.socket = str(folder / "worker.sock")
        self._listeners = {
            path: stack.enter_context(socket.socket(socket.AF_UNIX))
            for path in (self.control, self.socket)
        }
        for path, listener in self._listeners.items():
            listener.bind(path)
            listener.listen(8)
            listener.setblocking(False)
        self._silent: dict[str, dict[asyncio.Task[Frame | None], Peer]]
        self._silent = {path: {} for path in self._listeners}
        self._accepting: dict[str, asyncio.Task[Peer]] = {}
        self.relay = Relay(self.control)

    async def accept(self, path: str) -> Peer:
        """The next connection that says something; those opened early wait for their turn."""
        silent = self._silent[path]
        while True:
            for task in [task for task in silent if task.done()]:
                peer, frame = silent.pop(task), task.result()
                if frame is not None:
                    peer.unread(frame)
                    return peer
            # Never cancelled: what it has just accepted would be nobody's.
            accepting = self._accepting.get(path) or asyncio.create_task(self.connected(path))
            self._accepting[path] = accepting
            either: set[asyncio.Task[Any]] = {accepting, *silent}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if accepting.done():
                peer = self._accepting.pop(path).result()
                silent[asyncio.create_task(peer.receive())] = peer

    async def connected(self, path: str) -> Peer:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listeners[path])
        self._stack.enter_context(connection)
        return Peer(connection, ToSupervisor if path == self.control else ToEngine)

    async def start_several(
        self, choices: int, at_once: int = AT_ONCE, until: int = 0
    ) -> tuple[Generation, Peer, list[Peer]]:
        """A generation of several choices, its lease, and the worker's ends of the first ones.
        `until` as in `start`."""
        self.relay = Relay(self.control, at_once)
        requests = [replace(REQUEST, request_id=f"r{number}") for number in range(choices)]
        starting = asyncio.create_task(self.relay.start(requests, "alias", 5.0))
        lease = await self.accept(self.control)
        most = at_once if at_once < choices else 0
        assert await lease.receive() == Acquire("r0", "alias", 5.0, places=choices, at_once=most)
        await lease.send(Granted("m", "m#1", self.socket, until))
        workers = dict([await self.next_choice() for _ in requests[:at_once]])
        return await starting, lease, [workers[number] for number in range(len(workers))]

    async def next_choice(self) -> tuple[int, Peer]:
        """The next choice that the worker is given, and its end of it."""
        worker = await self.accept(self.socket)
        request = await worker.receive()
        assert isinstance(request, Generate)
        return int(request.request_id[1:]), worker

    def close(self, path: str) -> None:
        """Nobody listens there any more."""
        self._listeners[path].close()

    async def start(self, until: int = 0) -> tuple[Generation, Peer, Peer]:
        """A generation that runs, its lease and its worker. With `until` it is on probation up to
        that token, and others wait for it."""
        starting = asyncio.create_task(self.relay.start([REQUEST], "alias", 5.0))
        lease = await self.accept(self.control)
        assert await lease.receive() == Acquire("r1", "alias", 5.0)
        await lease.send(Granted("m", "m#1", self.socket, until))
        worker = await self.accept(self.socket)
        assert await worker.receive() == REQUEST
        return await starting, lease, worker


Scenario = Callable[[Peers], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run_scenario(request: pytest.FixtureRequest) -> Iterator[Callable[[Scenario], None]]:
    """Runs a scenario on an event loop of either kind; the gateway's is uvloop."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-", dir="/tmp") as folder:

        def run(scenario: Scenario) -> None:
            async def whole() -> None:
                with ExitStack() as stack:
                    async with asyncio.timeout(10):
                        await scenario(Peers(Path(folder), stack))
                for _ in range(5):
                    await asyncio.sleep(0)  # closed transports say goodbye on the loop

            with asyncio.Runner(loop_factory=request.param) as runner:
                runner.run(whole())

        yield run


@pytest.fixture
def relay_timeouts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how long the relay waits: for a cause, after a WorkerFault, and beyond the hold."""

    def set_to(*, cause: float = NEVER, fault: float = NEVER, answer: float = NEVER) -> None:
        monkeypatch.setattr(attempt, "_CAUSE_SECONDS", cause)
        monkeypatch.setattr(client, "_CONNECT_SECONDS", cause)
        monkeypatch.setattr(client, "_MISSING_SECONDS", cause)
        for module in (attempt, generation):
            monkeypatch.setattr(module, "FAULT_SECONDS", fault)
        for module in (generation, client):
            monkeypatch.setattr(module, "ANSWER_SECONDS", answer)

    return set_to


async def received(generation: Generation) -> Event:
    """The next frame of a request with one choice."""
    choice, frame = await generation.receive()
    assert choice == 0
    return frame


async def failure_of(waiting: Awaitable[object]) -> BulkheadError:
    with pytest.raises(BulkheadError) as caught:
        await waiting
    return caught.value


def same(error: BulkheadError, frame: Refused | Died | Failed) -> bool:
    return (error.code, error.message, error.param, error.retry_after) == (
        frame.code,
        frame.message,
        frame.param,
        frame.retry_after,
    )
