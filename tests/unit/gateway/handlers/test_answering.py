"""gateway.handlers.answering: when a stream's headers leave, and what keeps it from silence."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from gateway.relay.generation import PAUSED
from supervisor.errors import WorkerCrashed
from supervisor.wire.frames import Accepted, End, Progress, Token
from tests.helpers.played_gateway import PATIENT, Gateway, play, playing, turns

BODY = {"model": "m", "prompt": "x", "stream": True}
AT_ONCE = replace(PATIENT, headers=0.0)
RESTLESS = replace(PATIENT, silence=0.005)
PING = b": ping\n\n"


def parts(answer: bytes) -> list[bytes]:
    """The body's events and comments, of an answer without chunks."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    *whole, last = body.split(b"\n\n")
    assert last == b""
    return whole


def texts(answer: bytes) -> list[str]:
    """What each of its chunks tells; fails if anything in it is no whole event or comment."""
    told = []
    for part in parts(answer):
        if part in (b": ping", b"data: [DONE]") or part.startswith(b": recoveries "):
            continue
        chunk = json.loads(part.removeprefix(b"data: "))
        told += [choice["text"] for choice in chunk["choices"]]
    return told


def status(answer: bytes) -> int:
    return int(answer.split()[1])


# ── headers ──────────────────────────────────────────────────────────────────────────────────────


def test_who_waits_gets_no_headers_and_so_a_refusal_is_a_status() -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY, "Connection: close")
            generation = await gateway.relay.next()
            await turns()
            generation.play(WorkerCrashed("It died."))
            answer = await client.rest()
            assert status(answer) == 503
            assert b"Retry-After" in answer

    play(scenario)


@pytest.mark.parametrize("sign", [Accepted(3), Progress(1, 3)])
def test_headers_leave_before_the_token_of_who_is_worked_on(sign: Any) -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY, version="1.0")
            generation = await gateway.relay.next()
            generation.play(sign)
            assert status(await client.until(PING)) == 200
            generation.play(Token(1, "a"), End("stop", 3, 1))
            assert texts(await client.rest()) == ["a", ""]
            assert client.seen.endswith(b"data: [DONE]\n\n")

    play(scenario)


def test_a_failure_after_the_headers_is_an_event() -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY, version="1.0")
            generation = await gateway.relay.next()
            generation.play(Accepted(3))
            await client.until(PING)
            generation.play(WorkerCrashed("It died."))
            assert status(await client.rest()) == 200
            *_, last = parts(client.seen)
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "worker_crashed"

    play(scenario)


def test_tokens_that_come_together_leave_together_each_as_an_event() -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY)
            generation = await gateway.relay.next()
            generation.play(Token(1, "a"), Token(2, "b"), Token(3, "c"))
            await client.until(b"\n\n\r\n")
            assert client.seen.count(b'"finish_reason":null}]}\n\n') == 3
            generation.play(Token(4, "d"), End("stop", 3, 4))
            await client.until(b"\r\n0\r\n\r\n")
            chunks = client.seen.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
            assert [chunk.count(b"data: ") for chunk in chunks if chunk] == [3, 1, 2]

    play(scenario)


def test_a_failure_behind_tokens_comes_after_them() -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY, version="1.0")
            generation = await gateway.relay.next()
            generation.play(Token(1, "a"), Token(2, "b"), WorkerCrashed("It died."))
            assert status(await client.rest()) == 200
            *told, last = parts(client.seen)
            whole = [json.loads(each.removeprefix(b"data: ")) for each in told]
            assert [chunk["choices"][0]["text"] for chunk in whole] == ["a", "b"]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "worker_crashed"

    play(scenario)


def test_who_waits_again_after_a_death_is_held_again() -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY, "Connection: close")
            generation = await gateway.relay.next()
            generation.play(Accepted(3), PAUSED)  # at once: no turn of the loop is between
            await turns()
            generation.play(WorkerCrashed("Again."))
            assert status(await client.rest()) == 503

    play(scenario)


def test_who_waits_again_gets_headers_once_it_is_worked_on_again() -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY, version="1.0")
            generation = await gateway.relay.next()
            generation.play(Accepted(3), PAUSED, Accepted(3))
            assert status(await client.until(PING)) == 200

    play(scenario)


def test_the_clock_runs_from_the_first_choice_that_is_worked_on() -> None:
    """Each choice that follows would put it off."""

    async def scenario() -> None:
        async with playing(replace(PATIENT, headers=0.02)) as gateway:
            client = await gateway.connect()
            client.post({**BODY, "n": 2}, version="1.0")
            generation = await gateway.relay.next()
            generation.play(Accepted(3))

            async def go_on() -> None:
                while True:
                    generation.play(Accepted(3), choice=1)
                    await turns(1)

            others = asyncio.create_task(go_on())
            await client.until(PING)
            others.cancel()

    play(scenario)


