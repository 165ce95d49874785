"""supervisor.processes.counter: started when it is wanted, ended when it is not, replaced when it
does not work."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor.processes import counter
from supervisor.processes.counter import CounterDown, CounterProcess, CounterState
from supervisor.processes.worker import ExitCallbacks, WorkerProcess
from supervisor.wire import frames
from supervisor.wire.progress import Reading
from tests.helpers.serving import DEADLINE


class Played:
    """A `WorkerProcess` without a process."""

    def __init__(self, pid: int, socket: Path, callbacks: ExitCallbacks) -> None:
        self.pid, self.socket = pid, socket
        self._callbacks = callbacks
        self.signals: list[str] = []
        self.child = SimpleNamespace(
            pid=pid,
            signal=lambda number: self.signals.append(signal.Signals(number).name),
            kill_with_stacks=lambda: self.signals.append("stacks"),
        )
        self.gone = asyncio.Event()
        self.channel = SimpleNamespace(receive=self._receive, close=lambda: None)
        self.is_ours = True
        self.beats = 0
        self.error: OSError | None = None
        """Of its channel, once something is said there."""
        self._said: asyncio.Queue[object] = asyncio.Queue()

    async def connect(self) -> Any:
        return self.channel

    async def _receive(self) -> object:
        said = await self._said.get()
        if self.error is not None:
            raise self.error
        return said

    def runs_our_code(self) -> bool:
        return self.is_ours

    def reading(self) -> Reading:
        return Reading(beats=self.beats)

    async def says(self, frame: object) -> None:
        self._said.put_nowait(frame)
        for _ in range(5):
            await asyncio.sleep(0)

    async def hello(self) -> None:
        self.socket.touch()
        await self.says(frames.Hello(self.pid))

    def exits(self, how: str) -> None:
        self._said.put_nowait(None)
        self._callbacks.on_exit(how)
        self.gone.set()


class World:
    def __init__(self, root: Path) -> None:
        self.started: list[Played] = []
        self.deaths: list[tuple[int, str, str]] = []
        self.started_one = asyncio.Event()
        self.changes = 0
        self.error: OSError | None = None
        self.counter = CounterProcess(
            self._start,
            lambda generation: root / f"c-{generation}.sock",
            self._changed,
            lambda child, how, _, why: self.deaths.append((child.pid, how, why)),
            stall_seconds=5.0,
            idle_seconds=100.0,
        )

    def _start(self, socket: Path, callbacks: ExitCallbacks) -> WorkerProcess:
        if self.error is not None:
            raise self.error
        self.started.append(Played(len(self.started) + 1, socket, callbacks))
        self.started_one.set()
        return cast(WorkerProcess, self.started[-1])

    def _changed(self) -> None:
        self.changes += 1

    async def asks(self) -> asyncio.Task[Path]:
        """Somebody wants one."""
        asking = asyncio.create_task(self.counter.ready())
        for _ in range(3):
            await asyncio.sleep(0)
        return asking

    async def has_started(self, processes: int) -> None:
        while len(self.started) < processes:
            self.started_one.clear()
            await self.started_one.wait()

    async def ready(self) -> Played:
        asking = await self.asks()
        await self.started[-1].hello()
        assert await asking == self.started[-1].socket
        return self.started[-1]

    def maintain(self, later: float = 0.0) -> None:
        self.counter.maintain(asyncio.get_running_loop().time() + later)


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(story: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with asyncio.timeout(DEADLINE):
                await story(World(tmp_path))

        asyncio.run(whole())

    return run


Play = Callable[[Callable[[World], Awaitable[None]]], None]


async def refusal(asking: Awaitable[Path]) -> CounterDown:
    with pytest.raises(CounterDown) as caught:
        await asking
    return caught.value


def test_one_start_serves_all_who_ask_meanwhile_and_later(play: Play) -> None:
    async def story(world: World) -> None:
        states = [world.counter.state]
        asking = [await world.asks(), await world.asks()]
        states.append(world.counter.state)
        await world.started[0].hello()
        assert await asyncio.gather(*asking) == [world.started[0].socket] * 2
        assert await world.counter.ready() == world.started[0].socket
        states.append(world.counter.state)
        assert states == [CounterState.OFF, CounterState.STARTING, CounterState.READY]
        assert (len(world.started), world.changes) == (1, 1)

    play(story)


def test_it_ends_when_nobody_has_counted_for_a_while(play: Play) -> None:
    async def story(world: World) -> None:
        process = await world.ready()
        world.counter.enter()
        world.maintain(later=1000.0)
        world.counter.drop("memory is short")
        assert process.signals == []  # somebody counts
        world.counter.leave()
        world.maintain(later=99.0)
        assert process.signals == []
        world.maintain(later=101.0)
        assert (process.signals, world.counter.state) == (["SIGKILL"], CounterState.OFF)
        asking = await world.asks()
        assert len(world.started) == 1  # the old one is still there
        process.exits("SIGKILL")
        assert not process.socket.exists()
        await world.has_started(2)
        assert world.started[1].socket != process.socket
        await world.started[1].hello()
        assert await asking == world.started[1].socket
        assert world.deaths == []

    play(story)


def test_memory_that_is_short_ends_it_where_nobody_counts(play: Play) -> None:
    async def story(world: World) -> None:
        process = await world.ready()
        world.counter.drop("memory is short")
        assert process.signals == ["SIGKILL"]

    play(story)


def test_a_death_is_told_and_the_next_count_starts_another(play: Play) -> None:
    async def story(world: World) -> None:
        process = await world.ready()
        process.exits("SIGSEGV")
        assert world.deaths == [(1, "SIGSEGV", "")]
        assert world.counter.child is None
        assert await world.ready() is world.started[1]

    play(story)


def test_one_that_stalls_while_somebody_waits_is_replaced(play: Play) -> None:
    async def story(world: World) -> None:
        process = await world.ready()
        for later in range(20):
            world.maintain(later=later / 2)
        assert process.signals == []  # nobody waits
        world.counter.enter()
        for later in range(20, 40):
            process.beats += 1
            world.maintain(later=later / 2)
        assert process.signals == []
        for later in range(40, 60):
            world.maintain(later=later / 2)
        assert process.signals == ["stacks"]  # once
        asking = await world.asks()
        assert len(world.started) == 1  # no count goes to one that is dying
        process.exits("SIGKILL")
        ((_, how, why),) = world.deaths
        assert how == "SIGKILL"
        assert why.startswith("it stalled: its event loop has not turned for 5")
        await world.has_started(2)
        await world.started[1].hello()
        assert await asking == world.started[1].socket

    play(story)


def test_one_that_never_starts_is_told_and_tried_again_later_each_time(play: Play) -> None:
    async def story(world: World) -> None:
        asking = await world.asks()
        world.started[0].exits("exit status 1")
        first = await refusal(asking)
        assert str(first) == "it died while it started (exit status 1)"
        assert 0 < first.seconds <= 1
        again = await refusal(world.counter.ready())
        assert (len(world.started), str(again)) == (1, str(first))
        assert world.deaths == [(1, "exit status 1", "")]
        world.counter._due = 0.0
        asking = await world.asks()
        world.started[1].exits("exit status 1")
        assert 1 < (await refusal(asking)).seconds <= 2
        world.counter._due = 0.0
        await world.ready()
        world.started[2].exits("SIGKILL")  # it was ready: the next one may start at once
        asking = await world.asks()
        world.started[3].exits("exit status 1")
        assert 0 < (await refusal(asking)).seconds <= 1

    play(story)


def test_one_that_cannot_be_started_is_told(play: Play) -> None:
    async def story(world: World) -> None:
        world.error = OSError(11, "Resource temporarily unavailable")
        told = await refusal(world.counter.ready())
        assert str(told) == "it could not be started: Resource temporarily unavailable"
        assert world.counter.child is None
        world.counter._due, world.error = 0.0, None
        await world.ready()

    play(story)


def test_a_start_that_takes_too_long_ends(play: Play) -> None:
    async def story(world: World) -> None:
        asking = await world.asks()
        world.maintain(later=59.0)
        assert world.started[0].signals == []
        world.maintain(later=61.0)
        assert world.started[0].signals == ["stacks"]
        world.started[0].exits("SIGKILL")
        assert "it was not ready within 60 s" in str(await refusal(asking))

    play(story)


@pytest.mark.parametrize("case", ["hello", "broken"])
def test_late_words_of_one_that_has_ended_are_not_the_next_ones(play: Play, case: str) -> None:
    async def story(world: World) -> None:
        asking = await world.asks()
        late = world.started[0]
        late._callbacks.on_exit("SIGKILL")
        await refusal(asking)
        world.counter._due = 0.0
        asking = await world.asks()
        late.error = ConnectionResetError("reset") if case == "broken" else None
        await late.hello()
        assert world.counter.state is CounterState.STARTING
        assert world.started[1].signals == []
        await world.started[1].hello()
        assert await asking == world.started[1].socket

    play(story)


def test_one_that_neither_starts_nor_ends_is_told(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_START_SECONDS", 0.0)
    monkeypatch.setattr(counter, "_REAP_SECONDS", 0.01)

    async def story(world: World) -> None:
        told = await refusal(world.counter.ready())
        assert str(told) == "it takes too long to start"
        world.maintain()
        assert str(await refusal(world.counter.ready())) == "it was not ready within 0 s"
        assert len(world.started) == 1

    play(story)


@pytest.mark.parametrize("case", ["words", "code"])
def test_one_that_is_not_ours_is_not_used(play: Play, case: str) -> None:
    async def story(world: World) -> None:
        asking = await world.asks()
        process = world.started[0]
        process.is_ours = case == "words"
        await process.says(frames.Loading(1, 2) if case == "words" else frames.Hello(1))
        assert process.signals == ["stacks"]
        process.exits("SIGKILL")
        assert ("out of turn" if case == "words" else "files changed") in str(await refusal(asking))

    play(story)


def test_one_that_does_not_end_is_told(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "_REAP_SECONDS", 0.01)

    async def story(world: World) -> None:
        await world.ready()
        world.counter.drop("memory is short")
        assert str(await refusal(world.counter.ready())) == "the last one does not end"
        assert len(world.started) == 1

    play(story)


def test_after_the_end_there_is_none(play: Play) -> None:
    async def story(world: World) -> None:
        process = await world.ready()
        world.counter.enter()
        world.counter.disable()
        assert process.signals == ["SIGKILL"]
        ending = asyncio.create_task(world.counter.ended())
        await asyncio.sleep(0)
        assert not ending.done()
        process.exits("SIGKILL")
        await ending
        assert str(await refusal(world.counter.ready())) == "the server is shutting down"
        assert world.deaths == []
        await world.counter.ended()

    play(story)


def test_a_signal_to_stop_it_from_outside_is_a_death(play: Play) -> None:
    async def story(world: World) -> None:
        process = await world.ready()
        process.exits("exit status 0")
        assert world.deaths == [(1, "exit status 0", "")]

    play(story)
