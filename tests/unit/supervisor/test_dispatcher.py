"""supervisor.dispatcher: the order of events and effects, the end after a bug, models' files."""

from __future__ import annotations

import asyncio
import builtins
import errno
import io
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor import build, dispatcher
from supervisor.config.schema import ModelSettings
from supervisor.dispatcher import Dispatcher
from supervisor.errors import BulkheadError, ModelLoadFailed
from supervisor.models import looks
from supervisor.models.catalog import Catalog
from supervisor.models.size_cache import SizeCache
from supervisor.models.sizing import Sizing
from supervisor.processes.counter import CounterState
from supervisor.processes.fleet import Fleet
from supervisor.scheduler.effects import Effect, LogLine, Refuse, Spawn
from supervisor.scheduler.model import Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from supervisor.wire.frames import MayPrefill, WantsPrefill
from tests.helpers.hub_cache import plain_files, write_folder
from tests.helpers.serving import DEADLINE


class World:
    """A dispatcher around a real pool of the model `m`; the feed and the fleet write down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exits: list[int] = []
        self.exited = threading.Event()
        monkeypatch.setattr(os, "_exit", self._exit)
        self.pool = Pool([Spec("m")])
        self.said: list[str] = []
        self.spawned: Callable[[], None] = lambda: None
        feed = SimpleNamespace(
            tell=lambda event, **details: self.said.append(f"{event} {details['text']}"),
            tell_states=lambda _: self.said.append("states"),
        )
        self.dispatcher = Dispatcher(
            self.pool,
            cast(Any, None),
            cast(Any, None),
            cast(Any, None),
            cast(Any, feed),
            cast(Any, None),
        )
        fleet = SimpleNamespace(spawn=lambda *_: self.spawned())
        self.dispatcher.connect(cast(Any, fleet), cast(Any, None), cast(Any, None))

    def _exit(self, status: int) -> None:
        self.exits.append(status)
        self.exited.set()

    def event(self) -> list[Effect]:
        return [LogLine("before"), Spawn("m", 1), LogLine("after")]

    def nested(self) -> list[Effect]:
        self.said.append("nested")
        return [LogLine("of the nested event")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def run(scenario: Callable[[], None]) -> None:
    async def on_the_loop() -> None:
        scenario()

    asyncio.run(on_the_loop())


def test_an_event_that_an_effect_causes_comes_after_all_of_the_first_one(world: World) -> None:
    world.spawned = lambda: world.dispatcher.handle(world.nested)
    run(lambda: world.dispatcher.handle(world.event))
    assert world.said == [
        *("decision before", "decision after", "states"),
        *("nested", "decision of the nested event", "states"),
    ]


def test_after_a_failure_no_effect_is_carried_out_and_no_event_handled(world: World) -> None:
    def fail() -> None:
        world.dispatcher.handle(world.nested)
        world.dispatcher.fail()

    def scenario() -> None:
        world.spawned = fail
        world.dispatcher.handle(world.event)
        world.dispatcher.handle(world.nested)

    run(scenario)
    assert world.said == ["decision before"]


def test_after_a_bug_the_process_ends_although_the_loop_is_blocked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_EXIT_SECONDS", 0.05)

    def buggy() -> list[Effect]:
        raise RuntimeError("planted")

    def scenario() -> None:
        world.dispatcher.handle(buggy)
        assert world.dispatcher.failed.is_set()
        assert world.exited.wait(DEADLINE)  # in which the loop does not turn

    run(scenario)
    assert world.exits == [1]


# ── models' files ────────────────────────────────────────────────────────────────────────────────


class OnDisk:
    """A dispatcher around a real pool and real files of the model `m`; `touched` are the threads
    that have looked at them since."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.catalog = Catalog({"m": ModelSettings(source=str(folder))}, folder.parent / "hub")
        self.sizing = Sizing(self.catalog, SizeCache(folder.parent / "sizes.json"), None)
        self.pool = Pool([build.spec("m", self.catalog, self.sizing)])
        self.touched: set[threading.Thread] = set()
        self.said: list[str] = []
        feed = SimpleNamespace(tell=lambda *_, **__: None, tell_states=lambda _: None)
        nothing: Any = SimpleNamespace(
            diagnose=lambda *_, **__: None,
            report=lambda *_: None,
            record_effect=lambda _: None,
            left=lambda _: None,
            footprint=lambda _: None,
        )
        self.dispatcher = Dispatcher(
            self.pool, self.sizing, nothing, nothing, cast(Any, feed), nothing
        )
        self.fleet = Fleet(
            nothing,
            cast(Any, SimpleNamespace(logs=folder.parent)),
            self.catalog,
            self.dispatcher,
            module="",
            on_change=lambda: None,
            stall_seconds=1.0,
            locate=self.sizing.folder,
        )
        self.fleet._start = cast(Any, self._no_process)
        self._control: Any = SimpleNamespace(tell=lambda effect: self.said.append(told_of(effect)))
        self.spawns(lambda model, generation: None)
        for module, name in (
            *((os, name) for name in ("stat", "lstat", "listdir", "scandir", "open", "readlink")),
            *((builtins, name) for name in ("open",)),
            (io, "open"),
        ):
            monkeypatch.setattr(module, name, self._watched(getattr(module, name)))

    def spawns(self, spawn: Callable[[str, int], None]) -> None:
        """What a spawn does, in place of a process."""
        fleet = SimpleNamespace(spawn=spawn, stop=lambda *_, **__: True)
        counter = SimpleNamespace(state=CounterState.OFF)
        self.dispatcher.connect(cast(Any, fleet), self._control, cast(Any, counter))

    def _no_process(self, *_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "planned")

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *args: Any, **more: Any) -> Any:
            if not isinstance(path, int) and str(self.folder) in os.fsdecode(path):
                self.touched.add(threading.current_thread())
            return function(path, *args, **more)

        return watched

    async def request(self) -> None:
        """As the control socket has it."""
        await self.dispatcher.before_load("m")
        self.dispatcher.handle(lambda: self.pool.acquire("r", "m", 60.0, time.monotonic())[1])
        await asyncio.sleep(0)

    def fail(self, reason: str) -> None:
        generation = self.pool.models["m"].generation
        self.dispatcher.worker_unloadable("m", generation, reason)
        self.dispatcher.worker_exited("m", generation, "exit status 0")