@pytest.mark.parametrize("header", ["x-stainless-read-timeout", "X-Stainless-Timeout"])
def test_an_announced_timeout_brings_headers_and_pings_sooner(header: str) -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            client.post(BODY, f"{header}: 0.2", version="1.0")
            generation = await gateway.relay.next()
            assert gateway.relay.holds == [pytest.approx(0.16)]
            generation.play(Accepted(3))
            assert generation.holds == []
            assert status(await client.until(PING, times=3)) == 200
            assert generation.holds == [240]  # who is pinged does not give up meanwhile

    play(scenario)


def test_even_who_waits_gets_headers_when_the_hold_is_over() -> None:
    """Its place is granted, so it will not be refused for having waited."""

    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            client.post(BODY, "x-stainless-read-timeout: 0.1", version="1.0")
            await gateway.relay.next()
            assert status(await client.until(PING)) == 200

    play(scenario)


def test_an_answer_that_is_not_streamed_stays_whole() -> None:
    async def scenario() -> None:
        async with playing(replace(AT_ONCE, silence=0.001)) as gateway:
            client = await gateway.connect()
            client.post({**BODY, "stream": False}, version="1.0")
            generation = await gateway.relay.next()
            generation.play(Accepted(3))
            await turns()
            generation.play(Token(1, "a"), End("stop", 3, 1))
            head, _, body = (await client.rest()).partition(b"\r\n\r\n")
            assert json.loads(body)["choices"][0]["text"] == "a"
            assert f"Content-Length: {len(body)}".encode() in head

    play(scenario)


# ── pings ────────────────────────────────────────────────────────────────────────────────────────


async def between_tokens(gateway: Gateway, *pause: Any) -> bytes:
    """A stream of two choices that pauses between two tokens until it has pinged three times."""
    client = await gateway.connect()
    client.post({**BODY, "n": 2}, version="1.0")
    generation = await gateway.relay.next()
    generation.play(Token(1, "first"))
    await client.until(b"first")
    generation.play(*pause)
    pinged = client.seen.count(PING)
    await client.until(PING, times=pinged + 3)
    generation.recoveries = 1
    generation.play(Token(2, "second" * 1000), End("stop", 3, 2))
    await client.until(b"second" * 1000)
    pinged = client.seen.count(PING)
    await client.until(PING, times=pinged + 2)  # one choice has ended, the other has not begun
    generation.play(Token(3, "third"), End("stop", 3, 1), choice=1)
    return await client.rest()


@pytest.mark.parametrize(
    "pause", [(), (PAUSED,), (PAUSED, Accepted(3), Progress(1, 3))], ids=["none", "wait", "prefill"]
)
def test_a_stream_that_pauses_pings_whatever_it_pauses_for(pause: Any) -> None:
    async def scenario() -> None:
        async with playing(RESTLESS) as gateway:
            answer = await between_tokens(gateway, *pause)
            assert texts(answer) == ["first", "second" * 1000, "", "third", ""]
            assert answer.endswith(b": recoveries 1\n\ndata: [DONE]\n\n")

    play(scenario)


def test_the_echo_of_a_prompt_comes_once_with_its_first_token() -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post({**BODY, "echo": True}, version="1.0")
            generation = await gateway.relay.next()
            generation.play(Accepted(3, "prompt "))
            await client.until(PING)
            generation.play(Token(1, "a"), End("stop", 3, 1))
            assert texts(await client.rest()) == ["prompt a", ""]

    play(scenario)


@pytest.mark.parametrize("half", [False, True])
def test_a_client_that_leaves_a_silent_stream_is_noticed(half: bool) -> None:
    async def scenario() -> None:
        async with playing(replace(RESTLESS, headers=0.0)) as gateway:
            client = await gateway.connect()
            client.post(BODY)
            generation = await gateway.relay.next()
            generation.play(Accepted(3))
            await client.until(PING)
            if half:
                client.writer.write_eof()
            else:
                client.writer.close()
            await generation.closed.wait()

    play(scenario)


# ── what the log tells of it ─────────────────────────────────────────────────────────────────────


def logged(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = [each.getMessage() for each in caplog.records if each.name == "bulkhead.access"]
    return line


def test_the_time_to_the_first_token_is_not_that_to_the_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with playing(PATIENT) as gateway:
            client = await gateway.connect()
            client.post(BODY)
            generation = await gateway.relay.next()
            generation.position = 1
            generation.play(Token(1, "first"))
            await client.until(b"first")
            client.writer.close()
            await generation.closed.wait()
            await turns()

    with caplog.at_level(logging.INFO, "bulkhead.access"):
        play(scenario)
    assert " code=client_left " in logged(caplog)
    assert " completion=1 " in logged(caplog)
    assert " ttft_s=" in logged(caplog)


def test_an_answer_without_tokens_has_no_time_to_its_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with playing(AT_ONCE) as gateway:
            client = await gateway.connect()
            client.post(BODY, version="1.0")
            generation = await gateway.relay.next()
            generation.play(Accepted(3))
            await client.until(PING)
            generation.play(End("stop", 3, 0))
            await client.rest()
            await turns()

    with caplog.at_level(logging.INFO, "bulkhead.access"):
        play(scenario)
    assert " completion=0 " in logged(caplog)
    assert " ttft_s=" not in logged(caplog)
