"""Frames written from the MLX thread: in order, never blocking, never on another's socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from supervisor.wire.codec import REPLY_LIMIT, FrameDecoder, encode
from supervisor.wire.frames import End, Failed, FromEngine, Token
from worker.sink import Overflow, SocketSink

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        theirs.settimeout(10)
        yield ours, theirs


def received(sock: socket.socket, count: int) -> list[FromEngine]:
    decoder: FrameDecoder[FromEngine] = FrameDecoder(FromEngine)
    frames: list[FromEngine] = []
    while len(frames) < count:
        frames += decoder.feed(sock.recv(65536))
    return frames


def test_frames_go_straight_to_the_kernel(pair: Pair) -> None:
    overflow: list[bytes] = []
    sink = SocketSink(pair[0], overflow.append)
    sink.send([Token(1, "a"), Token(2, "b")])
    assert received(pair[1], 2) == [Token(1, "a"), Token(2, "b")]
    assert overflow == []


def test_what_the_kernel_does_not_take_goes_round_in_order(pair: Pair) -> None:
    """A peer that does not read: no byte is lost, and none overtakes another."""
    overflow: list[bytes] = []
    sink = SocketSink(pair[0], overflow.append)
    sent = [Token(number, "x" * 100) for number in range(20_000)]
    for frame in sent:
        sink.send([frame])
    assert overflow
    pair[0].close()
    stream = b""
    while data := pair[1].recv(1 << 20):
        stream += data
    stream += b"".join(overflow)
    assert stream == b"".join(map(encode, sent))


def test_once_round_always_round(pair: Pair) -> None:
    overflow: list[bytes] = []
    sink = SocketSink(pair[0], overflow.append)
    while not overflow:
        sink.send([Token(0, "x" * 1000)])
    assert pair[1].recv(1 << 20)  # there is room again
    sink.send([Token(1, "late")])
    assert overflow[-1] == encode(Token(1, "late"))


def test_the_loop_is_woken_once_for_all_that_has_come() -> None:
    woken: list[Callable[[], None]] = []
    sent: list[bytes] = []
    overflow = Overflow(woken.append, sent.append)
    for piece in (b"a", b"b", b"c"):
        overflow.put(piece)
    assert len(woken) == 1
    woken.pop()()
    overflow.put(b"d")
    woken.pop()()
    assert sent == [b"abc", b"d"]


def test_what_comes_while_the_loop_looks_is_sent_and_nothing_twice() -> None:
    woken: list[Callable[[], None]] = []
    sent: list[bytes] = []

    def send(data: bytes) -> None:
        sent.append(data)
        if len(sent) == 1:
            overflow.put(b"b")

    overflow = Overflow(woken.append, send)
    overflow.put(b"a")
    while woken:
        woken.pop()()
    assert sent == [b"a", b"b"]


def test_a_peer_that_has_left_is_no_error(pair: Pair) -> None:
    overflow: list[bytes] = []
    sink = SocketSink(pair[0], overflow.append)
    pair[1].close()
    for number in range(3):
        sink.send([Token(number, "x")])
    assert overflow == []


def test_the_end_is_known_before_the_peer_can_answer_it(pair: Pair) -> None:
    sink = SocketSink(pair[0], lambda _: None)
    sink.send([Token(1, "a")])
    before = sink.ended
    sink.send([Token(2, "b"), End("stop", 1, 2)])
    assert (before, sink.ended) == (False, True)
    sink.close()
    assert pair[0].fileno() == -1


def test_a_frame_that_the_gateway_would_not_take_ends_its_request_alone(pair: Pair) -> None:
    overflow: list[bytes] = []
    sink = SocketSink(pair[0], overflow.append)
    sink.send([Token(1, "a")])
    sink.send([Token(2, "x" * REPLY_LIMIT), End("stop", 1, 2)])
    sink.send([Token(3, "b")])
    assert not sink.ended  # so that the job is cancelled
    pair[0].close()
    first, second = received(pair[1], 2)
    assert first == Token(1, "a")
    assert isinstance(second, Failed)
    assert second.code == "internal_error"
    assert pair[1].recv(1) == b""
    assert overflow == []