def told_of(effect: Any) -> str:
    return str(effect.error.message) if isinstance(effect, Refuse) else type(effect).__name__


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnDisk:
    monkeypatch.setattr(looks, "INTERVAL", 0.0)
    monkeypatch.setattr(looks, "_MAX_PAUSE", 0.0)
    monkeypatch.setattr(looks, "WAIT_SECONDS", DEADLINE)
    return OnDisk(write_folder(tmp_path / "model", plain_files()), monkeypatch)


def test_no_request_reads_a_models_files_on_the_loop(on_disk: OnDisk) -> None:
    async def scenario() -> None:
        await on_disk.request()  # COLD: looks, and has it loaded
        on_disk.fail("no such file")
        for _ in range(3):  # FAILED: each looks
            await on_disk.request()

    asyncio.run(scenario())
    assert len(on_disk.said) == 4
    assert on_disk.touched
    assert threading.current_thread() not in on_disk.touched


def test_a_spawn_reads_no_models_files(on_disk: OnDisk) -> None:
    async def scenario() -> None:
        on_disk.fleet.spawn("m", 1)

    asyncio.run(scenario())
    assert on_disk.touched == set()


def test_a_failed_model_is_tried_again_once_its_files_change(on_disk: OnDisk) -> None:
    spawned: list[int] = []

    async def scenario() -> None:
        on_disk.spawns(lambda _, generation: spawned.append(generation))
        await on_disk.request()
        on_disk.fail("it is odd")
        await on_disk.request()
        assert spawned == [1]
        (on_disk.folder / "config.json").chmod(0o600)
        await on_disk.request()
        assert spawned == [1, 2]

    asyncio.run(scenario())
    assert "it is odd" in on_disk.said[1]


