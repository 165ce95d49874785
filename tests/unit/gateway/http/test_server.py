"""gateway.http.server: clients that are slow, silent or gone, and old ones."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from dataclasses import replace

import pytest
from aiohttp import web

from gateway.http import event_stream, exchange, server
from gateway.http.bodies import BodyBytes
from gateway.http.timing import Timing
from supervisor.wire.frames import Accepted, End, Token
from tests.helpers.played_gateway import PATIENT, Client, Gateway, play, playing, turns

BODY = {"model": "m", "prompt": "x"}
STREAM = {**BODY, "stream": True}
SOON = 0.05
MODELS = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n"
HALF = MODELS[:20]
HALF_BODY = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    b"Content-Type: application/json\r\n\r\n{"
)
TEXT = b'"openapi"'


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> asyncio.Semaphore:
    """Released for each connection that has ended."""
    ended = asyncio.Semaphore(0)
    told = server._Connection.connection_lost

    def tell(connection: server._Connection, exc: BaseException | None) -> None:
        told(connection, exc)
        ended.release()

    monkeypatch.setattr(server._Connection, "connection_lost", tell)
    return ended


# ── slow senders ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sent", [b"", b"G", HALF, MODELS, b"\r\n"])
def test_headers_have_to_be_complete_in_time(sent: bytes) -> None:
    async def scenario() -> None:
        async with playing(replace(PATIENT, request_head=SOON)) as gateway:
            client = await gateway.connect()
            client.send(sent)
            assert await client.rest() == b""

    play(scenario)


def test_headers_that_grow_are_still_late() -> None:
    """Slowloris: a byte now and then buys no time."""

    async def scenario() -> None:
        async with playing(replace(PATIENT, request_head=SOON)) as gateway:
            client = await gateway.connect()
            client.send(MODELS)
            ended = asyncio.create_task(client.rest())
            while not ended.done():
                client.send(b"x-more: 1\r\n")
                await asyncio.wait([ended], timeout=SOON / 10)
            assert ended.result() == b""

    play(scenario)


def test_the_headers_of_a_later_request_have_to_be_complete_in_time() -> None:
    async def scenario() -> None:
        async with playing(replace(PATIENT, request_head=4 * SOON)) as gateway:
            client = await gateway.connect()
            client.send(MODELS + b"\r\n")
            await client.until(TEXT)
            client.send(HALF)
            assert (await client.rest()).count(b"HTTP/1.1") == 1

    play(scenario)


def test_that_time_is_not_the_answers() -> None:
    async def scenario() -> None:
        async with playing(replace(PATIENT, request_head=4 * SOON, silence=SOON)) as gateway:
            client = await gateway.connect()
            client.post(STREAM)
            generation = await gateway.relay.next()
            generation.play(Token(1, "a"))
            await client.until(b": ping\n\n", times=3)  # so that the time is over
            generation.play(End("stop", 3, 1))
            await client.until(b"[DONE]")
            client.send(MODELS + b"\r\n")
            await client.until(TEXT)

    play(scenario)


def test_an_idle_connection_has_more_time_than_headers() -> None:
    async def scenario() -> None:
        async with playing(replace(PATIENT, request_head=4 * SOON)) as gateway:
            client = await gateway.connect()
            client.send(MODELS + b"\r\n")
            await client.until(TEXT)
            later = await gateway.connect()
            assert await later.rest() == b""
            client.send(MODELS + b"\r\n")
            await client.until(TEXT, times=2)

    play(scenario)


def test_an_idle_connection_is_kept_for_a_while() -> None:
    async def scenario() -> None:
        async with playing(replace(PATIENT, keep_alive=SOON)) as gateway:
            client = await gateway.connect()
            client.send(MODELS + b"\r\n")
            assert (await client.rest()).count(b"HTTP/1.1 200") == 1

    play(scenario)


@pytest.mark.parametrize("more", ["", "Expect: 100-continue\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_body_that_stops_gets_408(more: str) -> None:
    async def scenario() -> None:
        async with playing(replace(PATIENT, body=SOON, pace=10.0)) as gateway:
            client = await gateway.connect()
            length = "" if "chunked" in more else "Content-Length: 1000\r\n"
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{length}{more}\r\n"
            client.send(head.encode())
            answer = await client.rest()
            if "Expect" in more:
                answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 408 ")
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error["code"] == "request_timeout"
            assert error["type"] == "invalid_request_error"

    play(scenario)


@pytest.mark.parametrize("grows", [True, False])
def test_a_body_that_keeps_the_pace_is_read(grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks are the test's own, one after each ten bytes, and one after none."""

    async def scenario() -> None:
        made: list[exchange._BodyPace] = []
        start = exchange._BodyPace._set

        def note(pace: exchange._BodyPace) -> asyncio.TimerHandle:
            made.append(pace)
            return start(pace)

        monkeypatch.setattr(exchange._BodyPace, "_set", note)
        async with playing(replace(PATIENT, pace=10 / PATIENT.body)) as gateway:
            client = await gateway.connect()
            body = b" " * 30 + json.dumps(BODY).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            client.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            for sent in (10, 20, 30):
                client.send(b" " * 10)
                while not made or made[0]._content.total_bytes < sent:
                    await turns(1)
                made[0]._look()
            if grows:
                client.send(body[30:])
                (await gateway.relay.next()).play(Token(1, "a"), End("stop", 3, 1))
            else:
                made[0]._look()
            status = b"200" if grows else b"408"
            assert (await client.rest()).startswith(b"HTTP/1.1 " + status)

    play(scenario)


