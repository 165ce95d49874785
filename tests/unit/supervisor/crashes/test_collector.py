"""supervisor.crashes.collector: which ends are crashes, who was in them, what is sampled before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor.crashes.collector import SAMPLES, CrashCollector, secret_values
from supervisor.machine.readers import MachineMemory
from supervisor.processes.launcher import Child
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Spec
from supervisor.scheduler.pool import Pool
from tests.helpers.crashes import PlannedEvidence


class World:
    """A pool, a collector and a clock; the model `m` has process 7, the model `n` process 8."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.folder = folder
        self.pool = Pool([Spec("m"), Spec("n")])
        self.evidence = PlannedEvidence()
        self.sizes: dict[int, int] = {7: 70, 8: 80}
        self.collector = CrashCollector(
            self.pool.state,
            folder / "crashes",
            cast(Any, SimpleNamespace(glance=self.sizes.get)),
            self.evidence,
            version="1.2.3",
            clock=lambda: self.now,
            epoch=lambda: self.now + 1_800_000_000,
        )

    def child(self, pid: int) -> Child:
        paths = (self.folder / f"{pid}.stdout", self.folder / f"{pid}.stderr")
        paths[1].touch()
        return cast(Child, SimpleNamespace(pid=pid, files=paths))

    def start(self, model: str = "m", *requests: str) -> None:
        """Spawned; `requests` wait for it."""
        for request in requests or ("req-1",):
            self.pool.acquire(request, model, 60.0, self.now)
        generation = self.pool.models[model].generation
        self.collector.worker_started(model, generation, self.child(7 if model == "m" else 8))

    def ready(self, model: str = "m") -> None:
        self.pool.ready(model, self.pool.models[model].generation, 10**9, 4096, self.now)

    def prints(self, text: str, pid: int = 7) -> None:
        with open(self.folder / f"{pid}.stderr", "a") as file:
            file.write(text)

    async def report(self, how: str, model: str = "m") -> Any:
        """What is reported of a process that has ended."""
        generation = self.pool.models[model].generation
        death = self.collector.diagnose(model, generation, how)
        assert death is not None
        self.collector.report(model, generation, how)
        await self.collector.reports.flush()
        return json.loads(await self.collector.reports.read_json(death.report))