def test_a_load_that_lacks_a_file_is_refused_with_its_name(on_disk: OnDisk) -> None:
    async def scenario() -> None:
        whole = on_disk.folder / "model.safetensors"
        whole.rename(on_disk.folder / "model-00001-of-00002.safetensors")
        await on_disk.request()
        on_disk.fail("ValueError: Missing 9 parameters")

    asyncio.run(scenario())
    assert "model-00002-of-00002.safetensors is missing" in on_disk.said[0]


def test_a_reason_is_text_whatever_the_files_are_called(on_disk: OnDisk) -> None:
    async def scenario() -> None:
        await on_disk.request()
        on_disk.fail(os.fsdecode(b"caf\xe9 is odd"))

    asyncio.run(scenario())
    assert "caf\\xe9 is odd" in on_disk.said[0]
    assert on_disk.pool.models["m"].reason == "caf\\xe9 is odd"


# ── counts ───────────────────────────────────────────────────────────────────────────────────────


def refusal(counting: Coroutine[Any, Any, Path]) -> BulkheadError:
    with pytest.raises(BulkheadError) as caught:
        asyncio.run(counting)
    return caught.value


def test_a_count_is_told_the_folder_and_seldom_looks_for_it(on_disk: OnDisk) -> None:
    moved = on_disk.folder.with_name("elsewhere")

    async def scenario() -> None:
        assert await on_disk.dispatcher.before_count("m") == on_disk.folder
        on_disk.touched.clear()
        for _ in range(3):
            assert await on_disk.dispatcher.before_count("m") == on_disk.folder
        assert on_disk.touched == set()  # the last look will do
        on_disk.folder.rename(moved)
        await on_disk.request()  # which looks
        with pytest.raises(ModelLoadFailed, match="`m` cannot be loaded here"):
            await on_disk.dispatcher.before_count("m")

    asyncio.run(scenario())
    assert threading.current_thread() not in on_disk.touched


@pytest.mark.parametrize("state", [CounterState.OFF, CounterState.READY])
def test_without_memory_no_counter_is_started(on_disk: OnDisk, state: CounterState) -> None:
    fleet, counter = SimpleNamespace(), SimpleNamespace(state=state)
    on_disk.dispatcher.connect(cast(Any, fleet), on_disk._control, cast(Any, counter))
    on_disk.pool.memory.pressure(Level.CRITICAL, "99 % of RAM in use", 0.0)
    if state is CounterState.READY:
        assert asyncio.run(on_disk.dispatcher.before_count("m")) == on_disk.folder
    else:
        error = refusal(on_disk.dispatcher.before_count("m"))
        assert error.code == "memory_pressure"
        assert "99 % of RAM in use" in error.message


def test_nothing_is_counted_while_the_server_shuts_down(on_disk: OnDisk) -> None:
    on_disk.pool.shutdown(0.0)
    assert refusal(on_disk.dispatcher.before_count("m")).code == "shutting_down"


# ── prefill ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("works", [True, False])
def test_a_worker_is_told_that_it_may_prefill_or_has_to_go(on_disk: OnDisk, works: bool) -> None:
    told: list[Any] = []

    def tell(model: str, generation: int, frame: Any) -> None:
        if not works:
            raise OSError("planned")
        told.append((model, generation, frame))

    def stop(model: str, generation: int, *, kill: bool, stacks: bool) -> bool:
        told.append((model, generation, kill, stacks))
        return True

    async def scenario() -> None:
        fleet = SimpleNamespace(spawn=lambda *_: None, tell=tell, stop=stop)
        on_disk.dispatcher.connect(cast(Any, fleet), on_disk._control, cast(Any, None))
        on_disk.pool.preload("m", 0.0)
        on_disk.pool.ready("m", 1, 1, 4096, 1.0)
        on_disk.dispatcher.worker_told("m", 1, WantsPrefill(True))

    asyncio.run(scenario())
    assert told == [("m", 1, MayPrefill(True)) if works else ("m", 1, True, False)]
