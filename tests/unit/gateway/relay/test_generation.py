"""gateway.relay.generation: frames as they come, of one choice and of several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.relay import client as relay_module
from gateway.relay import generation as generation_module
from gateway.relay.generation import Event, OutputPaused
from gateway.relay.preconnect import Preconnect
from supervisor.errors import InternalError, InvalidValue
from supervisor.wire.codec import HEADER
from supervisor.wire.control_frames import (
    Acquire,
    Granted,
    Holds,
    Places,
    Return,
    WorkerFault,
)
from supervisor.wire.frames import Accepted, End, Failed, Generate, Progress, Text, Token
from supervisor.wire.listener import reach
from tests.helpers.relay_peers import DIED, REQUEST, Peers, Scenario, failure_of, received, same

# ── well ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_goes_well(run_scenario: Callable[[Scenario], None]) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        assert (generation.model, generation.worker) == ("m", "m#1")
        await worker.send(Accepted(3), Progress(1, 3), Token(5, "a"))
        assert await received(generation) == Accepted(3)
        assert await received(generation) == Progress(1, 3)
        assert await received(generation) == Token(5, "a")
        await worker.send(Token(6, ""), Token(7, "b"), End("length", 3, 3))
        assert [await received(generation) for _ in range(3)] == [
            Token(6, ""),
            Token(7, "b"),
            End("length", 3, 3),
        ]
        generation.close()
        assert await worker.receive() is None
        assert await lease.receive() is None

    run_scenario(scenario)


def test_tokens_that_are_there_are_taken_without_waiting(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, worker = await peers.start()
        assert generation.take() is None
        await worker.send(Accepted(3), Token(5, "a"), Token(6, "b"), End("length", 3, 2))
        assert await received(generation) == Accepted(3)
        assert [generation.take() for _ in range(3)] == [
            (0, Token(5, "a")),
            (0, Token(6, "b")),
            None,
        ]
        assert generation.position == 2
        assert await received(generation) == End("length", 3, 2)
        generation.close()

    run_scenario(scenario)


def test_of_several_choices_none_is_overtaken(run_scenario: Callable[[Scenario], None]) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, workers = await peers.start_several(2)
        for number, worker in enumerate(workers):
            await worker.send(Token(number, "a"), Token(number, "b"), End("stop", 3, 2))
        got: dict[int, list[Event]] = {0: [], 1: []}
        while sum(isinstance(event, End) for each in got.values() for event in each) < 2:
            ready = generation.take()
            choice, event = ready or await generation.receive()
            got[choice].append(event)
        for number in (0, 1):
            assert got[number] == [Token(number, "a"), Token(number, "b"), End("stop", 3, 2)]
        generation.close()

    run_scenario(scenario)


def test_what_came_before_a_death_is_not_overtaken(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send(Token(1, "a"), Token(2, "b"))
        assert await received(generation) == Token(1, "a")
        await lease.send(replace(DIED, may_return=True))
        worker.close()
        assert isinstance(await lease.receive(), Return)
        assert generation.take() is None
        await lease.send(Granted("m", "m#2", peers.socket))
        following = await peers.accept(peers.socket)
        assert await following.receive() == replace(REQUEST, emitted=(1, 2))
        await following.send(Token(3, "c"), End("stop", 1, 3))
        events: list[Event] = []
        for _ in range(20):
            await asyncio.sleep(0)  # the token of the second worker is there as well
        while not events or not isinstance(events[-1], End):
            ready = generation.take()
            events.append(await received(generation) if ready is None else ready[1])
        assert [event for event in events if not isinstance(event, OutputPaused)] == [
            Token(2, "b"),
            Token(3, "c"),
            End("stop", 1, 3),
        ]
        generation.close()

    run_scenario(scenario)


def test_closing_early_gives_the_place_back_and_tells_the_worker(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send(Accepted(3), Token(5, "a"))
        assert await received(generation) == Accepted(3)
        assert await received(generation) == Token(5, "a")
        generation.close()
        assert await worker.receive() is None
        assert await lease.receive() is None
        generation.close()

    run_scenario(scenario)


def test_a_receive_that_is_cancelled_loses_nothing(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, worker = await peers.start()
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await generation.receive()
            await worker.send(Token(number, "x"))
            assert await received(generation) == Token(number, "x")
        generation.close()

    run_scenario(scenario)


def test_requests_at_the_same_time_have_leases_of_their_own(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        first, first_lease, first_worker = await peers.start()
        second, second_lease, second_worker = await peers.start()
        await first_lease.send(DIED)
        first_worker.close()
        assert same(await failure_of(first.receive()), DIED)
        await second_worker.send(Token(1, "a"), End("stop", 1, 1))
        assert await received(second) == Token(1, "a")
        assert await received(second) == End("stop", 1, 1)
        first.close()
        second.close()
        assert await second_lease.receive() is None

    run_scenario(scenario)


# ── several choices ──────────────────────────────────────────────────────────────────────────────


def test_choices_are_merged_and_each_keeps_its_order(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(3)
        for number, worker in enumerate(workers):
            tokens = [Token(number * 10 + place, "x") for place in range(5)]
            await worker.send(Accepted(3), *tokens, End("stop", 3, 5))
        frames: dict[int, list[Event]] = {0: [], 1: [], 2: []}
        for _ in range(21):
            choice, frame = await generation.receive()
            frames[choice].append(frame)
        for number in frames:
            accepted, *arrived, end = frames[number]
            assert accepted == Accepted(3)
            assert arrived == [Token(number * 10 + place, "x") for place in range(5)]
            assert end == End("stop", 3, 5)
        generation.close()
        assert [await worker.receive() for worker in workers] == [None] * 3
        assert await lease.receive() is None

    run_scenario(scenario)


def test_choices_are_interleaved_as_they_come(run_scenario: Callable[[Scenario], None]) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, (first, second) = await peers.start_several(2)
        for number in range(4):
            await second.send(Token(number, "b"))
            assert await generation.receive() == (1, Token(number, "b"))
            await first.send(Token(number, "a"))
            assert await generation.receive() == (0, Token(number, "a"))
        generation.close()

    run_scenario(scenario)


def test_a_worker_is_given_a_few_choices_at_a_time(
    run_scenario: Callable[[Scenario], None],
) -> None:
    """Each takes two descriptors of the worker's, which is not there for one request alone."""

    async def scenario(peers: Peers) -> None:
        generation, lease, first = await peers.start_several(5, at_once=2)
        running = dict(enumerate(first))
        for number in range(5):
            # The later one first: whoever ends makes room.
            choice = max(running)
            await running[choice].send(Token(choice, "x"), End("stop", 3, 1))
            assert await generation.receive() == (choice, Token(choice, "x"))
            assert await generation.receive() == (choice, End("stop", 3, 1))
            assert await running.pop(choice).receive() is None
            if number < 3:
                new, worker = await peers.next_choice()
                assert new == number + 2
                running[new] = worker
        assert not running
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


