"""gateway.http.bodies: what waits is counted, bounded and given back, in every dialect."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gateway.http import bodies
from gateway.http.bodies import BodyBytes
from supervisor.config.schema import ServerSettings
from supervisor.errors import QueueFull
from supervisor.wire.frames import End, Token
from tests.helpers.played_gateway import PATIENT, Client, Gateway, play, playing, turns

TEXT = "x" * 300_000
USER = [{"role": "user", "content": TEXT}]
SMALL = ServerSettings(max_queue_bytes="1MB")
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": TEXT},
    "/v1/messages": {"messages": USER, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": USER},
    "/v1/responses": {"input": TEXT, "store": False},
    "/v1/embeddings": {"input": TEXT},
    "/api/chat": {"messages": USER},
    "/api/generate": {"prompt": TEXT},
    "/api/embed": {"input": TEXT},
    "/api/embeddings": {"prompt": TEXT},
}


# ── the count ────────────────────────────────────────────────────────────────────────────────────


def held(count: BodyBytes, size: int) -> bodies.HeldBody:
    body = count.hold()
    body.keep(size)
    return body


def test_bytes_wait_then_run_and_are_given_back() -> None:
    freed: list[int] = []
    count = BodyBytes(100, freed.append)
    one, other = held(count, 60), held(count, 30)
    one.run()
    one.run()
    assert (count.waiting, count.running) == (30, 60)
    for body in (one, other, one):
        body.release()
    assert (count.waiting, count.running) == (0, 0)
    assert freed == [60, 30]


def test_what_waits_is_bounded_and_what_runs_does_not_count() -> None:
    count = BodyBytes(100)
    held(count, 60)
    with pytest.raises(QueueFull, match=r"server\.max_queue_bytes") as told:
        held(count, 41)
    assert 1 <= int(told.value.headers()["Retry-After"]) <= 10
    assert count.waiting == 60
    held(count, 40).run()
    held(count, 40)


def test_one_alone_may_have_any_size() -> None:
    count = BodyBytes(100)
    alone = held(count, 1000)
    with pytest.raises(QueueFull, match=r"server\.max_queue_bytes"):
        held(count, 1)
    alone.release()
    held(count, 1)


def test_what_runs_is_bounded_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "RUNNING_MAX", 200)
    count = BodyBytes(100)
    for _ in range(3):
        held(count, 100).run()
    with pytest.raises(QueueFull, match=r"being answered hold 300 bytes.* may hold 300") as told:
        held(count, 1)
    # What is configured is for those that wait, and none does.
    assert "max_queue_bytes" not in told.value.message
    assert 1 <= int(told.value.headers()["Retry-After"]) <= 10


def test_what_is_announced_counts_until_it_is_late() -> None:
    async def scenario() -> None:
        count = BodyBytes(100)
        slow = count.hold()
        slow.announce(80, 0.0)
        assert count.waiting == 80
        slow.arrived(10)
        assert count.waiting == 80
        await turns()
        assert count.waiting == 10
        slow.arrived(20)
        assert count.waiting == 20
        slow.keep(15)
        assert count.waiting == 15

    asyncio.run(scenario())


# ── the gateway ──────────────────────────────────────────────────────────────────────────────────


async def waiting(gateway: Gateway, requests: int) -> None:
    """So many wait for their places."""
    await until(lambda: len(gateway.relay.choices) >= requests)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", DIALECTS)
def test_of_a_waiting_request_one_encoded_copy_is_kept(path: str) -> None:
    async def scenario() -> None:
        async with playing(PATIENT, settings=SMALL) as gateway:
            gateway.relay.granting.clear()
            client = await gateway.connect()
            client.post({"model": "m", **DIALECTS[path]}, path=path)
            await waiting(gateway, 1)
            kept = gateway.relay.choices[0]
            packed = kept if isinstance(kept, msgspec.Raw) else getattr(kept, "prompt", None)
            packed = packed or kept.inputs
            assert isinstance(packed, msgspec.Raw)
            size = len(memoryview(packed))
            assert len(TEXT) < size < len(TEXT) + 1000
            assert size <= gateway.bodies.waiting < size + 1000
            client.writer.transport.abort()
            await until(lambda: not gateway.bodies.waiting)

    play(scenario)


def test_choices_share_their_copy() -> None:
    async def scenario() -> None:
        async with playing(PATIENT, settings=SMALL) as gateway:
            gateway.relay.granting.clear()
            client = await gateway.connect()
            client.post({"model": "m", "prompt": ["a", TEXT], "n": 3})
            await waiting(gateway, 6)
            prompts = [choice.prompt for choice in gateway.relay.choices]
            assert [each is prompts[0] for each in prompts] == [True] * 3 + [False] * 3
            assert gateway.bodies.waiting < len(TEXT) + 1000

    play(scenario)


def test_beyond_the_bound_a_body_is_refused_before_it_is_read() -> None:
    async def scenario() -> None:
        async with playing(PATIENT, settings=SMALL) as gateway:
            gateway.relay.granting.clear()
            for number in range(3):
                (await gateway.connect()).post({"model": "m", "prompt": TEXT})
                await waiting(gateway, number + 1)
            refused = await gateway.connect()
            refused.send(head(len(TEXT)))
            answer = await refused.until(b"queue_full")
            assert b" 503 " in answer.splitlines()[0]
            assert b"Retry-After: " in answer
            gateway.relay.granting.set()
            for _ in range(3):
                (await gateway.relay.next()).play(Token(1, "a"), End("stop", 1, 1))
            await until(lambda: not gateway.bodies.waiting + gateway.bodies.running)

    play(scenario)


@pytest.mark.parametrize("how", ["chunked", "compressed"])
def test_what_is_not_announced_is_refused_once_it_passes_the_bound(how: str) -> None:
    async def scenario() -> None:
        async with playing(PATIENT, settings=SMALL) as gateway:
            gateway.relay.granting.clear()
            for number in range(3):
                (await gateway.connect()).post({"model": "m", "prompt": TEXT})
                await waiting(gateway, number + 1)
            refused = await gateway.connect()
            body = json.dumps({"model": "m", "prompt": TEXT}).encode()
            if how == "compressed":
                body = gzip.compress(body)
                refused.send(head(len(body), b"Content-Encoding: gzip\r\n") + body)
            else:
                line = b"Transfer-Encoding: chunked\r\n"
                refused.send(head(None, line) + b"%x\r\n%b\r\n" % (len(body), body))
            assert b" 503 " in (await refused.until(b"queue_full")).splitlines()[0]

    play(scenario)


def head(length: int | None, more: bytes = b"") -> bytes:
    lines = more if length is None else b"Content-Length: %d\r\n" % length + more
    start = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    return start + lines + b"\r\n"


def test_who_has_a_place_waits_no_more() -> None:
    async def scenario() -> None:
        async with playing(PATIENT, settings=SMALL) as gateway:
            client = await gateway.connect()
            client.post({"model": "m", "prompt": TEXT})
            generation = await gateway.relay.next()
            await turns()
            assert gateway.bodies.waiting == 0
            assert gateway.bodies.running > len(TEXT)
            generation.play(Token(1, "a"), End("stop", 1, 1))
            await client.until(b"finish_reason")
            await until(lambda: not gateway.bodies.running)

    play(scenario)


def test_a_refused_client_may_send_its_body_to_the_end_but_not_for_ever() -> None:
    async def refuse(gateway: Gateway) -> Client:
        gateway.relay.granting.clear()
        for number in range(3):
            (await gateway.connect()).post({"model": "m", "prompt": TEXT})
            await waiting(gateway, number + 1)
        refused = await gateway.connect()
        refused.send(head(len(TEXT)))
        await refused.until(b"queue_full")
        return refused

    async def patient() -> None:
        async with playing(PATIENT, settings=SMALL) as gateway:
            refused = await refuse(gateway)
            refused.send(
                b"x" * len(TEXT) + b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            await refused.until(b'"openapi"')

    async def impatient() -> None:
        async with playing(replace(PATIENT, lingering=0.0), settings=SMALL) as gateway:
            await (await refuse(gateway)).rest()

    play(patient)
    play(impatient)
