"""supervisor.crashes.collector, scene and filing: what is seen of a death, by when, and what is added later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor.crashes import writer
from supervisor.crashes.collector import SAMPLES, CrashCollector, secret_values
from supervisor.crashes.diagnosis import Cause, Crash
from supervisor.errors import NotFound
from supervisor.machine.readers import MachineMemory
from supervisor.processes.launcher import Child
from supervisor.scheduler.effects import Effect
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool
from tests.helpers.serving import DEADLINE

METAL = (
    "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command "
    "buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError"
    "OutOfMemory)\n"
)
RESUME = Rules(recovery="resume")
STACKS = (
    'Fatal Python error: Aborted\n\nCurrent thread 0x01 (most recent call first):\n  File "x"\n'
)


class Evidence:
    """What a test says that the system knows."""

    def __init__(self) -> None:
        self.kills: int | None = None
        self.record: str | None = None
        self.reports: list[str | None] = []

    def oom_kills(self) -> int | None:
        return self.kills

    def oom_record(self, pid: int) -> str | None:
        return self.record

    late_reports = True

    def ips(self, pid: int, since: float) -> str | None:
        return self.reports.pop(0) if self.reports else None


class World:
    """A pool, a coroner and a clock; the model `m` has process 7, the model `n` process 8."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self.now = 1000.0
        self.folder = folder
        self.pool = Pool([Spec("m"), Spec("n")], rules=rules)
        self.evidence = Evidence()
        self.sizes: dict[int, int] = {7: 70, 8: 80}
        self.coroner = CrashCollector(
            self.pool.models,
            folder / "crashes",
            cast(Any, SimpleNamespace(glance=self.sizes.get)),
            self.evidence,
            version="1.2.3",
            secrets=["hunter2hunter2"],
            clock=lambda: self.now,
            epoch=lambda: self.now + 1_800_000_000,
        )
        self.files = self.coroner.files

    def child(self, pid: int) -> Child:
        paths = (self.folder / f"{pid}.stdout", self.folder / f"{pid}.stderr")
        paths[1].touch()
        return cast(Child, SimpleNamespace(pid=pid, files=paths))

    def start(self, model: str = "m", *requests: str) -> None:
        """Spawned; `requests` wait for it."""
        for request in requests or ("req-1",):
            self.pool.acquire(request, model, 60.0, self.now)
        generation = self.pool.models[model].generation
        self.coroner.born(model, generation, self.child(7 if model == "m" else 8))

    def ready(self, model: str = "m") -> None:
        self.pool.ready(model, self.pool.models[model].generation, 10**9, 4096, self.now)

    def says(self, text: str, pid: int = 7) -> None:
        with open(self.folder / f"{pid}.stderr", "a") as file:
            file.write(text)

    def examine(self, how: str, model: str = "m") -> Crash | None:
        return self.coroner.examine(model, self.pool.models[model].generation, how)

    def exit(self, how: str, model: str = "m") -> Crash | None:
        """The whole of it, as the supervisor does it."""
        generation = self.pool.models[model].generation
        crash = self.examine(how, model)
        death = None if crash is None else crash.death
        self.perform(self.pool.exited(model, generation, how, self.now, death))
        self.coroner.file(model, generation, how)
        return crash

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.coroner.follow(effect)

    def comes_back(self, lease: int, position: int) -> None:
        self.coroner.returned(lease, position, 100)
        self.perform(self.pool.returned(lease, position, self.now))

    async def report(self, crash: Crash | None) -> Any:
        assert crash is not None
        await self.files.settled()
        return json.loads(await self.files.told(crash.id))


def play(
    folder: Path, story: Callable[[World], Awaitable[None]], *, rules: Rules | None = None
) -> None:
    async def run() -> None:
        world = World(folder, rules or Rules())
        try:
            await story(world)
        finally:
            await world.files.close()

    asyncio.run(run())


