"""gateway.relay.counting: counts one after another, bounded, and never a hang."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest

from gateway.relay import counting
from supervisor.wire.codec import REPLY_LIMIT, FrameDecoder
from supervisor.wire.control_frames import Counter, Died, Refused, UseCounter, WorkerFault
from supervisor.wire.frames import Chat, Count, Counted, Failed
from tests.helpers.relay_peers import Peer, Peers, Scenario, failure_of, same

Run = Callable[[Scenario], None]
CHAT = Chat([{"role": "user", "content": "hi"}])
COUNT = Count("r1", "m", "/models/m", CHAT, 2.5)
DIED = Died("worker_crashed", "The process that counts tokens died (SIGKILL).", None, 1)


def count(peers: Peers, model: str = "alias", chat: Chat = CHAT) -> asyncio.Task[int]:
    return asyncio.create_task(peers.relay.count(chat, model, 2.5, "r1"))


async def asked(peers: Peers, model: str = "m") -> Peer:
    """The supervisor's end of a count that has been told where the counter is."""
    use = await peers.accept(peers.control)
    assert isinstance(await use.receive(), UseCounter)
    await use.send(Counter(model, f"/models/{model}", peers.socket))
    return use


async def counter(peers: Peers) -> Peer:
    """The counter's end of the next count, which speaks another direction than a worker's."""
    peer = await peers.connected(peers.socket)
    peer._decoder = FrameDecoder(Count)
    return peer


def test_a_count_goes_by_the_supervisor_to_the_counter(run_scenario: Run) -> None:
    async def scenario(peers: Peers) -> None:
        counted = count(peers)
        use = await peers.accept(peers.control)
        assert await use.receive() == UseCounter("alias")
        await use.send(Counter("m", "/models/m", peers.socket))
        far = await counter(peers)
        assert await far.receive() == COUNT
        await far.send(Counted(17))
        assert await counted == 17
        assert await use.receive() is None  # it is used no longer
        assert await far.receive() is None

    run_scenario(scenario)


def test_refusals_and_failures_are_passed_on(run_scenario: Run) -> None:
    async def scenario(peers: Peers) -> None:
        refused = Refused("model_not_found", "The model `x` does not exist.", "model", None)
        counted = count(peers, "x")
        use = await peers.accept(peers.control)
        await use.send(refused)
        assert same(await failure_of(counted), refused)
        failed = Failed("invalid_value", "The template rejected it.", "messages", None)
        counted = count(peers)
        await asked(peers)
        await (await counter(peers)).send(failed)
        assert same(await failure_of(counted), failed)

    run_scenario(scenario)


def test_the_counters_death_is_what_the_supervisor_says_of_it(run_scenario: Run) -> None:
    async def scenario(peers: Peers) -> None:
        counted = count(peers)
        use = await asked(peers)
        far = await counter(peers)
        await far.receive()
        far.close()
        await use.send(DIED)
        assert same(await failure_of(counted), DIED)

    run_scenario(scenario)


def test_a_counter_that_died_before_is_no_other_case(run_scenario: Run) -> None:
    async def scenario(peers: Peers) -> None:
        peers.close(peers.socket)
        counted = count(peers)
        use = await asked(peers)
        await use.send(DIED)
        assert same(await failure_of(counted), DIED)

    run_scenario(scenario)


