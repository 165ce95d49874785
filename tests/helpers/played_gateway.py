"""The real gateway on a real socket, in the test's own event loop, with requests that the test
plays: it says what comes of each, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

from gateway.app import build
from gateway.handlers.common import RELAY
from gateway.http.bodies import BodyBytes
from gateway.http.exchange import BODIES
from gateway.http.server import listening
from gateway.http.timing import Timing
from gateway.relay.generation import Event
from supervisor.config.schema import ServerSettings
from supervisor.wire.frames import Token
from tests.helpers.serving import DEADLINE

NEVER = 1000.0
"""Seconds: a test that waits for this long has failed by its own limit before."""
PATIENT = Timing(NEVER, NEVER, NEVER, NEVER, NEVER, 0.0, NEVER)
"""No limit is ever met; a test replaces the one that it is about."""


class PlayedGeneration:
    """What the handler takes for a running request."""

    model, worker, asked = "m", "m#1", ""

    def __init__(self) -> None:
        self.recoveries = self.position = self.prompt_tokens = 0
        self.holds: list[float] = []
        """What it was told to wait for a place after a death."""
        self.closed = asyncio.Event()
        self._events: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()
        self._ahead: tuple[int, Event] | Exception | None = None

    def play(self, *events: Event | Exception, choice: int = 0) -> None:
        """These come next."""
        for event in events:
            self._events.put_nowait(event if isinstance(event, Exception) else (choice, event))

    def wait_longer(self, hold: float) -> None:
        self.holds.append(hold)

    async def receive(self) -> tuple[int, Event]:
        event, self._ahead = self._ahead or await self._events.get(), None
        if isinstance(event, Exception):
            raise event
        return event

    def take(self) -> tuple[int, Token] | None:
        if self._ahead is None and not self._events.empty():
            self._ahead = self._events.get_nowait()
        match self._ahead:
            case (choice, Token() as token):
                self._ahead = None
                return choice, token
            case _:
                return None

    def close(self) -> None:
        self.closed.set()


class PlayedRelay:
    """Starts every request at once, with a generation that the test gets from `next`."""

    def __init__(self) -> None:
        self.holds: list[float] = []
        self.choices: list[Any] = []
        """Of all requests that have come."""
        self.granting = asyncio.Event()
        """Not set while requests wait for their places."""
        self.granting.set()
        self._started: asyncio.Queue[PlayedGeneration] = asyncio.Queue()

    async def start(
        self, choices: Any, model: str, hold: float, digest: bytes, keep_alive: float | None
    ) -> PlayedGeneration:
        self.holds.append(hold)
        self.choices += choices
        await self.granting.wait()
        generation = PlayedGeneration()
        self._started.put_nowait(generation)
        return generation

    async def count(self, chat: Any, *more: Any) -> int:
        """As `start`."""
        self.choices.append(chat)
        await self.granting.wait()
        return 3

    async def next(self) -> PlayedGeneration:
        return await self._started.get()

    async def close(self) -> None: ...


@dataclass
class Client:
    """A raw connection to the gateway."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: bytes = b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(
        self, body: dict[str, Any], *lines: str, path: str = "/v1/completions", version: str = "1.1"
    ) -> None:
        """Send a request with these further header lines."""
        encoded = json.dumps(body).encode()
        head = [f"POST {path} HTTP/{version}", "Host: localhost", *lines]
        head += ["Content-Type: application/json", f"Content-Length: {len(encoded)}", "", ""]
        self.send("\r\n".join(head).encode() + encoded)

    async def until(self, mark: bytes, times: int = 1) -> bytes:
        """Read until the mark has come so often; all that has been read."""
        while self.seen.count(mark) < times:
            data = await self.reader.read(2**16)
            assert data, f"ended before {mark!r}: {self.seen!r}"
            self.seen += data
        return self.seen

    async def rest(self) -> bytes:
        """Read to the end of the connection; all that has been read."""
        with contextlib.suppress(ConnectionResetError):
            while data := await self.reader.read(2**16):
                self.seen += data
        return self.seen


@dataclass
class Gateway:
    """A gateway that serves on `address`."""

    relay: PlayedRelay
    address: tuple[str, int]
    bodies: BodyBytes
    clients: list[Client] = field(default_factory=list)

    async def connect(self, receive_buffer: int = 0) -> Client:
        """A new connection, which is closed at the end of the test. With a receive buffer of so
        many bytes, not much more is read before the test reads."""
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, self.address)
        limit = receive_buffer or 2**16
        client = Client(*await asyncio.open_connection(sock=connection, limit=limit))
        self.clients.append(client)
        return client


@contextlib.asynccontextmanager
async def playing(
    timing: Timing, send_buffer: int = 0, settings: ServerSettings | None = None
) -> AsyncIterator[Gateway]:
    """A gateway with these limits; with a send buffer of so many bytes for each connection."""
    app = build(settings or ServerSettings(), "no-control-socket", timing)
    relay: Any = PlayedRelay()
    app[RELAY] = relay
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        async with listening(app, listener, backlog=512, shutdown_seconds=0.0):
            gateway = Gateway(relay, listener.getsockname(), app[BODIES])
            try:
                yield gateway
            finally:
                for client in gateway.clients:
                    client.writer.transport.abort()
                await turns()  # closed transports say goodbye on the loop


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run the scenario on the gateway's kind of event loop, within the tests' deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


async def turns(count: int = 50) -> None:
    """Let the loop turn so often: a timer that is due has fired then."""
    for _ in range(count):
        await asyncio.sleep(0)
