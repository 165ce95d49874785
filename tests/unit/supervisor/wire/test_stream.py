"""supervisor.wire.stream: frames over real sockets, whatever the peer does."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from supervisor.wire import control_frames, frames
from supervisor.wire import stream as stream_module
from supervisor.wire.codec import ProtocolError, TornFrame, encode
from supervisor.wire.control_frames import Acquire
from supervisor.wire.frames import End, Frame, Generate, Progress, Text, Token
from supervisor.wire.stream import FrameStream, connect, listen
from tests.helpers.frames import raw


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


@pytest.mark.parametrize(("text", "count"), [("", 1000), ("x" * 400, stream_module.UNREAD_FRAMES)])
def test_neither_many_small_frames_nor_few_large_ones_fill_the_memory(
    text: str, count: int
) -> None:
    """Of small ones the frames count, of large ones the bytes."""
    sent = [Token(number, text) for number in range(20_000)]
    data = b"".join(map(encode, sent))
    piece = 1000
    most = min(count, stream_module._UNREAD_MAX * len(sent) // len(data))

    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        stream.unread_frames = count
        done = accepted = 0
        while done < len(sent):
            idle = 0
            while idle < 3 and accepted < len(data):
                try:
                    accepted += peer.send(data[accepted : accepted + piece])
                    idle = 0
                except BlockingIOError:
                    idle += 1
                await asyncio.sleep(0)
            held = len(stream._arrived)
            # What the socket held is read at once when it is read again.
            assert held <= most + 2**18 * len(sent) // len(data)
            assert done or held <= most * 1.01 + piece // 10
            assert held >= min(most // 2, len(sent) - done)
            for _ in range(held):
                assert await stream.receive() == sent[done]
                done += 1
            await settle()
        peer.close()
        assert await stream.receive() is None

    run(scenario())


def test_a_server_serves_each_connection_and_closes_it_after_the_handler(path: str) -> None:
    async def echo(connection: FrameStream[control_frames.ToSupervisor]) -> None:
        frame = await connection.receive()
        assert isinstance(frame, Acquire)
        connection.send(control_frames.Granted(frame.model, "w#1", frame.request_id))
        await connection.receive()

    async def scenario() -> None:
        server = await listen(path, control_frames.ToSupervisor, echo)
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        clients: list[FrameStream[Any]] = [
            await connect(path, control_frames.ToGateway) for _ in range(8)
        ]
        for number, client in enumerate(clients):
            client.send(Acquire(f"r{number}", "m", 1.0))
        for number, client in enumerate(clients):
            assert await client.receive() == control_frames.Granted("m", "w#1", f"r{number}")
            client.send(control_frames.Serving())  # lets the handler end
            assert await client.receive() is None
        server.close()
        await server.wait_closed()

    run(scenario())


def test_a_handler_that_fails_still_closes_its_connection(path: str) -> None:
    async def fail(connection: FrameStream[control_frames.ToSupervisor]) -> None:
        raise RuntimeError("planned")

    async def scenario() -> list[str]:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(repr(context.get("exception"))))
        server = await listen(path, control_frames.ToSupervisor, fail)
        client: FrameStream[Any] = await connect(path, control_frames.ToGateway)
        assert await client.receive() is None
        server.close()
        await server.wait_closed()
        return told

    assert run(scenario()) in ([], ["RuntimeError('planned')"])


def test_connecting_where_nobody_listens_is_an_os_error(path: str) -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match="No such file"):
            await connect(path, control_frames.ToGateway)

    run(scenario())


def test_listening_twice_on_a_path_is_an_os_error_and_leaks_no_socket(path: str) -> None:
    async def handler(connection: FrameStream[control_frames.ToSupervisor]) -> None:
        await connection.receive()

    async def scenario() -> None:
        server = await listen(path, control_frames.ToSupervisor, handler)
        with pytest.raises(OSError, match="in use"):
            await listen(path, control_frames.ToSupervisor, handler)
        server.close()
        await server.wait_closed()

    run(scenario())


def test_what_is_there_is_taken_if_it_is_of_the_kind() -> None:
    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        assert stream.take(Token) is None
        before, arrival = stream.is_empty, stream.arrival()
        sent: list[Frame] = [Token(1, "a"), Token(2, "b"), End("stop", 1, 2), Token(3, "c")]
        peer.send(b"".join(map(encode, sent)))
        await arrival
        assert (before, stream.is_empty) == (True, False)
        taken = [stream.take(Token) for _ in range(4)]
        assert taken == [Token(1, "a"), Token(2, "b"), None, None]
        assert await stream.receive() == End("stop", 1, 2)
        assert stream.take(Token) == Token(3, "c")
        peer.close()
        await stream.arrival()
        assert (stream.ended, stream.is_empty) == (True, False)
        assert await stream.receive() is None

    run(scenario())


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_frame_larger_than_what_may_wait_unread_arrives_whole(before: int) -> None:
    sent = [*(Token(number, "x") for number in range(before)), Token(before, "x" * 3_000_000)]

    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        loop = asyncio.get_running_loop()
        sending = loop.create_task(loop.sock_sendall(peer, b"".join(map(encode, sent))))
        await settle()  # nobody receives yet
        assert [await stream.receive() for _ in sent] == sent
        await sending
        peer.close()
        assert await stream.receive() is None

    run(scenario())


def test_noted_frames_that_nobody_has_to_receive_do_not_stop_the_socket() -> None:
    sent = [Token(number, "x" * 1000) for number in range(3000)]

    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        noted: list[Token] = []
        stream.note_arrivals(noted.append)
        await asyncio.get_running_loop().sock_sendall(peer, b"".join(map(encode, sent)))
        peer.close()
        assert await stream.receive() is None
        assert noted == sent

    run(scenario())


def test_who_takes_all_has_a_paused_socket_read_again() -> None:
    async def scenario() -> None:
        stream, peer = await beside_raw_peer(frames.FromEngine)
        sent = [Token(number, "x" * 1000) for number in range(3000)]
        data = memoryview(b"".join(map(encode, sent)))
        loop = asyncio.get_running_loop()
        sending = loop.create_task(loop.sock_sendall(peer, data))
        taken: list[Token] = []
        while len(taken) < len(sent):
            if stream.is_empty:
                await stream.arrival()
            while (token := stream.take(Token)) is not None:
                taken.append(token)
            await settle()  # more comes than is taken at once
        assert taken == sent
        await sending
        peer.close()

    run(scenario())