def test_without_a_word_of_the_supervisor_it_can_be_tried_again(
    run_scenario: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(peers: Peers) -> None:
        monkeypatch.setattr(counting, "_END_SECONDS", 0.01)
        counted = count(peers)
        use = await asked(peers)
        (await counter(peers)).close()
        error = await failure_of(counted)
        assert (error.code, error.should_retry) == ("worker_crashed", True)
        assert use is not None

    run_scenario(scenario)


@pytest.mark.parametrize("sent", [b"\0\0\0\x04\xc1\xc1\xc1\xc1", None], ids=["garbage", "silence"])
def test_a_counter_that_does_not_answer_is_reported(
    run_scenario: Run, monkeypatch: pytest.MonkeyPatch, sent: bytes | None
) -> None:
    async def scenario(peers: Peers) -> None:
        if sent is None:
            monkeypatch.setattr(counting, "_COUNT_SECONDS", 0.05)
        counted = count(peers)
        use = await asked(peers)
        far = await counter(peers)
        if sent is not None:
            await far.send_bytes(sent)
        fault = await use.receive()
        assert isinstance(fault, WorkerFault)
        assert ("bad message" if sent else "it stalled") in fault.reason
        stalled = Died("worker_stalled", "The process that counts tokens was killed.", None, 1)
        await use.send(stalled)
        assert same(await failure_of(counted), stalled)

    run_scenario(scenario)


def test_a_models_counts_take_turns_and_another_models_does_not_wait(run_scenario: Run) -> None:
    async def scenario(peers: Peers) -> None:
        first = count(peers)
        await asked(peers)
        held = await counter(peers)
        second = count(peers)
        await asked(peers)
        other = count(peers, "n")
        await asked(peers, "n")
        others = await counter(peers)
        asking = await others.receive()
        assert isinstance(asking, Count)
        assert asking.model == "n"  # the second one of m has not come
        await others.send(Counted(1))
        assert await other == 1
        await held.send(Counted(2))
        assert await first == 2
        await (await counter(peers)).send(Counted(3))
        assert await second == 3

    run_scenario(scenario)


def test_one_that_is_given_up_passes_its_turn_on(run_scenario: Run) -> None:
    async def scenario(peers: Peers) -> None:
        first, second = count(peers), count(peers)
        uses = [await asked(peers), await asked(peers)]
        held = await counter(peers)
        await held.receive()
        third = count(peers)
        uses.append(await asked(peers))
        second.cancel()
        first.cancel()
        await asyncio.wait([first, second])
        assert await held.receive() is None
        await (await counter(peers)).send(Counted(3))
        assert await third == 3
        assert counts_running(peers) == 0

    run_scenario(scenario)


def counts_running(peers: Peers) -> int:
    return peers.relay._counting._running


def test_a_turn_that_does_not_come_is_a_full_queue(
    run_scenario: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(peers: Peers) -> None:
        first = count(peers)
        await asked(peers)
        held = await counter(peers)
        monkeypatch.setattr(counting, "_TURN_SECONDS", 0.01)
        second = count(peers)
        await asked(peers)
        assert (await failure_of(second)).code == "queue_full"
        await held.send(Counted(2))
        assert await first == 2

    run_scenario(scenario)


def test_more_counts_than_may_wait_are_refused(
    run_scenario: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(peers: Peers) -> None:
        monkeypatch.setattr(counting, "MOST", 1)
        first = count(peers)
        await asked(peers)
        error = await failure_of(count(peers))
        assert (error.code, error.retry_after) == ("queue_full", 1)
        await (await counter(peers)).send(Counted(2))
        assert await first == 2
        assert counts_running(peers) == 0

    run_scenario(scenario)


def test_what_no_frame_holds_is_refused_before_it_is_sent(run_scenario: Run) -> None:
    async def scenario(peers: Peers) -> None:
        long = count(peers, chat=Chat([{"role": "user", "content": "x" * REPLY_LIMIT}]))
        await asked(peers)
        error = await failure_of(long)
        assert (error.code, error.status) == ("request_too_large", 413)
        surrogate = count(peers, chat=Chat([{"role": "user", "content": "\ud800"}]))
        await asked(peers)
        assert (await failure_of(surrogate)).code == "internal_error"

    run_scenario(scenario)


def test_descriptors_that_are_short_are_not_the_counters_fault(
    run_scenario: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario(peers: Peers) -> None:
        monkeypatch.setattr(counting, "reach", fail)
        counted = count(peers)
        await asked(peers)
        assert (await failure_of(counted)).code == "queue_full"

    run_scenario(scenario)
