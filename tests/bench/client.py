"""The load client: many HTTP streams on one thread, as cheap as Python can do it.

It shares the machine with what it measures. While streams run it only reads sockets and notes when
bytes arrived (seconds, `time.perf_counter`); everything is parsed once all streams have ended.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench.answers import Answer, Failed, parse, parse_head

_READ_BYTES = 1 << 18
_CONNECT_SECONDS = 10.0
_SO_TIMESTAMPNS = 35
"""Linux' number of it, which Python does not name; with a timespec in an ancillary message."""
_STAMP_BYTES = socket.CMSG_SPACE(struct.calcsize("qq"))
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request on its way: what was sent, and what came back when."""

    request: bytes
    sent: float = 0.0
    ended: float = 0.0
    """When the answer's last byte arrived."""
    fault: str = ""
    """"": the answer ended as announced or by a close; else what happened to the connection."""
    closed: bool = False
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    _tail: bytes = b""
    _length: int | None = None
    _chunked: bool = False
    _size: int = 0

    def feed(self, at: float, data: bytes) -> bool:
        """Take what arrived; whether the answer is complete."""
        self.pieces.append((at, data))
        self._size += len(data)
        if self._chunked:
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        elif self._length is None:
            self._read_head()
        return self._tail == _LAST_CHUNK or self._size == self._length

    def _read_head(self) -> None:
        """Learn how the answer will end, once its head is complete."""
        so_far = b"".join(piece for _, piece in self.pieces)
        head, end, _ = so_far.partition(b"\r\n\r\n")
        if not end:
            return
        _, headers = parse_head(head)
        if headers.get("transfer-encoding") == "chunked":
            self._chunked = True
            self._tail = so_far[-len(_LAST_CHUNK) :]
        elif "content-length" in headers:
            self._length = len(head) + len(end) + int(headers["content-length"])

    @property
    def begun(self) -> bool:
        return bool(self.pieces)

    @property
    def worker(self) -> str:
        """Who answers, as in the header `x-bulkhead-worker`; "" before that is known."""
        head, end, _ = b"".join(piece for _, piece in self.pieces[:4]).partition(b"\r\n\r\n")
        return parse_head(head)[1].get("x-bulkhead-worker", "") if end else ""

    def answer(self) -> Answer:
        """Parse what came. Raises Failed when not even a head did, or a chunk is malformed."""
        return parse(self.pieces, closed=self.closed, fault=self.fault)

    def first_content(self) -> float:
        """Seconds from sending the request to the first token's event (TTFT)."""
        contents = self.answer().contents
        if not contents:
            raise Failed(f"no token: {self.fault} {self.pieces[-1:]!r}")
        return contents[0].at - self.sent


class Connection:
    """A client's connection, to be used for one exchange at a time. Raises OSError."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def receive(self) -> tuple[bytes, float]:
        """What has arrived, and when. Raises OSError."""
        return self.socket.recv(_READ_BYTES), time.perf_counter()

    def close(self) -> None:
        self.socket.close()


class Stamped(Connection):
    """One whose bytes the kernel stamps when it takes them from the server, so that how soon this
    process gets to read them is no part of the times. Linux alone: elsewhere it stamps as it
    reads."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.late: list[float] = []
        """Seconds from the kernel's stamps to this process's own."""
        if sys.platform == "linux":
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def receive(self) -> tuple[bytes, float]:
        """As of any connection, with the kernel's time."""
        data, stamps, _, _ = self.socket.recvmsg(_READ_BYTES, _STAMP_BYTES)
        now, wall = time.perf_counter(), time.time()
        for level, kind, value in stamps:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = struct.unpack("qq", value)
                self.late.append(wall - seconds - nanoseconds / 1e9)
                return data, now - self.late[-1]
        return data, now


def connect(port: int, count: int) -> list[Connection]:
    """Open connections one after another, so that no listen backlog overflows."""
    return [Connection(port) for _ in range(count)]


