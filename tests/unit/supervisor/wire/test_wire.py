"""supervisor.wire: every frame survives the trip, and no bytes do harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
import traceback
import typing
from collections.abc import Coroutine, Iterator
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.wire import frames
from supervisor.wire.codec import (
    HEADER,
    REPLY_LIMIT,
    FrameDecoder,
    ProtocolError,
    TornFrame,
    encode,
)
from supervisor.wire.frames import (
    Acquire,
    Call,
    Calling,
    Chat,
    End,
    Frame,
    Generate,
    Logprob,
    Logprobs,
    Progress,
    Sampling,
    Structure,
    Text,
    Token,
    Tokens,
)
from supervisor.wire.stream import FrameStream, connect, listen

DIRECTIONS: dict[str, Any] = {
    "ToSupervisor": frames.ToSupervisor,
    "ToGateway": frames.ToGateway,
    "ToWorker": frames.ToWorker,
    "FromWorker": frames.FromWorker,
    "ToEngine": frames.ToEngine,
    "FromEngine": frames.FromEngine,
}
SECRET = "the-prompt-of-somebody"
DEPTH = 100_000
patient = settings(deadline=None, max_examples=50)


def members(direction: Any) -> tuple[type[Frame], ...]:
    return typing.get_args(direction) or (direction,)


integers = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: integers,
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(),
    type(None): st.none(),
    Any: anything,
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have."""
    if hint in PLAIN:
        return PLAIN[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is UnionType or origin is typing.Union:
        return st.one_of([values(argument) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is not ...:
        return st.tuples(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=4).map(tuple)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=4)
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{name: values(hints[name]) for name in hint.__struct_fields__})


def frames_of(direction: Any) -> st.SearchStrategy[Frame]:
    return st.one_of([values(kind) for kind in members(direction)])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in chunks, cut at these places (modulo its length)."""
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(ends)]


def feed(decoder: FrameDecoder[Frame], chunks: list[bytes]) -> list[Frame]:
    return [frame for chunk in chunks for frame in decoder.feed(chunk)]


def raw(body: Any) -> bytes:
    """A well-framed message of any content."""
    data = msgspec.msgpack.encode(body)
    return HEADER.pack(len(data)) + data


# ── codec ────────────────────────────────────────────────────────────────────────────────────────


def test_every_frame_type_belongs_to_a_direction() -> None:
    inner = {Chat, Text, Tokens, Sampling, Calling, Structure, Call, Logprob, Logprobs}
    known = {kind for direction in DIRECTIONS.values() for kind in members(direction)}
    assert known | inner == set(Frame.__subclasses__())


@pytest.mark.parametrize("name", DIRECTIONS)
@patient
@given(data=st.data(), places=st.lists(st.integers(0, 10**6), max_size=8))
def test_frames_survive_any_chunking(name: str, data: st.DataObject, places: list[int]) -> None:
    sent = data.draw(st.lists(frames_of(DIRECTIONS[name]), max_size=4))
    decoder: FrameDecoder[Frame] = FrameDecoder(DIRECTIONS[name])
    received = feed(decoder, cut(b"".join(map(encode, sent)), places))
    assert received == sent
    assert list(map(type, received)) == list(map(type, sent))
    decoder.eof()


@pytest.mark.parametrize("name", DIRECTIONS)
@patient
@given(data=st.data())
def test_frames_survive_byte_by_byte(name: str, data: st.DataObject) -> None:
    sent = data.draw(frames_of(DIRECTIONS[name]))
    decoder: FrameDecoder[Frame] = FrameDecoder(DIRECTIONS[name])
    assert feed(decoder, [bytes([byte]) for byte in encode(sent)]) == [sent]


@patient
@given(st.lists(frames_of(frames.FromEngine), min_size=1, max_size=4), st.data())
def test_a_stream_that_ends_inside_a_frame_is_torn(sent: list[Frame], data: st.DataObject) -> None:
    whole = [encode(frame) for frame in sent]
    stream = b"".join(whole)
    length = data.draw(st.integers(0, len(stream)))
    ends = [sum(map(len, whole[: count + 1])) for count in range(len(whole))]
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    assert feed(decoder, [stream[:length]]) == sent[: sum(end <= length for end in ends)]
    if length in (0, *ends):
        decoder.eof()
    else:
        with pytest.raises(TornFrame):
            decoder.eof()


@pytest.mark.parametrize("name", DIRECTIONS)
@patient
@given(data=st.data())
def test_a_frame_of_another_connection_is_refused(name: str, data: st.DataObject) -> None:
    expected = members(DIRECTIONS[name])
    others = {kind for direction in DIRECTIONS.values() for kind in members(direction)}
    kind = data.draw(st.sampled_from(sorted(others - set(expected), key=lambda k: k.__name__)))
    decoder: FrameDecoder[Frame] = FrameDecoder(DIRECTIONS[name])
    with pytest.raises(ProtocolError):
        feed(decoder, [encode(data.draw(values(kind)))])


@pytest.mark.parametrize("excess", [1, 2**20, 0xFFFFFFFF - 1000])
def test_an_oversized_length_is_refused_by_its_header_alone(excess: int) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine, limit=1000)
    with pytest.raises(ProtocolError, match="exceeds 1000"):
        feed(decoder, [HEADER.pack(1000 + excess)])


def test_a_frame_of_exactly_the_limit_passes() -> None:
    frame = Token(1, "x" * 500)
    decoder: FrameDecoder[Frame] = FrameDecoder(
        frames.FromEngine, limit=len(encode(frame)) - HEADER.size
    )
    assert feed(decoder, [encode(frame)]) == [frame]


def test_the_limit_of_replies_is_the_default() -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    assert feed(decoder, [HEADER.pack(REPLY_LIMIT)]) == []
    with pytest.raises(ProtocolError):
        feed(FrameDecoder(frames.FromEngine), [HEADER.pack(REPLY_LIMIT + 1)])


@patient
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_arbitrary_bytes_are_frames_or_a_protocol_error(data: bytes, places: list[int]) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine, limit=1000)
    with contextlib.suppress(ProtocolError):
        feed(decoder, cut(data, places))
        decoder.eof()


@patient
@given(st.binary(max_size=100))
def test_an_arbitrary_body_is_a_frame_or_a_protocol_error(body: bytes) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.ToEngine)
    with contextlib.suppress(ProtocolError):
        feed(decoder, [HEADER.pack(len(body)) + body])


DEEP = b"\x91" * DEPTH + b"\xc0"
MALFORMED = {
    "empty body": HEADER.pack(0),
    "not msgpack": HEADER.pack(1) + b"\xc1",
    "no array": raw("token"),
    "no tag": raw([]),
    "unknown tag": raw([SECRET, 1, "x"]),
    "too few fields": raw(["token", 1]),
    "text for a number": raw(["token", SECRET, "x"]),
    "number for text": raw(["token", 1, 2]),
    "bool for a number": raw(["token", True, "x"]),
    "null": raw(["token", None, "x"]),
    "unknown literal": raw(["end", SECRET, 1, 2]),
    "trailing bytes": HEADER.pack(len(encode(Token(1, "x"))) - HEADER.size + 1)
    + encode(Token(1, "x"))[HEADER.size :]
    + b"\xc0",
    "not UTF-8": HEADER.pack(10) + b"\x93\xa5token\x01\xa1\xff",
    "not-a-number for a number": HEADER.pack(18) + b"\x93\xa5token\xcb" + b"\xff" * 8 + b"\xa1x",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_frame_is_a_protocol_error_that_quotes_nothing(name: str) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    with pytest.raises(ProtocolError) as caught:
        feed(decoder, [MALFORMED[name]])
    assert not isinstance(caught.value, TornFrame)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_deep_nesting_is_a_protocol_error_both_ways() -> None:
    head = msgspec.msgpack.encode(["generate", "r", ["chat", [{"content": None}]], 1.0])
    body = head.replace(b"\xa7content\xc0", b"\xa7content" + DEEP)
    with pytest.raises(ProtocolError):
        feed(FrameDecoder(frames.ToEngine), [HEADER.pack(len(body)) + body])
    tree: list[Any] = []
    for _ in range(DEPTH):
        tree = [tree]
    with pytest.raises(ProtocolError):
        encode(Generate("r", Chat([{"content": tree}]), 1.0))
    while tree:  # freeing it at once would recurse as well
        tree = tree.pop()


@pytest.mark.parametrize(
    "content", [SECRET + "\ud800", [SECRET + "\udfff"], {"\ud800": SECRET}, 2**64, -(2**63) - 1]
)
def test_what_cannot_be_encoded_is_a_protocol_error_that_quotes_nothing(content: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(Generate("r", Chat([{"role": "user", "content": content}]), 1.0))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_good_frames_before_a_bad_one_are_delivered() -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    received = decoder.feed(encode(Token(1, "a")) + encode(Token(2, "b")) + raw([]))
    assert [next(received), next(received)] == [Token(1, "a"), Token(2, "b")]
    with pytest.raises(ProtocolError):
        next(received)


# ── stream ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def path() -> Iterator[str]:
    """For a Unix socket: pytest's own folders are too deep for one on macOS."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-", dir="/tmp") as folder:
        yield str(Path(folder) / "test.sock")


T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """What the scenario returns; one that hangs fails."""

    async def limited() -> T:
        async with asyncio.timeout(20):
            return await scenario

    return asyncio.run(limited())


async def attach(end: socket.socket, direction: Any) -> FrameStream[Any]:
    stream: FrameStream[Any] = FrameStream(direction)
    await asyncio.get_running_loop().create_connection(lambda: stream, sock=end)
    return stream


async def settle() -> None:
    """Let the loop look at its sockets and run what is due; it is this thread's alone."""
    for _ in range(10):
        await asyncio.sleep(0)


async def beside_raw_peer(direction: Any) -> tuple[FrameStream[Any], socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return await attach(ours, direction), theirs


def test_frames_cross_a_socket_in_order_both_ways() -> None:
    async def scenario() -> None:
        a, b = socket.socketpair()
        gateway = await attach(a, frames.FromEngine)
        worker = await attach(b, frames.ToEngine)
        request = Generate("r", Text("hello"), 1.5, stop=("x", "y"))
        gateway.send(request)
        assert await worker.receive() == request
        sent = [*(Token(i, str(i)) for i in range(100)), End("stop", 1, 100)]
        worker.send(*sent[:50])
        worker.send(*sent[50:])
        assert [await gateway.receive() for _ in sent] == sent
        gateway.close()
        assert await worker.receive() is None
        assert await worker.receive() is None
        worker.close()
        await settle()

    run(scenario())


def test_what_arrived_before_the_end_is_still_received() -> None:
    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        peer.send(encode(Token(1, "a")) + encode(Token(2, "b")))
        peer.close()
        await settle()
        assert [await stream.receive() for _ in range(3)] == [Token(1, "a"), Token(2, "b"), None]
        stream.close()
        await settle()

    run(scenario())


@pytest.mark.parametrize(
    ("tail", "fault"),
    [(b"\0\0", TornFrame), (encode(Token(3, "c"))[:-1], TornFrame), (raw(["?"]), ProtocolError)],
)
def test_frames_come_before_a_fault_and_the_fault_stays(
    tail: bytes, fault: type[ProtocolError]
) -> None:
    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        peer.send(encode(Token(1, "a")) + encode(Token(2, "b")) + tail)
        peer.shutdown(socket.SHUT_WR)
        assert [await stream.receive() for _ in range(2)] == [Token(1, "a"), Token(2, "b")]
        for _ in range(2):
            with pytest.raises(fault) as caught:
                await stream.receive()
            assert type(caught.value) is fault
        stream.close()
        peer.close()
        await settle()

    run(scenario())


def test_a_malformed_frame_closes_the_connection() -> None:
    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        peer.send(raw(["?"]))
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
        with pytest.raises(ProtocolError):
            await stream.receive()
        peer.close()
        await settle()

    run(scenario())


def test_sending_to_a_closed_connection_is_nothing() -> None:
    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        peer.close()
        assert await stream.receive() is None
        stream.send(Generate("r", Text("x"), 1.0))
        stream.close()
        stream.close()
        stream.send(Generate("r", Text("x"), 1.0))
        assert await stream.receive() is None
        await settle()

    run(scenario())


def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        for number in range(50):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await stream.receive()
            peer.send(encode(Token(number, "x")))
            assert await stream.receive() == Token(number, "x")
        stream.close()
        peer.close()
        await settle()

    run(scenario())


def test_a_receive_that_is_cancelled_when_its_frame_arrives_loses_nothing() -> None:
    async def scenario() -> None:
        stream: FrameStream[Frame] = FrameStream(frames.FromEngine)
        waiting = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        stream.data_received(encode(Token(1, "x")))  # wakes the task, which has not run yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await stream.receive() == Token(1, "x")

    run(scenario())


def test_a_slow_reader_stops_its_peer_and_still_gets_everything() -> None:
    total = 100_000
    data = b"".join(encode(Progress(number, total)) for number in range(total))

    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        accepted = idle = 0
        while accepted < len(data) and idle < 20:
            try:
                accepted += peer.send(data[accepted : accepted + 2**16])
                idle = 0
            except BlockingIOError:
                idle += 1
                await asyncio.sleep(0)  # the loop reads now, if it still reads at all
        assert accepted < len(data) // 2
        rest = asyncio.create_task(asyncio.get_running_loop().sock_sendall(peer, data[accepted:]))
        for number in range(total):
            assert await stream.receive() == Progress(number, total)
        await rest
        peer.close()
        assert await stream.receive() is None
        await settle()

    run(scenario())


def test_a_server_serves_each_connection_and_closes_it_after_the_handler(path: str) -> None:
    async def echo(connection: FrameStream[frames.ToSupervisor]) -> None:
        frame = await connection.receive()
        assert isinstance(frame, Acquire)
        connection.send(frames.Granted(frame.model, "w#1", frame.request_id))
        await connection.receive()

    async def scenario() -> None:
        server = await listen(path, frames.ToSupervisor, echo)
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        clients: list[FrameStream[Any]] = [await connect(path, frames.ToGateway) for _ in range(8)]
        for number, client in enumerate(clients):
            client.send(Acquire(f"r{number}", "m", 1.0))
        for number, client in enumerate(clients):
            assert await client.receive() == frames.Granted("m", "w#1", f"r{number}")
            client.send(frames.Serving())  # lets the handler end
            assert await client.receive() is None
        server.close()
        await server.wait_closed()

    run(scenario())


def test_a_handler_that_fails_still_closes_its_connection(path: str) -> None:
    async def fail(connection: FrameStream[frames.ToSupervisor]) -> None:
        raise RuntimeError("planned")

    async def scenario() -> list[str]:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(repr(context.get("exception"))))
        server = await listen(path, frames.ToSupervisor, fail)
        client: FrameStream[Any] = await connect(path, frames.ToGateway)
        assert await client.receive() is None
        server.close()
        await server.wait_closed()
        return told

    assert run(scenario()) in ([], ["RuntimeError('planned')"])


def test_connecting_where_nobody_listens_is_an_os_error(path: str) -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match="No such file"):
            await connect(path, frames.ToGateway)

    run(scenario())


def test_listening_twice_on_a_path_is_an_os_error_and_leaks_no_socket(path: str) -> None:
    async def handler(connection: FrameStream[frames.ToSupervisor]) -> None:
        await connection.receive()

    async def scenario() -> None:
        server = await listen(path, frames.ToSupervisor, handler)
        with pytest.raises(OSError, match="in use"):
            await listen(path, frames.ToSupervisor, handler)
        server.close()
        await server.wait_closed()

    run(scenario())
