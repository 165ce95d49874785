"""gateway.relay: a lease, a worker's stream, and what each way of ending means.

The supervisor and the worker are sockets that the test itself reads and writes, so every order of
events is the test's own choice.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from msgspec.structs import replace

from gateway import generation as generation_module
from gateway import relay as relay_module
from gateway.generation import RECOVERING, Event, Generation
from gateway.relay import Relay
from supervisor.errors import (
    BulkheadError,
    ContextLengthExceeded,
    InternalError,
    InvalidValue,
    ModelLoadFailed,
    ModelNotFound,
    QueueFull,
    ShuttingDown,
    WorkerCrashed,
)
from supervisor.wire.codec import HEADER, Decoder, encode
from supervisor.wire.frames import (
    Accepted,
    Acquire,
    Continue,
    Died,
    End,
    Failed,
    Fault,
    Frame,
    Generate,
    Granted,
    Inquire,
    Passed,
    Pause,
    Proceed,
    Progress,
    Refused,
    Report,
    Text,
    ToEngine,
    Token,
    ToSupervisor,
)
from supervisor.wire.stream import connect

REQUEST = Generate("r1", Text("hello"), 1.5, max_tokens=7, stop=("x",))
DIED = Died("worker_crashed", "The worker m#1 died (SIGABRT).", None, 9)
NEVER = 1000.0
"""Seconds: a test that waits for this long has failed by its own limit before."""


class Peer:
    """The far end of one of the relay's connections."""

    def __init__(self, connection: socket.socket, direction: Any) -> None:
        self._socket = connection
        self._decoder: Decoder[Frame] = Decoder(direction)
        self._arrived: deque[Frame] = deque()

    async def receive(self) -> Frame | None:
        while not self._arrived:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._socket, 2**16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._arrived.extend(self._decoder.feed(data))
        return self._arrived.popleft()

    def unread(self, frame: Frame) -> None:
        self._arrived.appendleft(frame)

    async def send(self, *frames: Frame) -> None:
        await self.send_bytes(b"".join(map(encode, frames)))

    async def send_bytes(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def close(self) -> None:
        self._socket.close()


class Stage:
    """Listening sockets for both peers, and the relay between them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.control = str(folder / "control.sock")
        self.socket = str(folder / "worker.sock")
        self._listeners = {
            path: stack.enter_context(socket.socket(socket.AF_UNIX))
            for path in (self.control, self.socket)
        }
        for path, listener in self._listeners.items():
            listener.bind(path)
            listener.listen(8)
            listener.setblocking(False)
        self._silent: dict[str, dict[asyncio.Task[Frame | None], Peer]]
        self._silent = {path: {} for path in self._listeners}
        self.relay = Relay(self.control)

    async def accept(self, path: str) -> Peer:
        """The next connection that says something; those kept ahead wait for their turn."""
        silent = self._silent[path]
        while True:
            for task in [task for task in silent if task.done()]:
                peer, frame = silent.pop(task), task.result()
                if frame is not None:
                    peer.unread(frame)
                    return peer
            accepting = asyncio.create_task(self.connected(path))
            either: set[asyncio.Task[Any]] = {accepting, *silent}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if accepting.done():
                peer = accepting.result()
                silent[asyncio.create_task(peer.receive())] = peer
            else:
                accepting.cancel()

    async def connected(self, path: str) -> Peer:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listeners[path])
        self._stack.enter_context(connection)
        return Peer(connection, ToSupervisor if path == self.control else ToEngine)

    async def start_several(self, choices: int) -> tuple[Generation, Peer, list[Peer]]:
        """A generation of several choices, its lease, and the worker's end of each choice."""
        requests = [replace(REQUEST, request_id=f"r{number}") for number in range(choices)]
        starting = asyncio.create_task(self.relay.start(requests, "alias", 5.0))
        lease = await self.accept(self.control)
        assert await lease.receive() == Acquire("r0", "alias", 5.0)
        await lease.send(Granted("m", "m#1", self.socket))
        workers: dict[str, Peer] = {}
        for _ in requests:
            worker = await self.accept(self.socket)
            request = await worker.receive()
            assert isinstance(request, Generate)
            workers[request.request_id] = worker
        return await starting, lease, [workers[each.request_id] for each in requests]

    async def start(self, until: int = 0) -> tuple[Generation, Peer, Peer]:
        """A generation that runs, its lease and its worker."""
        starting = asyncio.create_task(self.relay.start(REQUEST, "alias", 5.0))
        lease = await self.accept(self.control)
        assert await lease.receive() == Acquire("r1", "alias", 5.0)
        await lease.send(Granted("m", "m#1", self.socket, until, then_pause=until > 0))
        worker = await self.accept(self.socket)
        assert await worker.receive() == REQUEST
        return await starting, lease, worker


Scene = Callable[[Stage], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Iterator[Callable[[Scene], None]]:
    """Runs a scene on an event loop of either kind; the gateway's is uvloop."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-", dir="/tmp") as folder:

        def run(scene: Scene) -> None:
            async def whole() -> None:
                with ExitStack() as stack:
                    async with asyncio.timeout(10):
                        await scene(Stage(Path(folder), stack))
                for _ in range(5):
                    await asyncio.sleep(0)  # closed transports say goodbye on the loop

            with asyncio.Runner(loop_factory=request.param) as runner:
                runner.run(whole())

        yield run


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how long the relay waits for a cause, for the answer to a Fault, and over the hold."""

    def set_to(*, cause: float = NEVER, fault: float = NEVER, answer: float = NEVER) -> None:
        monkeypatch.setattr(generation_module, "_CAUSE_SECONDS", cause)
        monkeypatch.setattr(relay_module, "_CONNECT_SECONDS", cause)
        for module in (generation_module, relay_module):
            monkeypatch.setattr(module, "_FAULT_SECONDS", fault)
            monkeypatch.setattr(module, "ANSWER_SECONDS", answer)

    return set_to


async def received(generation: Generation) -> Event:
    """The next frame of a request with one choice."""
    choice, frame = await generation.receive()
    assert choice == 0
    return frame


async def failure_of(waiting: Awaitable[object]) -> BulkheadError:
    with pytest.raises(BulkheadError) as caught:
        await waiting
    return caught.value


def same(error: BulkheadError, frame: Refused | Died | Failed) -> bool:
    return (error.code, error.message, error.param, error.retry_after) == (
        frame.code,
        frame.message,
        frame.param,
        frame.retry_after,
    )


# ── well ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_goes_well(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        assert (generation.model, generation.worker) == ("m", "m#1")
        await worker.send(Accepted(3), Progress(1, 3), Token(5, "a"))
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

    play(scene)


def test_closing_early_gives_the_place_back_and_tells_the_worker(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        await worker.send(Accepted(3), Token(5, "a"))
        assert await received(generation) == Token(5, "a")
        generation.close()
        assert await worker.receive() is None
        assert await lease.receive() is None
        generation.close()

    play(scene)


def test_a_receive_that_is_cancelled_loses_nothing(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation, _, worker = await stage.start()
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await generation.receive()
            await worker.send(Token(number, "x"))
            assert await received(generation) == Token(number, "x")
        generation.close()

    play(scene)


def test_requests_at_the_same_time_have_leases_of_their_own(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        first, first_lease, first_worker = await stage.start()
        second, second_lease, second_worker = await stage.start()
        await first_lease.send(DIED)
        first_worker.close()
        assert same(await failure_of(first.receive()), DIED)
        await second_worker.send(Token(1, "a"), End("stop", 1, 1))
        assert await received(second) == Token(1, "a")
        assert await received(second) == End("stop", 1, 1)
        first.close()
        second.close()
        assert await second_lease.receive() is None

    play(scene)


# ── on trial ─────────────────────────────────────────────────────────────────────────────────────


def test_a_request_on_trial_says_when_it_has_passed_and_pauses_until_told(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start(until=2)
        await worker.send(Token(1, "a"), Token(2, "b"))
        frames = [await received(generation) for _ in range(3)]
        assert frames == [Token(1, "a"), Token(2, "b"), RECOVERING]
        assert await lease.receive() == Passed()
        assert await worker.receive() == Pause()
        await lease.send(Proceed())
        assert await worker.receive() == Continue()
        await worker.send(Token(3, "c"), End("stop", 1, 3))
        frames = [await received(generation) for _ in range(2)]
        assert frames == [Token(3, "c"), End("stop", 1, 3)]
        generation.close()
        assert await lease.receive() is None

    play(scene)


def test_a_request_that_ends_on_trial_has_passed_and_one_that_fails_has_not(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start(until=2)
        await worker.send(Token(1, "a"), End("stop", 1, 1))
        assert [await received(generation) for _ in range(2)] == [Token(1, "a"), End("stop", 1, 1)]
        generation.close()
        assert await lease.receive() == Passed()
        assert await worker.receive() is None  # not told to pause
        generation, lease, worker = await stage.start(until=2)
        await worker.send(Failed("invalid_value", "bad", None, None))
        await failure_of(generation.receive())
        generation.close()
        assert await lease.receive() is None

    play(scene)


# ── several choices ──────────────────────────────────────────────────────────────────────────────


def test_choices_are_merged_and_each_keeps_its_order(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, workers = await stage.start_several(3)
        for number, worker in enumerate(workers):
            tokens = [Token(number * 10 + place, "x") for place in range(5)]
            await worker.send(Accepted(3), *tokens, End("stop", 3, 5))
        frames: dict[int, list[Event]] = {0: [], 1: [], 2: []}
        for _ in range(18):
            choice, frame = await generation.receive()
            frames[choice].append(frame)
        for number in frames:
            *arrived, end = frames[number]
            assert arrived == [Token(number * 10 + place, "x") for place in range(5)]
            assert end == End("stop", 3, 5)
        generation.close()
        assert [await worker.receive() for worker in workers] == [None] * 3
        assert await lease.receive() is None

    play(scene)


def test_choices_are_interleaved_as_they_come(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation, _, (first, second) = await stage.start_several(2)
        for number in range(4):
            await second.send(Token(number, "b"))
            assert await generation.receive() == (1, Token(number, "b"))
            await first.send(Token(number, "a"))
            assert await generation.receive() == (0, Token(number, "a"))
        generation.close()

    play(scene)


@pytest.mark.parametrize("choices", [1, 2])
def test_a_prompts_text_is_passed_on_and_other_acceptances_are_not(
    play: Callable[[Scene], None], choices: int
) -> None:
    async def scene(stage: Stage) -> None:
        generation, _, workers = await stage.start_several(choices)
        await workers[0].send(Accepted(3), Accepted(3, "the prompt"), End("stop", 3, 0))
        assert await generation.receive() == (0, Accepted(3, "the prompt"))
        assert await generation.receive() == (0, End("stop", 3, 0))
        generation.close()

    play(scene)


def test_one_choices_error_ends_the_request(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, workers = await stage.start_several(3)
        await workers[1].send(Token(1, "a"), Failed("invalid_value", "bad", "messages", None))
        assert await generation.receive() == (1, Token(1, "a"))
        assert type(await failure_of(generation.receive())) is InvalidValue
        generation.close()
        assert [await worker.receive() for worker in workers] == [None] * 3
        assert await lease.receive() is None  # and no Fault

    play(scene)


@pytest.mark.parametrize("told_first", [True, False])
def test_a_death_is_the_death_of_all_choices_and_asked_about_once(
    play: Callable[[Scene], None], patience: Callable[..., None], told_first: bool
) -> None:
    patience(**({} if told_first else {"cause": 0.0}))

    async def scene(stage: Stage) -> None:
        generation, lease, workers = await stage.start_several(3)
        if told_first:
            await lease.send(DIED)
        for worker in workers:
            worker.close()
        failing = asyncio.create_task(failure_of(generation.receive()))
        if not told_first:
            assert isinstance(await lease.receive(), Fault)
            await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()
        assert await lease.receive() is None  # no second Fault

    play(scene)


def test_every_choices_broken_frame_is_one_fault(
    play: Callable[[Scene], None], patience: Callable[..., None]
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        generation, lease, workers = await stage.start_several(3)
        for worker in workers:
            await worker.send_bytes(HEADER.pack(1) + b"\xc1")
        failing = asyncio.create_task(failure_of(generation.receive()))
        assert isinstance(await lease.receive(), Fault)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()
        assert await lease.receive() is None

    play(scene)


def test_a_receive_of_several_that_is_cancelled_loses_nothing(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        generation, _, workers = await stage.start_several(2)
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await generation.receive()
            await workers[number % 2].send(Token(number, "x"))
            assert await generation.receive() == (number % 2, Token(number, "x"))
        generation.close()

    play(scene)


def test_a_reader_that_stands_still_holds_its_choices_back(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "_MERGED_MAX", 4)

    async def scene(stage: Stage) -> None:
        generation, _, workers = await stage.start_several(2)
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

    play(scene)


def test_a_choice_that_cannot_be_sent_leaks_no_lease_and_no_connection(
    play: Callable[[Scene], None],
) -> None:
    requests = [REQUEST, Generate("r2", Text("\ud800"), 1.5)]

    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(requests, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", stage.socket))
        workers = [await stage.connected(stage.socket) for _ in requests]
        with pytest.raises(InternalError):
            await starting
        assert await lease.receive() is None
        for worker in workers:
            assert await worker.receive() in (REQUEST, None)
            assert await worker.receive() is None

    play(scene)


def test_a_worker_lost_between_two_choices_is_explained_and_leaks_nothing(
    play: Callable[[Scene], None], patience: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        real, calls = connect, 0

        async def once(path: str, frames: Any) -> Any:
            nonlocal calls
            calls += path == stage.socket
            if calls > 1:
                raise ConnectionRefusedError
            return await real(path, frames)

        monkeypatch.setattr(relay_module, "connect", once)
        starting = asyncio.create_task(stage.relay.start([REQUEST, REQUEST], "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", stage.socket))
        worker = await stage.accept(stage.socket)
        assert await worker.receive() == REQUEST
        await lease.send(DIED)
        assert same(await failure_of(starting), DIED)
        assert await worker.receive() is None
        assert await lease.receive() is None

    play(scene)


# ── no place ─────────────────────────────────────────────────────────────────────────────────────


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
    play: Callable[[Scene], None], frame: Refused | Died, kind: type[BulkheadError]
) -> None:
    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(REQUEST, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send(frame)
        error = await failure_of(starting)
        assert type(error) is kind
        assert same(error, frame)
        assert await lease.receive() is None

    play(scene)


def test_cancelling_the_wait_gives_the_place_back(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(REQUEST, "m", 5.0))
        lease = await stage.accept(stage.control)
        assert isinstance(await lease.receive(), Acquire)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert await lease.receive() is None

    play(scene)


def test_a_supervisor_that_does_not_answer_is_gone(
    play: Callable[[Scene], None], patience: Callable[..., None]
) -> None:
    patience(answer=0.0)

    async def scene(stage: Stage) -> None:
        error = await failure_of(stage.relay.start(REQUEST, "m", 0.0))
        assert type(error) is ShuttingDown
        lease = await stage.accept(stage.control)
        assert await lease.receive() in (Acquire("r1", "m", 0.0), None)
        assert await lease.receive() is None

    play(scene)


@pytest.mark.parametrize(
    "data", [encode(Report(True, b"{}", "")), HEADER.pack(1) + b"\xc1", HEADER.pack(2**31)]
)
def test_an_answer_that_makes_no_sense_is_a_bug_of_ours(
    play: Callable[[Scene], None], data: bytes
) -> None:
    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(REQUEST, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send_bytes(data)
        assert type(await failure_of(starting)) is InternalError
        assert await lease.receive() is None

    play(scene)


def test_without_a_supervisor_requests_are_told_to_come_back(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        relay = Relay(stage.control + ".gone")
        for waiting in (relay.start(REQUEST, "m", 5.0), relay.report()):
            error = await failure_of(waiting)
            assert type(error) is ShuttingDown
            assert error.retry_after is not None

    play(scene)


def test_a_supervisor_that_closes_instead_of_answering_is_gone(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(REQUEST, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        lease.close()
        assert type(await failure_of(starting)) is ShuttingDown

    play(scene)


# ── death ────────────────────────────────────────────────────────────────────────────────────────


def test_a_death_that_is_told_before_the_stream_ends(
    play: Callable[[Scene], None], patience: Callable[..., None]
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        await lease.send(DIED)
        assert await worker.receive() is None  # it has been heard
        worker.close()
        error = await failure_of(generation.receive())
        assert type(error) is WorkerCrashed
        assert same(error, DIED)
        generation.close()
        assert await lease.receive() is None  # and no Fault

    play(scene)


@pytest.mark.parametrize("torn", [b"", encode(Token(3, "half a word"))[:-3], b"\0"])
def test_a_death_that_is_told_after_the_stream_ended(
    play: Callable[[Scene], None], patience: Callable[..., None], torn: bytes
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        await worker.send(Accepted(1), Token(1, "a"), Token(2, "b"))
        await worker.send_bytes(torn)
        worker.close()
        # What had arrived whole is delivered first.
        assert [await received(generation) for _ in range(2)] == [Token(1, "a"), Token(2, "b")]
        failing = asyncio.create_task(failure_of(generation.receive()))
        await asyncio.sleep(0)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()
        assert await lease.receive() is None

    play(scene)


def test_a_worker_that_hangs_does_not_keep_its_client_once_it_is_given_up(
    play: Callable[[Scene], None], patience: Callable[..., None]
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        await worker.send(Token(1, "a"))
        assert await received(generation) == Token(1, "a")
        failing = asyncio.create_task(failure_of(generation.receive()))
        await lease.send(DIED)  # the worker's socket stays open
        assert same(await failing, DIED)
        generation.close()

    play(scene)


@pytest.mark.parametrize("torn", [b"", encode(Token(3, "half a word"))[:-3]])
def test_a_stream_cut_by_a_worker_that_lives_is_a_fault(
    play: Callable[[Scene], None], patience: Callable[..., None], torn: bytes
) -> None:
    patience(cause=0.0)

    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        await worker.send_bytes(torn)
        worker.close()
        failing = asyncio.create_task(failure_of(generation.receive()))
        assert isinstance(await lease.receive(), Fault)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()

    play(scene)


@pytest.mark.parametrize(
    "data",
    [HEADER.pack(4) + b"\xc1\xc1\xc1\xc1", HEADER.pack(2**31), encode(Granted("m", "m#1", "s"))],
    ids=["garbage", "oversized", "wrong type"],
)
def test_a_malformed_frame_is_a_fault_at_once(
    play: Callable[[Scene], None], patience: Callable[..., None], data: bytes
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        await worker.send(Token(1, "a"))
        await worker.send_bytes(data)
        assert await received(generation) == Token(1, "a")
        failing = asyncio.create_task(failure_of(generation.receive()))
        assert isinstance(await lease.receive(), Fault)
        await lease.send(DIED)
        assert same(await failing, DIED)
        generation.close()

    play(scene)


def test_a_fault_that_nobody_answers_ends_all_the_same(
    play: Callable[[Scene], None], patience: Callable[..., None]
) -> None:
    patience(cause=0.0, fault=0.0)

    async def scene(stage: Stage) -> None:
        generation, _, worker = await stage.start()
        worker.close()
        error = await failure_of(generation.receive())
        assert type(error) is WorkerCrashed
        assert "m#1" in error.message
        generation.close()

    play(scene)


@pytest.mark.parametrize(
    "answer", [b"", HEADER.pack(1) + b"\xc1", encode(Granted("m", "m#2", "s"))]
)
def test_a_supervisor_that_goes_away_ends_the_stream(
    play: Callable[[Scene], None], patience: Callable[..., None], answer: bytes
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start()
        await lease.send_bytes(answer)
        lease.close()
        assert type(await failure_of(generation.receive())) is ShuttingDown
        assert await worker.receive() is None
        generation.close()

    play(scene)


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
    play: Callable[[Scene], None], frame: Failed, kind: type[BulkheadError]
) -> None:
    async def scene(stage: Stage) -> None:
        generation, _, worker = await stage.start()
        await worker.send(frame)
        error = await failure_of(generation.receive())
        assert type(error) is kind
        assert same(error, frame)
        generation.close()

    play(scene)


def test_an_error_of_an_unknown_code_is_a_bug_of_ours(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation, _, worker = await stage.start()
        await worker.send(Failed("no_such_code", "?", None, None))
        assert type(await failure_of(generation.receive())) is InternalError
        generation.close()

    play(scene)


def test_a_worker_that_died_before_it_was_reached_is_explained_by_the_lease(
    play: Callable[[Scene], None], patience: Callable[..., None]
) -> None:
    patience(cause=0.0)

    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(REQUEST, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", stage.socket + ".gone"))
        assert isinstance(await lease.receive(), Fault)
        await lease.send(DIED)
        assert same(await failure_of(starting), DIED)
        assert await lease.receive() is None

    play(scene)


def test_a_death_told_while_the_worker_does_not_accept_needs_no_fault(
    play: Callable[[Scene], None], patience: Callable[..., None]
) -> None:
    patience()

    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(REQUEST, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", stage.socket + ".gone"))
        await lease.send(DIED)
        assert same(await failure_of(starting), DIED)
        assert await lease.receive() is None

    play(scene)


@pytest.mark.parametrize(
    ("answer", "kind"), [(Granted("m", "m#2", "s"), InternalError), (None, ShuttingDown)]
)
def test_a_worker_that_cannot_be_reached_and_is_not_explained(
    play: Callable[[Scene], None],
    patience: Callable[..., None],
    answer: Frame | None,
    kind: type[BulkheadError],
) -> None:
    patience(cause=0.0)

    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(REQUEST, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", stage.socket + ".gone"))
        assert isinstance(await lease.receive(), Fault)
        if answer is None:
            lease.close()
        else:
            await lease.send(answer)
        assert type(await failure_of(starting)) is kind

    play(scene)


def test_a_request_that_cannot_be_sent_leaks_no_lease(play: Callable[[Scene], None]) -> None:
    unsendable = Generate("r1", Text("\ud800"), 1.5)

    async def scene(stage: Stage) -> None:
        starting = asyncio.create_task(stage.relay.start(unsendable, "m", 5.0))
        lease = await stage.accept(stage.control)
        await lease.receive()
        await lease.send(Granted("m", "m#1", stage.socket))
        worker = await stage.connected(stage.socket)
        with pytest.raises(InternalError):
            await starting
        assert await worker.receive() is None
        assert await lease.receive() is None

    play(scene)


# ── reports ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["", "some/model:8b"])
def test_a_report_is_asked_for_and_returned(play: Callable[[Scene], None], model: str) -> None:
    async def scene(stage: Stage) -> None:
        asking = asyncio.create_task(stage.relay.report(model))
        supervisor = await stage.accept(stage.control)
        assert await supervisor.receive() == Inquire(model)
        await supervisor.send(Report(True, b"{}", model))
        assert await asking == Report(True, b"{}", model)
        assert await supervisor.receive() is None

    play(scene)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (encode(Refused("model_not_found", "no", "model", None)), ModelNotFound),
        (encode(Granted("m", "m#1", "s")), InternalError),
        (HEADER.pack(1) + b"\xc1", InternalError),
    ],
)
def test_a_report_that_does_not_come(
    play: Callable[[Scene], None], answer: bytes, kind: type[BulkheadError]
) -> None:
    async def scene(stage: Stage) -> None:
        asking = asyncio.create_task(stage.relay.report("x"))
        supervisor = await stage.accept(stage.control)
        await supervisor.receive()
        await supervisor.send_bytes(answer)
        assert type(await failure_of(asking)) is kind
        assert await supervisor.receive() is None

    play(scene)
