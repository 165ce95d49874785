"""gateway.relay.generation: a request on probation reports that it has passed, and pauses."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gateway.relay.generation import PAUSED
from supervisor.wire.control_frames import Granted, Passed, Return, Unpause
from supervisor.wire.frames import Continue, End, Failed, Pause, Token
from tests.helpers.relay_peers import DIED, Peers, Scenario, failure_of, received


def test_a_request_on_probation_says_when_it_has_passed_and_pauses_until_told(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start(until=2)
        await worker.send(Token(1, "a"), Token(2, "b"))
        frames = [await received(generation) for _ in range(3)]
        assert frames == [Token(1, "a"), Token(2, "b"), PAUSED]
        assert await lease.receive() == Passed()
        assert await worker.receive() == Pause()
        await lease.send(Unpause())
        assert await worker.receive() == Continue()
        await worker.send(Token(3, "c"), End("stop", 1, 3))
        frames = [await received(generation) for _ in range(2)]
        assert frames == [Token(3, "c"), End("stop", 1, 3)]
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
        assert await worker.receive() is None  # not told to pause
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
        assert await workers[0].receive() == await workers[2].receive() == Pause()
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
            await lease.send(Granted("m", "m#2", peers.socket, 3 + 4, True))
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