@pytest.mark.parametrize("told_first", [True, False])
def test_a_worker_that_dies_between_choices_is_explained(
    run_scenario: Callable[[Scenario], None],
    relay_timeouts: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    told_first: bool,
) -> None:
    relay_timeouts()
    monkeypatch.setattr(Preconnect, "take", lambda *_: None)

    async def scenario(peers: Peers) -> None:
        generation, lease, (only,) = await peers.start_several(2, at_once=1)
        peers.close(peers.socket)
        if told_first:
            await lease.send(DIED)
            assert await only.receive() is None
        else:
            await only.send(End("stop", 3, 1))
            assert await generation.receive() == (0, End("stop", 3, 1))
            assert await only.receive() is None
            await lease.send(DIED)
        assert same(await failure_of(generation.receive()), DIED)
        generation.close()
        assert await lease.receive() is None  # and no WorkerFault

    run_scenario(scenario)


def test_the_next_worker_goes_on_with_a_few_choices_too(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, (first, second) = await peers.start_several(4, at_once=2)
        await first.send(Token(1, "a"), End("stop", 3, 1))
        assert [await generation.receive() for _ in range(2)] == [
            (0, Token(1, "a")), (0, End("stop", 3, 1)),
        ]  # fmt: skip
        assert (await peers.next_choice())[0] == 2
        await second.send(Token(7, "b"))
        assert await generation.receive() == (1, Token(7, "b"))
        await lease.send(replace(DIED, may_return=True))
        assert isinstance((await generation.receive())[1], OutputPaused)
        assert await lease.receive() == Return(2)
        await lease.send(Granted("m", "m#2", peers.socket))
        again = {number: peer for number, peer in [await peers.next_choice() for _ in range(2)]}
        assert set(again) == {1, 2}  # not the one that has ended, nor the one whose turn it is not
        for number in (2, 1, 3):
            if number == 3:
                again.update([await peers.next_choice()])
            await again[number].send(Token(number, "c"), End("stop", 3, 1))
            told = [await generation.receive() for _ in range(2)]
            assert told == [(number, Token(number, "c")), (number, End("stop", 3, 1))]
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


def test_whose_client_waits_longer_tells_so_when_it_returns(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, worker = await peers.start()
        await worker.send(Token(1, "a"))
        assert await received(generation) == Token(1, "a")
        generation.wait_longer(77.0)
        for count in (2, 3):
            await lease.send(replace(DIED, may_return=True))
            assert isinstance(await received(generation), OutputPaused)
            assert await lease.receive() == Return(1, hold_seconds=77.0)
            await lease.send(Granted("m", f"m#{count}", peers.socket))
            worker = await peers.accept(peers.socket)
            assert await worker.receive()
        await worker.send(End("stop", 3, 1))
        assert await received(generation) == End("stop", 3, 1)
        generation.close()

    run_scenario(scenario)


@pytest.mark.parametrize("choices", [1, 2])
def test_acceptances_are_passed_on_and_a_prompts_text_once(
    run_scenario: Callable[[Scenario], None], choices: int
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, workers = await peers.start_several(choices)
        told = Accepted(3, "the prompt")
        await workers[0].send(Accepted(3), told, told, End("stop", 3, 0))
        assert await generation.receive() == (0, Accepted(3))
        assert await generation.receive() == (0, told)
        assert await generation.receive() == (0, Accepted(3))
        assert await generation.receive() == (0, End("stop", 3, 0))
        generation.close()

    run_scenario(scenario)


def test_one_choices_error_ends_the_request(run_scenario: Callable[[Scenario], None]) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(3)
        await workers[1].send(Token(1, "a"), Failed("invalid_value", "bad", "messages", None))
        assert await generation.receive() == (1, Token(1, "a"))
        assert type(await failure_of(generation.receive())) is InvalidValue
        generation.close()
        assert [await worker.receive() for worker in workers] == [None] * 3
        assert await lease.receive() is None  # and no WorkerFault

    run_scenario(scenario)


@pytest.mark.parametrize("told_first", [True, False])
def test_a_death_is_the_death_of_all_choices_and_asked_about_once(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None], told_first: bool
) -> None:
    relay_timeouts(**({} if told_first else {"cause": 0.0}))

    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(3)
        if told_first:
            await lease.send(DIED)
        for worker in workers:
            worker.close()
        failing = asyncio.create_task(failure_of(generation.receive()))
        if not told_first:
            assert isinstance(await lease.receive(), WorkerFault)
            await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()
        assert await lease.receive() is None  # no second WorkerFault

    run_scenario(scenario)


def test_every_choices_broken_frame_is_one_fault(
    run_scenario: Callable[[Scenario], None], relay_timeouts: Callable[..., None]
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(3)
        for worker in workers:
            await worker.send_bytes(HEADER.pack(1) + b"\xc1")
        failing = asyncio.create_task(failure_of(generation.receive()))
        assert isinstance(await lease.receive(), WorkerFault)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()
        assert await lease.receive() is None

    run_scenario(scenario)


def test_a_receive_of_several_that_is_cancelled_loses_nothing(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, _, workers = await peers.start_several(2)
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await generation.receive()
            await workers[number % 2].send(Token(number, "x"))
            assert await generation.receive() == (number % 2, Token(number, "x"))
        generation.close()

    run_scenario(scenario)


def test_a_reader_that_stands_still_holds_its_choices_back(
    run_scenario: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "_MERGED_MAX", 4)

    async def scenario(peers: Peers) -> None:
        generation, _, workers = await peers.start_several(2)
        for worker in workers:
            await worker.send(*(Token(number, "x") for number in range(100)), End("stop", 1, 100))
        for _ in range(50):
            await asyncio.sleep(0)
        assert generation._merged.qsize() <= 4
        seen = [await generation.receive() for _ in range(202)]
        for number in range(2):
            ids = [frame.id for choice, frame in seen if choice == number and type(frame) is Token]
            assert ids == list(range(100))
        generation.close()

    run_scenario(scenario)


def test_a_choice_that_cannot_be_sent_leaks_no_lease_and_no_connection(
    run_scenario: Callable[[Scenario], None],
) -> None:
    requests = [REQUEST, Generate("r2", Text("\ud800"), 1.5)]

    async def scenario(peers: Peers) -> None:
        starting = asyncio.create_task(peers.relay.start(requests, "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket))
        workers = [await peers.connected(peers.socket) for _ in requests]
        with pytest.raises(InternalError):
            await starting
        assert await lease.receive() is None
        for worker in workers:
            assert await worker.receive() in (REQUEST, None)
            assert await worker.receive() is None

    run_scenario(scenario)


def test_a_worker_lost_between_two_choices_is_explained_and_leaks_nothing(
    run_scenario: Callable[[Scenario], None],
    relay_timeouts: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relay_timeouts()

    async def scenario(peers: Peers) -> None:
        real, calls = reach, 0

        async def once(path: str, frames: Any) -> Any:
            nonlocal calls
            calls += path == peers.socket
            if calls > 1:
                raise ConnectionRefusedError
            return await real(path, frames)

        monkeypatch.setattr(relay_module, "reach", once)
        starting = asyncio.create_task(peers.relay.start([REQUEST, REQUEST], "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket))
        worker = await peers.accept(peers.socket)
        assert await worker.receive() == REQUEST
        await lease.send(DIED)
        assert same(await failure_of(starting), DIED)
        assert await worker.receive() is None
        assert await lease.receive() is None

    run_scenario(scenario)


def test_a_worker_has_as_many_choices_as_there_are_places(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        requests = [replace(REQUEST, request_id=f"r{number}") for number in range(4)]
        starting = asyncio.create_task(peers.relay.start(requests, "m", 5.0))
        lease = await peers.accept(peers.control)
        assert await lease.receive() == Acquire("r0", "m", 5.0, places=4)
        await lease.send(Granted("m", "m#1", peers.socket, places=1))
        number, first = await peers.next_choice()
        generation = await starting
        assert number == 0

        more = asyncio.create_task(peers.next_choice())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not more.done()
        await lease.send(Places(2))
        number, second = await more
        assert number == 1

        await lease.send(Places(1))
        await second.send(Token(1, "a"), End("stop", 3, 1))
        assert [await generation.receive() for _ in range(2)]
        more = asyncio.create_task(peers.next_choice())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not more.done()
        await first.send(Token(1, "a"), End("stop", 3, 1))
        assert [await generation.receive() for _ in range(2)]
        _, third = await more
        await third.send(End("stop", 3, 0))
        await generation.receive()
        _, last = await peers.next_choice()
        await last.send(End("stop", 3, 0))
        await generation.receive()
        generation.close()
        assert await lease.receive() is None
        assert lease.holds == [Holds(1, 3), Holds(1, 2), Holds(1, 1)]

    run_scenario(scenario)


def test_places_that_come_while_the_worker_is_being_reached_are_used(
    run_scenario: Callable[[Scenario], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Preconnect, "take", lambda *_: None)

    async def scenario(peers: Peers) -> None:
        real, accepts, tried = reach, asyncio.Event(), asyncio.Event()

        async def later(path: str, frames: Any) -> Any:
            if path == peers.socket and not accepts.is_set():
                tried.set()
                raise ConnectionRefusedError
            return await real(path, frames)

        monkeypatch.setattr(relay_module, "reach", later)
        requests = [replace(REQUEST, request_id=f"r{number}") for number in range(3)]
        starting = asyncio.create_task(peers.relay.start(requests, "m", 5.0))
        lease = await peers.accept(peers.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", peers.socket, places=1))
        await tried.wait()
        await lease.send(Places(3))
        for _ in range(2):  # whoever tries again has read what came before
            tried.clear()
            await tried.wait()
        accepts.set()
        assert sorted([(await peers.next_choice())[0] for _ in requests]) == [0, 1, 2]
        (await starting).close()

    run_scenario(scenario)


def test_after_a_death_fewer_may_go_on_at_once_and_all_do(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        generation, lease, workers = await peers.start_several(3)
        for number, worker in enumerate(workers):
            await worker.send(Token(number, "a"))
            await generation.receive()
        for worker in workers:
            worker.close()
        await lease.send(replace(DIED, may_return=True))
        assert isinstance(await lease.receive(), Return)
        await lease.send(Granted("m", "m#2", peers.socket, places=1))
        for number in range(3):
            went_on, worker = await peers.next_choice()
            assert went_on == number
            await worker.send(End("stop", 3, 1))
            while not isinstance((await generation.receive())[1], End):
                continue
        generation.close()

    run_scenario(scenario)