def test_a_death_is_examined_twice_and_is_one(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start("m", "req-1", "req-2")
        world.ready()
        world.start("n", "req-3")
        world.now += 30
        first = world.examine("SIGABRT")
        assert first is not None
        assert first.diagnosis.cause is Cause.ABORTED
        # What the process had written reaches us late; the pool has buried its requests by then.
        world.pool.dying("m", 1, "SIGABRT", world.now, first.death)
        world.says(f"[x] key sk-abcdefgh1234 or hunter2hunter2\n{METAL}{STACKS}")
        world.now += 5
        last = world.exit("SIGABRT")
        assert last is not None
        assert last.id == first.id
        assert last.diagnosis.cause is Cause.GPU_OUT_OF_MEMORY
        report = await world.report(last)
        assert report["cause"] == "gpu_out_of_memory"
        assert [report[name] for name in ("model", "generation", "pid", "process")] == [
            "m",
            1,
            7,
            "worker",
        ]
        assert [report[name] for name in ("phase", "how", "signal", "exit_code")] == [
            "ready",
            "SIGABRT",
            "SIGABRT",
            None,
        ]
        assert report["uptime_seconds"] == 30
        assert report["in_flight"] == 2
        assert [each["request_id"] for each in report["requests"]] == ["req-1", "req-2"]
        assert [(each["name"], each["state"]) for each in report["models"]] == [
            ("m", "ready"),
            ("n", "loading"),
        ]
        assert report["stderr"] == f"[x] key [redacted] or [redacted]\n{METAL.strip()}"
        assert report["line"] == METAL.strip()
        assert "Current thread" in report["stacks"]
        assert report["versions"]["bulkhead"] == "1.2.3"
        assert "mlx" in report["versions"]
        brief = world.files.last("m")
        assert brief is not None
        assert brief.id == last.id
        assert world.files.last("n") is None

    play(tmp_path, story)


def test_an_end_that_was_asked_for_is_no_crash(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        world.ready()
        world.pool.release(1, world.now)
        world.pool.unload("m", world.now)
        assert world.exit("exit status 0") is None
        world.start("n")
        world.pool.load_failed("n", 1, "no such architecture", world.now)
        assert world.exit("exit status 0", "n") is None
        # Of an incarnation that is over, and of one that never had a process.
        assert world.coroner.examine("m", 1, "SIGABRT") is None
        world.pool.acquire("req-9", "m", 60.0, world.now)
        assert world.exit("it could not be started: No space left on device") is None
        await world.files.settled()
        assert json.loads(await world.files.told("")) == {"crashes": []}

    play(tmp_path, story)


def test_who_waits_for_a_load_is_inside(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start("m", "req-1", "req-2")
        world.says("ValueError: Model type llama9 not supported.\n")
        report = await world.report(world.exit("exit status 70"))
        assert (report["phase"], report["cause"]) == ("loading", "load_failed")
        assert (report["signal"], report["exit_code"], report["permanent"]) == (None, 70, True)
        assert report["in_flight"] == 2

    play(tmp_path, story)


def test_what_we_killed_says_why(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        world.ready()
        world.pool.broken("m", 1, "no token and no prefill progress for 60 s", world.now)
        assert world.pool.models["m"].state is State.STOPPING
        report = await world.report(world.exit("SIGKILL"))
        assert report["cause"] == "stalled"
        assert report["put_down"] == "no token and no prefill progress for 60 s"
        assert [each["request_id"] for each in report["requests"]] == ["req-1"]

    play(tmp_path, story)


def test_the_memory_of_the_last_minute(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start()
        for second in range(SAMPLES + 10):
            for _ in range(3):  # the watch may look more often
                world.coroner.look(MachineMemory(100, second, swap_used=5))
            world.sizes[7] = second
            world.now += 1
        del world.sizes[7]  # it can't be read any more
        world.coroner.look(MachineMemory())
        report = await world.report(world.exit("SIGSEGV"))
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
        world.coroner.look(MachineMemory())
        world.evidence.kills = kills[1]
        world.now += seconds
        if seconds > 30:
            world.coroner.look(MachineMemory())
            world.now += 5
        report = await world.report(world.exit("SIGKILL"))
        assert report["cause"] == cause
        assert (report["oom_record"] or "").startswith(told or "")
        assert (report["oom_record"] is None) == (told is None)

    play(tmp_path, story)


def test_what_becomes_of_the_requests_is_added_at_any_time(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start("m", "req-1", "req-2")
        world.ready()
        crash = world.examine("SIGABRT")
        assert crash is not None
        # The gateway learns first, before the process has ended.
        world.files.position(crash.id, "req-1", 100, 7)
        report = await world.report(world.exit("SIGABRT"))
        assert report["requests"][0] == {
            "request_id": "req-1",
            "prompt_tokens": 100,
            "emitted_tokens": 7,
        }
        assert report["recovery"] == []
        world.files.position(crash.id, "req-2", 50, None)
        world.files.position(crash.id, "another", 1, 1)
        world.files.outcome(crash.id, "req-1", "resumed")
        world.files.outcome("20270115T080000Z-000000", "req-1", "resumed")
        report = await world.report(crash)
        assert report["requests"][1]["prompt_tokens"] == 50
        assert len(report["requests"]) == 2
        assert report["recovery"] == [{"request_id": "req-1", "outcome": "resumed"}]

    play(tmp_path, story, rules=RESUME)


def test_each_request_s_fate_is_told_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start("m", "stays", "leaves", "late")
        world.ready()
        crash = world.exit("SIGABRT")
        world.comes_back(1, 7)
        world.comes_back(2, 0)
        world.coroner.left(2)
        world.pool.release(2, world.now)
        world.now += 6  # one gateway says nothing, and is waited for no longer
        world.perform(world.pool.tick(world.now))
        world.pool.acquire("new", "m", 60.0, world.now)
        world.coroner.born("m", 2, world.child(7))
        world.perform(world.pool.ready("m", 2, 10**9, 4096, world.now))
        world.coroner.left(1)
        report = await world.report(crash)
        assert [list(each.values()) for each in report["requests"]] == [
            ["stays", 100, 7],
            ["leaves", 100, 0],
            ["late", None, None],
        ]
        assert [list(each.values()) for each in report["recovery"]] == [
            ["leaves", "its client left"],
            ["late", "ended with worker_crashed"],
            ["stays", "goes on in m#2"],
        ]

    play(tmp_path, story, rules=RESUME)


def test_those_who_are_on_their_way_back_were_inside(tmp_path: Path) -> None:
    """A stall is told to them before the process has ended."""

    async def story(world: World) -> None:
        world.start("m", "req-1", "req-2")
        world.ready()
        world.pool.dying("m", 1, "SIGKILL", world.now)
        world.comes_back(1, 7)
        world.pool.acquire("new", "m", 60.0, world.now)
        report = await world.report(world.exit("SIGKILL"))
        assert sorted(each["request_id"] for each in report["requests"]) == ["req-1", "req-2"]

    play(tmp_path, story, rules=RESUME)


def test_second_death_before_an_outcome_is_the_firsts_outcome(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.start("m", "req-1")
        world.ready()
        first = world.exit("SIGABRT")
        lease = next(iter(world.pool.models["m"].returning), 1)
        world.comes_back(lease, 7)
        world.start("m")
        second = world.exit("SIGSEGV")
        assert first is not None
        assert second is not None
        told = await world.report(first)
        assert told["recovery"] == [
            {"request_id": "req-1", "outcome": "was inside when worker m#2 died, too"}
        ]

    play(tmp_path, story, rules=RESUME)


def test_only_the_last_crashes_are_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "OPEN_MAX", 2)

    async def story(world: World) -> None:
        ids = []
        for _ in range(3):
            world.start()
            ids.append(world.exit("SIGABRT"))
        for crash in ids:
            assert crash is not None
            world.files.outcome(crash.id, "req-1", "refused")
        told = [len((await world.report(crash))["recovery"]) for crash in ids]
        assert told == [1, 2, 2]  # each has been refused by the pool, too
        listing = json.loads(await world.files.told(""))["crashes"]
        assert {each["id"] for each in listing} == {crash.id for crash in ids if crash}

    play(tmp_path, story)


def test_macos_report_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IPS_SECONDS", 0.0)

    async def story(world: World) -> None:
        world.evidence.reports = [None, "/Library/x.ips"]
        world.start()
        crash = world.exit("SIGABRT")
        async with asyncio.timeout(DEADLINE):
            while (await world.report(crash))["ips"] != "/Library/x.ips":
                continue

    play(tmp_path, story)


def test_elsewhere_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IPS_SECONDS", 0.0)

    async def story(world: World) -> None:
        world.evidence.late_reports = False
        world.evidence.reports = [None, "/Library/x.ips"]
        world.start()
        await world.report(world.exit("SIGABRT"))
        await world.files.settled()
        await asyncio.sleep(0)  # a timer that is due would have spawned by now
        await world.files.settled()
        assert world.evidence.reports == ["/Library/x.ips"]

    play(tmp_path, story)


def test_a_full_disk_costs_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "crashes").touch()  # a file: nothing can be written below it

    async def story(world: World) -> None:
        world.start()
        crash = world.exit("SIGKILL")
        assert crash is not None
        await world.files.settled()
        assert f"crash report {crash.id} is lost" in caplog.text
        world.files.outcome(crash.id, "req-1", "resumed")
        assert world.files.last("m") is not None
        with pytest.raises(NotFound):
            await world.files.told(crash.id)

    play(tmp_path, story)


def test_a_later_run_knows_the_last_death_of_each_model(tmp_path: Path) -> None:
    crashed: list[Crash | None] = []

    async def first(world: World) -> None:
        for _ in range(2):
            world.start()
            crashed.append(world.exit("SIGABRT"))
            world.now += 1
        world.coroner.gateway_died(world.child(9), "SIGSEGV", 4.0, "")

    async def second(world: World) -> None:
        await world.files.recall()
        last = world.files.last("m")
        assert last is not None
        assert crashed[1] is not None
        assert last.id == crashed[1].id
        listing = json.loads(await world.files.told(""))["crashes"]
        assert [each["process"] for each in listing] == ["gateway", "worker", "worker"]
        gateway = json.loads(await world.files.told(listing[0]["id"]))
        assert (gateway["cause"], gateway["uptime_seconds"]) == ("segfault", 4.0)
        assert (gateway["model"], gateway["pid"]) == (None, 9)

    play(tmp_path, first)
    play(tmp_path, second)


def test_secrets_are_found_by_their_names() -> None:
    environ = {"HF_TOKEN": "a", "MY_API_KEY": "b", "PATH": "c", "DB_PASSWORD": "d"}
    assert list(secret_values(environ, {"client_secret": "e"})) == ["a", "b", "d", "e"]