def play(folder: Path, story: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World(folder)
        try:
            await story(world)
        finally:
            await world.collector.reports.close()

    asyncio.run(run())


def test_what_is_seen_of_a_death(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start("m", "req-1", "req-2")
        world.ready()
        world.start("n", "req-3")
        world.now += 30
        report = await world.report("SIGABRT")
        assert [report[name] for name in ("model", "generation", "pid", "process")] == [
            "m",
            1,
            7,
            "worker",
        ]
        assert (report["phase"], report["uptime_seconds"], report["in_flight"]) == ("ready", 30, 2)
        assert [each["request_id"] for each in report["requests"]] == ["req-1", "req-2"]
        assert [(each["name"], each["state"]) for each in report["models"]] == [
            ("m", "ready"),
            ("n", "loading"),
        ]

    play(tmp_path, story)


def test_of_an_incarnation_that_is_over_nothing_is_said(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        world.ready()
        world.pool.exited("m", 1, "SIGABRT", world.now)
        assert world.collector.diagnose("m", 1, "SIGABRT") is None
        assert world.collector.diagnose("m", 2, "SIGABRT") is None

    play(tmp_path, story)


def test_who_waits_for_a_load_is_inside(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start("m", "req-1", "req-2")
        world.prints("ValueError: Model type llama9 not supported.\n")
        report = await world.report("exit status 70")
        assert (report["phase"], report["cause"]) == ("loading", "load_failed")
        assert (report["signal"], report["exit_code"], report["permanent"]) == (None, 70, True)
        assert report["in_flight"] == 2

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("how", "cause"), [("SIGSEGV", "segfault"), ("SIGKILL", "killed"), ("exit status 0", "exited")]
)
def test_what_breaks_a_frame_and_ends_by_itself_died_of_its_own_cause(
    tmp_path: Path, how: str, cause: str
) -> None:
    async def story(world: World) -> None:
        world.start()
        world.ready()
        world.pool.broken("m", 1, "bad message: torn", world.now)
        report = await world.report(how)
        assert (report["cause"], report.get("put_down")) == (cause, None)

    play(tmp_path, story)


def test_what_we_killed_says_why(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        world.ready()
        world.pool.broken("m", 1, "no token and no prefill progress for 60 s", world.now)
        assert world.pool.models["m"].state is State.STOPPING
        world.pool.tick(world.now + 60.0)
        report = await world.report("SIGKILL")
        assert report["cause"] == "stalled"
        assert report["put_down"] == "no token and no prefill progress for 60 s"
        assert [each["request_id"] for each in report["requests"]] == ["req-1"]

    play(tmp_path, story)


def test_what_a_process_holds_is_what_it_was_last_seen_to_hold(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        assert world.collector.footprint("m", 1) is None
        world.ready()
        for held in (5 * 10**9, 6 * 10**9):
            world.sizes[7] = held
            world.collector.sample_memory(MachineMemory())
            world.now += 1
            assert world.collector.footprint("m", 1) == held
        world.start("n")
        report = await world.report("SIGABRT")
        assert [each["memory_bytes"] for each in report["models"]] == [6 * 10**9, 0]
        assert world.collector.footprint("m", 1) is None

    play(tmp_path, story)


def test_the_memory_of_the_last_minute(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        for second in range(SAMPLES + 10):
            for _ in range(3):  # the monitor may look more often
                world.collector.sample_memory(MachineMemory(100, second, swap_used=5))
            world.sizes[7] = second
            world.now += 1
        del world.sizes[7]  # it can't be read any more
        world.collector.sample_memory(MachineMemory())
        report = await world.report("SIGSEGV")
        assert len(report["machine"]) == len(report["footprint"]) == SAMPLES
        assert report["machine"][-1] == {"seconds": 0, "used_bytes": None, "swap_bytes": None}
        assert report["machine"][0] == {"seconds": 59, "used_bytes": 11, "swap_bytes": 5}
        assert report["footprint"][-1] == {"seconds": 1, "bytes": 68}

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("kills", "record", "seconds", "cause", "told"),
    [
        ((2, 3), None, 5, "oom_killed", "the kernel killed 1 "),
        ((2, 2), None, 5, "killed", None),
        ((2, 3), None, 50, "killed", None),
        ((None, 3), None, 5, "killed", None),
        ((2, 2), "Killed process 7", 5, "oom_killed", "Killed process 7"),
    ],
)
def test_a_kill_for_want_of_memory(
    kills: tuple[int | None, int],
    record: str | None,
    seconds: int,
    cause: str,
    told: str | None,
    tmp_path: Path,
) -> None:
    """The count must have risen lately: another process may have been killed long ago."""

    async def story(world: World) -> None:
        world.start()
        world.evidence.kills, world.evidence.record = kills[0], record
        world.collector.sample_memory(MachineMemory())
        world.evidence.kills = kills[1]
        world.now += seconds
        if seconds > 30:
            world.collector.sample_memory(MachineMemory())
            world.now += 5
        report = await world.report("SIGKILL")
        assert report["cause"] == cause
        assert (report["oom_record"] or "").startswith(told or "")
        assert (report["oom_record"] is None) == (told is None)

    play(tmp_path, story)


def test_the_gateways_death_is_reported_too(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        world.collector.process_died(
            "gateway", world.child(9), "SIGKILL", 4.0, "it stalled: no turn"
        )
        await world.collector.reports.flush()
        (brief,) = json.loads(await world.collector.reports.read_json(""))["crashes"]
        report = json.loads(await world.collector.reports.read_json(brief["id"]))
        assert [report[name] for name in ("process", "model", "pid", "cause", "put_down")] == [
            "gateway",
            None,
            9,
            "stalled",
            "it stalled: no turn",
        ]
        assert [each["name"] for each in report["models"]] == ["m"]
        assert world.collector.reports.last("m") is None

    play(tmp_path, story)


def test_secrets_are_found_by_their_names() -> None:
    environ = {"HF_TOKEN": "a", "MY_API_KEY": "b", "PATH": "c", "DB_PASSWORD": "d"}
    assert list(secret_values(environ, {"client_secret": "e"})) == ["a", "b", "d", "e"]
