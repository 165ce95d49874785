"""gateway.relay.generation: what each way of ending means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from supervisor.errors import (
    BulkheadError,
    ContextLengthExceeded,
    InternalError,
    InvalidValue,
    ShuttingDown,
    WorkerCrashed,
)
from supervisor.wire.codec import HEADER, encode
from supervisor.wire.control_frames import Granted, WorkerFault
from supervisor.wire.frames import Accepted, Failed, Frame, Token
from tests.helpers.relay_peers import DIED, REQUEST, Peers, Scenario, failure_of, received, same


def test_a_death_that_is_told_before_the_stream_ends(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await lease.send(DIED)
        assert await worker.receive() is None  # it has been heard
        worker.close()
        error = await failure_of(generation.receive())
        assert type(error) is WorkerCrashed
        assert same(error, DIED)
        generation.close()
        assert await lease.receive() is None  # and no WorkerFault

    run_scenario(scenario)


@pytest.mark.parametrize("torn", [b"", encode(Token(3, "half a word"))[:-3], b"\0"])
def test_a_death_that_is_told_after_the_stream_ended(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None], torn: bytes
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send(Accepted(1), Token(1, "a"), Token(2, "b"))
        await worker.send_bytes(torn)
        worker.close()
        # What had arrived whole is delivered first.
        arrived = [await received(generation) for _ in range(3)]
        assert arrived == [Accepted(1), Token(1, "a"), Token(2, "b")]
        failing = asyncio.create_task(failure_of(generation.receive()))
        await asyncio.sleep(0)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


def test_a_worker_that_hangs_does_not_keep_its_client_once_it_is_given_up(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send(Token(1, "a"))
        assert await received(generation) == Token(1, "a")
        failing = asyncio.create_task(failure_of(generation.receive()))
        await lease.send(DIED)  # the worker's socket stays open
        assert same(await failing, DIED)
        generation.close()

    run_scenario(scenario)


@pytest.mark.parametrize("torn", [b"", encode(Token(3, "half a word"))[:-3]])
def test_a_stream_cut_by_a_worker_that_lives_is_a_fault(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None], torn: bytes
) -> None:
    relay_timeouts(cause=0.0)

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send_bytes(torn)
        worker.close()
        failing = asyncio.create_task(failure_of(generation.receive()))
        assert isinstance(await lease.receive(), WorkerFault)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()

    run_scenario(scenario)


@pytest.mark.parametrize(
    "data",
    [HEADER.pack(4) + b"\xc1\xc1\xc1\xc1", HEADER.pack(2**31), encode(Granted("m", "m#1", "s"))],
    ids=["garbage", "oversized", "wrong type"],
)
def test_a_malformed_frame_is_a_fault_at_once(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None], data: bytes
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send(Token(1, "a"))
        await worker.send_bytes(data)
        assert await received(generation) == Token(1, "a")
        failing = asyncio.create_task(failure_of(generation.receive()))
        assert isinstance(await lease.receive(), WorkerFault)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()

    run_scenario(scenario)


def test_a_fault_that_nobody_answers_ends_all_the_same(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts(cause=0.0, fault=0.0)

    async def scenario(peers: Peers) -> None:
        generation, _, worker = await peers.start()
        worker.close()
        error = await failure_of(generation.receive())
        assert type(error) is WorkerCrashed
        assert "m#1" in error.message
        generation.close()

    run_scenario(scenario)


@pytest.mark.parametrize(
    "answer", [b"", HEADER.pack(1) + b"\xc1", encode(Granted("m", "m#2", "s"))]
)
def test_a_supervisor_that_goes_away_ends_the_stream(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None], answer: bytes
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await lease.send_bytes(answer)
        lease.close()
        assert type(await failure_of(generation.receive())) is ShuttingDown
        assert await worker.receive() is None
        generation.close()

    run_scenario(scenario)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (Failed("context_length_exceeded", "too long", "messages", None), ContextLengthExceeded),
        (Failed("invalid_value", "bad", "messages", None), InvalidValue),
        (Failed("worker_crashed", "dead", None, 7), WorkerCrashed),
        (Failed("internal_error", "oops", None, None), InternalError),
    ],
)
def test_a_workers_own_error_is_restored(
    run_scenario: Callable[[Scenario], None], frame: Failed, kind: type[BulkheadError]
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, worker = await peers.start()
        await worker.send(frame)
        error = await failure_of(generation.receive())
        assert type(error) is kind
        assert same(error, frame)
        generation.close()

    run_scenario(scenario)


def test_an_error_of_an_unknown_code_is_a_bug_of_ours(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, worker = await peers.start()
        await worker.send(Failed("no_such_code", "?", None, None))
        assert type(await failure_of(generation.receive())) is InternalError
        generation.close()

    run_scenario(scenario)


def test_a_worker_that_died_before_it_was_reached_is_explained_by_the_lease(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts(cause=0.0)

    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket + ".gone"))
        assert isinstance(await lease.receive(), WorkerFault)
        await lease.send(DIED)
        assert same(await failure_of(starting), DIED)
        assert await lease.receive() is None

    run_scenario(scenario)


def test_a_death_told_while_the_worker_does_not_accept_needs_no_fault(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket + ".gone"))
        await lease.send(DIED)
        assert same(await failure_of(starting), DIED)
        assert await lease.receive() is None

    run_scenario(scenario)


@pytest.mark.parametrize(
    ("answer", "kind"), [(Granted("m", "m#2", "s"), InternalError), (None, ShuttingDown)]
)
def test_a_worker_that_cannot_be_reached_and_is_not_explained(
    run_scenario: Callable[[Scenario], None],
    relay_timeouts: Callable[..., None],
    answer: Frame | None,
    kind: type[BulkheadError],
) -> None:
    relay_timeouts(cause=0.0)

    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket + ".gone"))
        assert isinstance(await lease.receive(), WorkerFault)
        if answer is None:
            lease.close()
        else:
            await lease.send(answer)
        assert type(await failure_of(starting)) is kind

    run_scenario(scenario)
