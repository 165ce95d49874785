"""gateway.relay.generation: what has arrived counts, whether anybody reads it or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from supervisor.wire.control_frames import Granted, Passed, Return
from supervisor.wire.frames import End, Failed, Frame, Token
from tests.helpers.relay_peers import DIED, Peers, Scenario, failure_of, received


def test_a_request_says_when_it_has_passed_and_goes_on(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start(until=2)
        await worker.send(Token(1, "a"), Token(2, "b"))
        # Nobody receives.
        assert await lease.receive() == Passed()
        await worker.send(Token(3, "c"), End("stop", 1, 3))
        frames = [await received(generation) for _ in range(4)]
        assert frames == [Token(1, "a"), Token(2, "b"), Token(3, "c"), End("stop", 1, 3)]
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


@pytest.mark.parametrize(
    "last", [End("stop", 1, 15_000), Failed("invalid_value", "bad", None, None)]
)
def test_a_complete_output_gives_its_place_back_though_nobody_reads_it(
    run_scenario: Callable[[Scenario], None], last: Frame
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        tokens = [Token(number, "some text") for number in range(15_000)]
        await worker.send(*tokens, last)
        assert await lease.receive() is None
        assert [await received(generation) for _ in tokens] == tokens
        if isinstance(last, Failed):
            await failure_of(generation.receive())
        else:
            assert await received(generation) == last
        generation.close()

    run_scenario(scenario)


def test_all_choices_run_though_nobody_reads_them(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(3, at_once=1)
        for number in range(3):
            worker = workers[0] if not number else (await peers.next_choice())[1]
            await worker.send(*[Token(number, "x")] * 500, End("stop", 1, 500))
        assert await lease.receive() is None
        told = [await generation.receive() for _ in range(3 * 501)]
        assert [choice for choice, frame in told if isinstance(frame, End)] == [0, 1, 2]
        generation.close()

    run_scenario(scenario)


@pytest.mark.parametrize(("choices", "each"), [(2, 2**13), (4, 2**12), (20, 2**10)])
def test_several_choices_share_the_frames_that_may_wait_unread(
    run_scenario: Callable[[Scenario], None], choices: int, each: int
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, *_ = await peers.start_several(choices)
        streams = generation._attempt.streams.values()
        assert {stream.unread_frames for stream in streams} == {each}
        generation.close()

    run_scenario(scenario)


def test_a_reader_that_stands_still_holds_its_own_worker_back_in_the_end(
    run_scenario: Callable[[Scenario], None],
) -> None:
    """Memory is bounded, and nothing is lost."""

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        tokens = [Token(number, "x" * 1000) for number in range(4000)]
        sending = asyncio.create_task(worker.send(*tokens, End("stop", 1, 4000)))
        for _ in range(200):
            await asyncio.sleep(0)
        assert not sending.done()
        assert generation.position < 2000
        assert [await received(generation) for _ in tokens] == tokens
        assert await received(generation) == End("stop", 1, 4000)
        await sending
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


def test_a_request_that_ends_on_probation_has_passed_and_one_that_fails_has_not(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start(until=2)
        await worker.send(Token(1, "a"), End("stop", 1, 1))
        assert [await received(generation) for _ in range(2)] == [Token(1, "a"), End("stop", 1, 1)]
        generation.close()
        assert await lease.receive() == Passed()
        generation, lease, worker = await peers.start(until=2)
        await worker.send(Failed("invalid_value", "bad", None, None))
        await failure_of(generation.receive())
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


def test_several_choices_have_passed_once_each_of_them_has(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(3, until=2)
        await workers[0].send(*[Token(number, "x") for number in range(5)])
        await workers[1].send(Token(1, "y"), End("stop", 1, 1))
        for _ in range(7):
            await generation.receive()
        await workers[2].send(Token(1, "z"), Token(2, "z"))
        for _ in range(2):
            await generation.receive()
        assert await lease.receive() == Passed()
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


def test_several_choices_that_die_on_probation_are_not_where_one_of_them_is(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(2, until=4)
        await workers[0].send(*[Token(number, "x") for number in range(9)])
        for _ in range(9):
            await generation.receive()
        for _ in range(2):  # the second time without any token
            await lease.send(replace(DIED, may_return=True))
            assert await lease.receive() == Return(3)
            await lease.send(Granted("m", "m#2", peers.socket, 3 + 4))
            for _ in range(2):
                await peers.next_choice()
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


def test_recovery_waits_for_no_reader(run_scenario: Callable[[Scenario], None]) -> None:
    """A client that is slow to read would else lose its answer, and the others their time."""

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send(Token(1, "a"))
        assert await received(generation) == Token(1, "a")
        await worker.send(Token(2, "b"))
        await lease.send(replace(DIED, may_return=True))
        # Nobody receives.
        assert await lease.receive() == Return(2)
        await lease.send(Granted("m", "m#2", peers.socket))
        second = await peers.accept(peers.socket)
        resumed = await second.receive()
        assert getattr(resumed, "emitted", None) == (1, 2)
        await second.send(Token(3, "c"))
        assert [await received(generation) for _ in range(2)] == [Token(2, "b"), Token(3, "c")]
        assert generation.recoveries == 1
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)