class Load:
    """Exchanges that run at the same time, each on a connection of its own."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, tuple[Connection, Exchange]] = {}

    def start(self, connection: Connection, exchange: Exchange) -> None:
        """Send the request, which must fit the socket's buffer."""
        exchange.sent = time.perf_counter()
        descriptor = connection.socket.fileno()
        self._running[descriptor] = (connection, exchange)
        self._selector.register(descriptor, selectors.EVENT_READ)
        try:
            sent = connection.socket.send(exchange.request)
        except OSError as error:
            self._end(descriptor, exchange, type(error).__name__)
            return
        if sent != len(exchange.request):
            self._end(descriptor, exchange, "the request does not fit the socket's buffer")

    @property
    def running(self) -> int:
        return len(self._running)

    def step(self, timeout: float) -> None:
        """Read whatever has arrived, waiting up to `timeout` seconds for something."""
        for key, _ in self._selector.select(timeout):
            connection, exchange = self._running[key.fd]
            try:
                data, now = connection.receive()
            except BlockingIOError:
                continue
            except OSError as error:
                self._end(key.fd, exchange, type(error).__name__)
                continue
            if not data:
                exchange.closed = True
                self._end(key.fd, exchange, "")
            elif exchange.feed(now, data):
                exchange.ended = now
                self._end(key.fd, exchange, "")

    def leave(self, exchange: Exchange) -> None:
        """Close the connection of one that is not wanted any more; one that has ended is fine."""
        for descriptor, (connection, running) in tuple(self._running.items()):
            if running is exchange:
                self._end(descriptor, exchange, "left")
                connection.close()

    def run(self, seconds: float) -> None:
        """Step until every exchange has ended; those that have not after `seconds` are given up."""
        deadline = time.monotonic() + seconds
        while self._running and (left := deadline - time.monotonic()) > 0:
            self.step(left)
        self.give_up()

    def give_up(self) -> None:
        """End what still runs, with a fault."""
        for descriptor, (connection, exchange) in tuple(self._running.items()):
            self._end(descriptor, exchange, "no end before the deadline")
            connection.close()

    def _end(self, descriptor: int, exchange: Exchange, fault: str) -> None:
        exchange.fault = fault
        exchange.ended = exchange.ended or time.perf_counter()
        del self._running[descriptor]
        self._selector.unregister(descriptor)


def exchange_all(port: int, requests: Iterable[bytes], seconds: float) -> list[Exchange]:
    """Send all requests at once, on new connections that are opened before the first is sent."""
    exchanges = [Exchange(request) for request in requests]
    connections = connect(port, len(exchanges))
    try:
        run_on(connections, exchanges, seconds)
    finally:
        for connection in connections:
            connection.close()
    return exchanges


def run_on(
    connections: Sequence[Connection], exchanges: Sequence[Exchange], seconds: float
) -> None:
    """Run the exchanges on open connections."""
    load = Load()
    for connection, exchange in zip(connections, exchanges, strict=True):
        load.start(connection, exchange)
    load.run(seconds)


def get_request(path: str) -> bytes:
    """A GET without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


def get(port: int, path: str, seconds: float = 30.0) -> Answer:
    """One GET. Raises Failed unless it is answered whole."""
    (exchange,) = exchange_all(port, [get_request(path)], seconds)
    answer = exchange.answer()
    if not answer.whole:
        raise Failed(f"GET {path}: cut, {exchange.fault}")
    return answer


def post(path: str, body: Mapping[str, object], **headers: str) -> bytes:
    """A POST of JSON."""
    encoded = json.dumps(body).encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}"
        f"Content-Type: application/json\r\nContent-Length: {len(encoded)}\r\n\r\n"
    )
    return head.encode() + encoded


def chat(model: str, content: str, max_tokens: int, **more: object) -> bytes:
    """A streamed chat request of one message, greedy, with usage."""
    return post(
        "/v1/chat/completions",
        {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        },
    )