# ── slow readers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("kilobytes", [40, 85, 1000])
def test_who_reads_nothing_is_let_go(
    stream: bool, connection: str, kilobytes: int, lost: asyncio.Semaphore
) -> None:
    """In the middle of an answer and at its very end, and when all of it waits in our buffers while
    the connection is idle or is being closed."""

    async def scenario() -> None:
        timing = replace(PATIENT, reading=SOON)
        async with playing(timing, send_buffer=4096) as gateway:
            client = await gateway.connect(receive_buffer=4096)
            client.post({**BODY, "stream": stream}, f"Connection: {connection}")
            generation = await gateway.relay.next()
            generation.play(*[Token(1, "x" * 1000)] * kilobytes, End("stop", 3, kilobytes))
            await generation.closed.wait()
            await lost.acquire()

    play(scenario)


def test_who_reads_slowly_is_not(lost: asyncio.Semaphore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks are the test's own, one after each 50 KB that the client has read."""

    async def scenario() -> None:
        made: list[server._Connection] = []
        begin = server._Connection.begin

        def note(connection: server._Connection, request: web.BaseRequest) -> None:
            begin(connection, request)
            made.append(connection)

        monkeypatch.setattr(server._Connection, "begin", note)
        async with playing(PATIENT, send_buffer=4096) as gateway:
            client = await gateway.connect(receive_buffer=4096)
            client.post(BODY)
            generation = await gateway.relay.next()
            generation.play(*[Token(1, "x" * 1000)] * 1000, End("stop", 3, 1000))
            for _ in range(15):
                await client.reader.readexactly(50_000)
                made[0]._look_at_reading()
            assert lost.locked()
            made[0]._look_at_reading()
            await lost.acquire()

    play(scenario)


def test_pings_do_not_pile_up_before_who_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        sizes: list[int] = []
        enough = asyncio.Event()
        look = event_stream.EventStream._look

        def seen(stream: event_stream.EventStream) -> None:
            look(stream)
            transport = stream._request.transport
            assert transport is not None
            if (size := transport.get_write_buffer_size()) > 10_000:
                sizes.append(size)
            if len(sizes) == 10:
                enough.set()

        monkeypatch.setattr(event_stream.EventStream, "_look", seen)
        async with playing(replace(PATIENT, silence=0.001), send_buffer=4096) as gateway:
            client = await gateway.connect(receive_buffer=4096)
            client.post(STREAM)
            generation = await gateway.relay.next()
            generation.play(*[Token(1, "x" * 1000)] * 50)
            await enough.wait()
            assert len(set(sizes[1:])) == 1

    play(scenario)


# ── many of them ─────────────────────────────────────────────────────────────────────────────────


def test_three_hundred_stalled_connections_do_not_keep_out_others(
    lost: asyncio.Semaphore,
) -> None:
    async def scenario() -> None:
        timing = Timing(request_head=1.0, keep_alive=1.0, body=1.0)
        async with playing(timing) as gateway:
            before = len(os.listdir("/dev/fd"))
            stalled = []
            for number in range(300):
                client = await gateway.connect()
                client.send([b"", HALF, HALF_BODY, MODELS + b"\r\n"][number % 4])
                stalled.append(client)
            for _ in range(20):
                other = await gateway.connect()
                other.post(STREAM, "Connection: close")
                generation = await gateway.relay.next()
                generation.play(Accepted(3), Token(1, "a"), End("stop", 3, 1))
                assert b"[DONE]" in await other.rest()
                other.writer.close()
            answers = [await client.rest() for client in stalled]
            assert {answer[:12] for answer in answers[0::4] + answers[1::4]} == {b""}
            assert {answer[:12] for answer in answers[2::4]} == {b"HTTP/1.1 408"}
            assert {answer[:12] for answer in answers[3::4]} == {b"HTTP/1.1 200"}
            for client in stalled:
                client.writer.transport.abort()
            for _ in range(320):
                await lost.acquire()
            await turns()
            assert len(os.listdir("/dev/fd")) <= before

    play(scenario)


def test_the_longest_stalled_make_room_where_descriptors_are_few(
    lost: asyncio.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(server, "connections_at_most", lambda _: 4)
        async with playing(replace(PATIENT, stalling=0.0)) as gateway:
            working = await gateway.connect()
            working.post(STREAM)
            generation = await gateway.relay.next()
            stalled = [await gateway.connect() for _ in range(3)]
            for client, sent in zip(stalled, (MODELS + b"\r\n", HALF_BODY, HALF), strict=True):
                client.send(sent)
            await stalled[0].until(TEXT)
            served = []
            for _ in range(3):
                client = await gateway.connect()
                await streamed(gateway, client, "1.1")
                await client.until(b"[DONE]")
                served.append(client)
            # Who only connected has stalled for longer than who was answered since.
            assert [await stalled[place].rest() for place in (1, 2)] == [b"", b""]
            assert (await stalled[0].rest()).count(b"HTTP/1.1") == 1
            generation.play(Token(1, "a"), End("stop", 3, 1))
            await working.until(b"[DONE]")
            await streamed(gateway, served[0], "1.1")
            await served[0].until(b"[DONE]", times=2)

    play(scenario)


def test_who_comes_makes_room_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(server, "connections_at_most", lambda _: 0)
        async with playing(replace(PATIENT, stalling=0.0)) as gateway:
            client = await gateway.connect()
            client.send(MODELS + b"\r\n")
            await client.until(TEXT)

    play(scenario)


def test_many_who_come_at_once_make_no_room_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(server, "connections_at_most", lambda _: 4)
        async with playing(PATIENT) as gateway:
            clients = [await gateway.connect() for _ in range(8)]
            for client in clients:
                client.send(MODELS + b"\r\n")
            for client in clients:
                await client.until(TEXT)

    play(scenario)


def test_a_burst_of_stalled_connections_leaves_room_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(server, "connections_at_most", lambda _: 4)
        async with playing(PATIENT) as gateway:
            stalled = []
            for _ in range(30):
                stalled.append(await gateway.connect())
                stalled[-1].send(HALF)
            client = await gateway.connect()
            client.send(MODELS + b"\r\n")
            await client.until(TEXT)
            assert [await each.rest() for each in stalled[:20]] == [b""] * 20

    play(scenario)


@pytest.mark.parametrize("files", [256, 1024, 16384, resource.RLIM_INFINITY])
def test_how_many_connections_leave_descriptors_for_what_they_ask_for(files: int) -> None:
    bound = server.connections_at_most(files)
    assert bound >= 64
    if files != resource.RLIM_INFINITY:
        assert 4 * bound <= files


# ── old clients ──────────────────────────────────────────────────────────────────────────────────


async def streamed(gateway: Gateway, client: Client, version: str, *lines: str) -> None:
    client.post(STREAM, *lines, version=version)
    generation = await gateway.relay.next()
    generation.play(Token(1, "a"), End("stop", 3, 1))


@pytest.mark.parametrize(
    ("version", "lines"),
    [("1.0", ()), ("1.0", ("Connection: keep-alive",)), ("1.1", ("Connection: close",))],
)
def test_the_end_of_a_stream_is_seen_by_every_client(version: str, lines: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            await streamed(gateway, client, version, *lines)
            answer = await client.rest()  # it is closed
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"keep-alive" not in head
            if version == "1.0":
                assert b"Transfer-Encoding" not in head
                assert body.endswith(b"data: [DONE]\n\n")
            else:
                assert body.endswith(b"\r\n0\r\n\r\n")

    play(scenario)


def test_a_connection_goes_on_after_a_chunked_stream() -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            await streamed(gateway, client, "1.1")
            await client.until(b"\r\n0\r\n\r\n")
            await streamed(gateway, client, "1.1")
            await client.until(b"\r\n0\r\n\r\n", times=2)

    play(scenario)


def test_old_clients_keep_their_connection_where_the_length_is_known() -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            for times in (1, 2):
                client.send(b"GET /openapi.json HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                await client.until(b"Content-Length: ", times)
            client.send(b"GET /openapi.json HTTP/1.0\r\n\r\n")
            assert (await client.rest()).count(b"HTTP/1.0 200") == 3

    play(scenario)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            client.post(STREAM)
            client.send(MODELS + b"\r\n")
            client.post(BODY, "Connection: close")
            (await gateway.relay.next()).play(Token(1, "first"), End("stop", 3, 1))
            (await gateway.relay.next()).play(Token(1, "last"), End("stop", 3, 1))
            answer = await client.rest()
            places = [answer.index(each) for each in (b"first", b"[DONE]", TEXT, b"last")]
            assert places == sorted(places)

    play(scenario)


def test_head_has_no_body() -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            head = b"HEAD /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            client.send(head)
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n")
            assert TEXT not in answer

    play(scenario)


def test_head_of_what_does_not_end_is_refused() -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            head = b"HEAD /admin/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            client.send(head)
            assert (await client.rest()).startswith(b"HTTP/1.1 405 ")

    play(scenario)


# ── what no handler sees ─────────────────────────────────────────────────────────────────────────

MESSAGES = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
UNREADABLE = {
    "encoding": b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    "length": b"Content-Length: many\r\n\r\n",
    "header": b"SECRET\r\n\r\n",
    "expectation": b"Expect: SECRET\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
}


@pytest.mark.parametrize("after", [b"", MODELS + b"\r\n"], ids=["first", "later"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_can_not_be_read_is_told_in_the_form_of_its_path(kind: str, after: bytes) -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            if after:
                client.send(after)
                await client.until(TEXT)
                await client.until(b"}", client.seen.count(b"{"))
            for piece in (MESSAGES[:9], MESSAGES[9:], UNREADABLE[kind]):
                client.send(piece)
                await turns()
            head, _, body = (await client.rest()).rpartition(b"\r\n\r\n")
            told = json.loads(body)
            assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
            assert f"\r\nrequest-id: {told['request_id']}\r\n".encode() in head + b"\r\n"
            assert b"SECRET" not in body

    play(scenario)


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/responses", b"*", b""])
def test_everywhere_else_it_is_the_contracts(path: bytes) -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            client.send(b"POST " + path + b" HTTP/1.1\r\nContent-Length: many\r\n\r\n")
            told = json.loads((await client.rest()).rpartition(b"\r\n\r\n")[2])
            assert set(told["error"]) == {"message", "type", "param", "code"}

    play(scenario)


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_takes_a_piece_and_no_more_while_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of large bodies that come at once must not fill the memory before their turn."""
    pieces: list[int] = []
    receive = server._Connection.data_received

    def note(connection: server._Connection, data: bytes) -> None:
        if data:  # aiohttp calls it without any when it goes on
            pieces.append(len(data))
        receive(connection, data)

    monkeypatch.setattr(server._Connection, "data_received", note)
    body = json.dumps({**BODY, "prompt": "x" * 20 * server._PIECE}).encode()

    async def scenario() -> None:
        may_read = asyncio.Event()
        reading_turn = BodyBytes.reading_turn

        async def wait(bodies: BodyBytes) -> None:
            await may_read.wait()
            await reading_turn(bodies)

        monkeypatch.setattr(BodyBytes, "reading_turn", wait)
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            client.send(HALF_BODY.replace(b"1000", b"%d" % len(body))[:-1] + body)
            await turns(200)
            assert 0 < sum(pieces) <= 4 * server._PIECE
            may_read.set()
            await gateway.relay.next()
        assert sum(pieces) > len(body)
        assert max(pieces) <= server._PIECE

    play(scenario)
