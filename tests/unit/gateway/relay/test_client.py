"""gateway.relay.client: a lease, a worker and reports, and what is told when they do not come."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

import pytest

from gateway.relay import client
from gateway.relay.client import Relay
from supervisor.errors import (
    BulkheadError,
    InternalError,
    ModelLoadFailed,
    ModelNotFound,
    QueueFull,
    ShuttingDown,
    WorkerCrashed,
)
from supervisor.wire.codec import HEADER, encode
from supervisor.wire.control_frames import Acquire, Died, Granted, Inquire, Refused, Report
from supervisor.wire.frames import Generate, Text
from tests.helpers.relay_peers import DIED, REQUEST, Peers, Scenario, failure_of, same


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, QueueFull),
        (errno.ENFILE, QueueFull),
        (errno.ENOENT, ShuttingDown),
        (errno.ECONNREFUSED, ShuttingDown),
    ],
)
def test_without_a_way_to_the_supervisor_a_client_is_told_what_is_lacking(
    number: int, kind: type[BulkheadError], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(path: str, frames: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(client, "reach", refused)
    monkeypatch.setattr(client, "_MISSING_SECONDS", 0.0)
    error = asyncio.run(failure_of(Relay("nowhere").start([REQUEST], "alias", 5.0)))
    assert type(error) is kind


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (Refused("model_not_found", "no such model", "model", None), ModelNotFound),
        (Refused("queue_full", "full", None, 3), QueueFull),
        (Refused("shutting_down", "bye", None, 5), ShuttingDown),
        (Refused("model_load_failed", "bad files", "model", None), ModelLoadFailed),
        (DIED, WorkerCrashed),
    ],
)
def test_a_refusal_is_raised_and_closes_the_lease(
    run_scenario: Callable[[Scenario], None], frame: Refused | Died, kind: type[BulkheadError]
) -> None:
    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(frame)
        error = await failure_of(starting)
        assert type(error) is kind
        assert same(error, frame)
        assert await lease.receive() is None

    run_scenario(scenario)


def test_cancelling_the_wait_gives_the_place_back(run_scenario: Callable[[Scenario], None]) -> None:
    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        assert isinstance(await lease.receive(), Acquire)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert await lease.receive() is None

    run_scenario(scenario)


def test_a_supervisor_that_does_not_answer_is_gone(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts(answer=0.0)

    async def scenario(peers: Peers) -> None:
        error = await failure_of(peers.relay.start([REQUEST], "m", 0.0))
        assert type(error) is ShuttingDown
        lease = await peers.accept(peers.control)
        assert await lease.receive() in (Acquire("r1", "m", 0.0), None)
        assert await lease.receive() is None

    run_scenario(scenario)


@pytest.mark.parametrize(
    "data", [encode(Report(True, b"{}", "")), HEADER.pack(1) + b"\xc1", HEADER.pack(2**31)]
)
def test_an_answer_that_makes_no_sense_is_a_bug_of_ours(
    run_scenario: Callable[[Scenario], None], data: bytes
) -> None:
    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send_bytes(data)
        assert type(await failure_of(starting)) is InternalError
        assert await lease.receive() is None

    run_scenario(scenario)


def test_without_a_supervisor_requests_are_told_to_come_back(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts(cause=0.0)

    async def scenario(peers: Peers) -> None:
        relay = Relay(peers.control + ".gone")
        for waiting in (relay.start([REQUEST], "m", 5.0), relay.report()):
            error = await failure_of(waiting)
            assert type(error) is ShuttingDown
            assert error.retry_after is not None

    run_scenario(scenario)


def test_a_supervisor_that_closes_instead_of_answering_is_gone(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        lease.close()
        assert type(await failure_of(starting)) is ShuttingDown

    run_scenario(scenario)


def test_a_request_that_cannot_be_sent_leaks_no_lease(
    run_scenario: Callable[[Scenario], None],
) -> None:
    unsendable = Generate("r1", Text("\ud800"), 1.5)

    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start([unsendable], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket))
        worker = await peers.connected(peers.socket)
        with pytest.raises(InternalError):
            await starting
        assert await worker.receive() is None
        assert await lease.receive() is None

    run_scenario(scenario)


# ── reports ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["", "some/model:8b"])
def test_a_report_is_asked_for_and_returned(
    run_scenario: Callable[[Scenario], None], model: str
) -> None:
    async def scenario(peers: Peers) -> None:
        asking = asyncio.create_task(peers.relay.report(model))
        supervisor = await peers.accept(peers.control)
        assert await supervisor.receive() == Inquire(model)
        await supervisor.send(Report(True, b"{}", model))
        assert await asking == Report(True, b"{}", model)
        assert await supervisor.receive() is None

    run_scenario(scenario)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (encode(Refused("model_not_found", "no", "model", None)), ModelNotFound),
        (encode(Granted("m", "m#1", "s")), InternalError),
        (HEADER.pack(1) + b"\xc1", InternalError),
    ],
)
def test_a_report_that_does_not_come(
    run_scenario: Callable[[Scenario], None], answer: bytes, kind: type[BulkheadError]
) -> None:
    async def scenario(peers: Peers) -> None:
        asking = asyncio.create_task(peers.relay.report("x"))
        supervisor = await peers.accept(peers.control)
        await supervisor.receive()
        await supervisor.send_bytes(answer)
        assert type(await failure_of(asking)) is kind
        assert await supervisor.receive() is None

    run_scenario(scenario)


@pytest.mark.parametrize("missing", ["control", "socket", "both"])
def test_a_request_waits_for_a_socket_that_somebody_has_removed(
    run_scenario: Callable[[Scenario], None], missing: str
) -> None:
    """The supervisor and the worker make theirs again."""

    async def scenario(peers: Peers) -> None:
        gone = [peers.control, peers.socket] if missing == "both" else [getattr(peers, missing)]
        for path in gone:
            os.rename(path, f"{path}.away")

        async def back(path: str) -> None:
            if path in gone:
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not starting.done()
                os.rename(f"{path}.away", path)

        starting = asyncio.create_task(peers.relay.start([REQUEST], "m", 5.0))
        await back(peers.control)
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket))
        await back(peers.socket)
        worker = await peers.accept(peers.socket)
        assert await worker.receive() == REQUEST
        (await starting).close()

    run_scenario(scenario)
