"""supervisor.machine.monitor: what is told of memory, from a reader that follows a script."""

from __future__ import annotations

import asyncio

import pytest

from supervisor.machine.monitor import Monitor, QuietBaseline
from supervisor.machine.readers import MachineMemory, SystemPressure
from supervisor.scheduler.ledger import STRANDED_SECONDS
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import ReleaseRule, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level, Thresholds
from tests.helpers.serving import DEADLINE

GB = 10**9
PHYSICAL = 128 * GB


class Reader:
    """A machine on which a test sets every figure, bytes."""

    def __init__(self) -> None:
        self.seen = MachineMemory(PHYSICAL, 40 * GB, wired=3 * GB)
        self.footprints: dict[int, int] = {}
        self.wirings: dict[int, int] = {}

    def machine(self) -> MachineMemory:
        return self.seen

    def footprint(self, pid: int) -> int | None:
        return self.footprints.get(pid)

    def glance(self, pid: int) -> int | None:
        return self.footprints.get(pid)

    def wired(self, pid: int) -> int | None:
        return self.wirings.get(pid)


class Told:
    """Passes on to a pool, as the supervisor does, and keeps what it was told."""

    def __init__(self, pool: Pool, world: World) -> None:
        self.pool, self.world = pool, world
        self.levels: list[Level] = []
        self.figures = ""
        self.footprints: list[tuple[str, int, int]] = []
        self.unattributed: list[int] = []

    def memory_pressure(
        self, machine: MachineMemory, level: Level, figures: str, *, eased: bool
    ) -> None:
        self.levels.append(level)
        self.figures = figures
        self.pool.memory.pressure(level, figures, self.world.now, eased=eased)

    def memory_footprint(self, model: str, generation: int, size: int) -> None:
        self.footprints.append((model, generation, size))
        self.pool.memory.footprint(model, generation, size, self.world.now)

    def memory_unattributed(self, size: int) -> None:
        self.unattributed.append(size)
        self.pool.memory.memory_seen(size, self.world.now)


class World:
    """A pool of two models, a reader and a clock."""

    def __init__(self, release: ReleaseRule) -> None:
        self.now = 1000.0
        specs = [Spec(name, estimate_bytes=40 * GB) for name in "ab"]
        self.pool = Pool(specs, rules=Rules(release=release), budget=100 * GB)
        self.reader = Reader()
        self.told = Told(self.pool, self)
        self.monitor = Monitor(
            self.pool.models,
            self.pool.state.ledger.awaits_memory,
            self.told,
            self.reader,
            Thresholds(),
            watches_release=release is ReleaseRule.WHEN_SEEN,
            clock=lambda: self.now,
        )

    def look(self) -> None:
        before = self.monitor.wired_by_workers()
        self.monitor.observe(*self.monitor.read(self.monitor.pids()), before)

    def load(self, model: str, pid: int) -> None:
        """Up to ready, with 40 GB wired by process `pid`."""
        self.pool.preload(model, self.now)
        generation = self.pool.models[model].generation
        self.pool.started(model, generation, pid)
        self.reader.footprints[pid] = self.reader.wirings[pid] = 40 * GB
        self.wire(40)
        self.pool.ready(model, generation, 40 * GB, 4096, self.now)

    def wire(self, gigabytes: float) -> None:
        """So much more is wired in all."""
        wired = (self.reader.seen.wired or 0) + int(gigabytes * GB)
        self.reader.seen = MachineMemory(PHYSICAL, 40 * GB, wired=wired)

    def end(self, model: str) -> None:
        """The process is told to stop and is reaped; what it had is still wired."""
        worker = self.pool.models[model].current
        pid = worker.pid
        assert pid is not None
        self.pool.unload(model, self.now)
        del self.reader.footprints[pid], self.reader.wirings[pid]
        self.pool.exited(model, worker.generation, "exit status 0", self.now)

    @property
    def charged(self) -> float:
        return self.pool.state.ledger.charged / GB


@pytest.fixture
def linux() -> World:
    return World(ReleaseRule.AT_REAP)


@pytest.fixture
def mac() -> World:
    return World(ReleaseRule.WHEN_SEEN)


# ── pressure ─────────────────────────────────────────────────────────────────────────────────────


def test_pressure_is_told_at_every_look(linux: World) -> None:
    for share in (0.5, 0.86, 0.96, 0.99):
        linux.reader.seen = MachineMemory(PHYSICAL, int(PHYSICAL * share))
        linux.look()
    assert linux.told.levels == [Level.NORMAL, Level.WARN, Level.HIGH, Level.CRITICAL]
    assert "126.7 of 128.0 GB RAM in use (99.0 %)" in linux.told.figures
    assert linux.monitor.machine.used_percent == pytest.approx(99.0)


def test_what_the_system_says_counts_where_use_is_unknown(linux: World) -> None:
    linux.reader.seen = MachineMemory(level=SystemPressure.CRITICAL)
    linux.look()
    assert linux.told.levels == [Level.CRITICAL]


def test_a_level_is_left_after_a_calm_while_of_the_clock(linux: World) -> None:
    linux.reader.seen = MachineMemory(PHYSICAL, int(PHYSICAL * 0.9))
    linux.look()
    linux.reader.seen = MachineMemory(PHYSICAL, PHYSICAL // 2)
    linux.look()
    linux.now += 4.9
    linux.look()
    linux.now += 0.1
    linux.look()
    assert linux.told.levels == [Level.WARN, Level.WARN, Level.WARN, Level.NORMAL]


@pytest.mark.parametrize("release", ReleaseRule)
def test_every_living_workers_footprint_is_told_at_every_look(release: ReleaseRule) -> None:
    world = World(release)
    world.look()
    world.load("a", 7)
    world.pool.preload("b", world.now)
    world.pool.started("b", 1, 8)
    world.reader.footprints[8] = 5 * GB  # it still loads
    world.look()
    assert world.told.footprints == [("a", 1, 40 * GB), ("b", 1, 5 * GB)]
    del world.reader.footprints[8]  # it can't be read
    world.look()
    world.reader.footprints[7] = 41 * GB
    world.look()
    assert world.told.footprints[2:] == [("a", 1, 40 * GB), ("a", 1, 41 * GB)]
    world.pool.unload("a", world.now)  # half torn down, it would tell too little
    world.look()
    assert len(world.told.footprints) == 4


def test_a_worker_that_ends_while_it_is_read_is_not_told(linux: World) -> None:
    linux.load("a", 7)
    read = linux.monitor.read(linux.monitor.pids())
    linux.end("a")
    linux.load("a", 9)
    linux.monitor.observe(*read, {})
    assert linux.told.footprints == []


def test_linux_asks_for_no_wired_memory(linux: World) -> None:
    linux.load("a", 7)
    linux.end("a")
    assert linux.charged == 0
    assert linux.monitor.wired_by_workers() == {}
    linux.look()
    assert linux.told.unattributed == []


def test_a_look_that_fails_is_logged_and_not_the_last(
    linux: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([ValueError("a bug"), ValueError("a bug")])
    done = asyncio.Event()

    def machine() -> MachineMemory:
        for failure in failures:
            raise failure
        return MachineMemory(PHYSICAL, PHYSICAL)

    async def two_looks() -> None:
        watching = asyncio.create_task(linux.monitor.run())
        await asyncio.wait_for(done.wait(), DEADLINE)
        watching.cancel()

    monkeypatch.setattr("supervisor.machine.monitor._SECONDS", 0.0)
    monkeypatch.setattr(linux.reader, "machine", machine)
    monkeypatch.setattr(linux.told, "memory_pressure", lambda *_, eased: done.set())
    asyncio.run(two_looks())
    assert caplog.text.count("cannot look at the machine's memory") == 1


# ── memory that comes back ───────────────────────────────────────────────────────────────────────


def test_a_dead_workers_charge_follows_what_is_wired(mac: World) -> None:
    mac.look()  # quiet: 3 GB are the system's
    mac.load("a", 7)
    mac.look()
    mac.end("a")
    assert (mac.charged, mac.monitor.interval) == (40, 0.1)
    for back, left in ((-10, 30), (-15, 15), (-14.9, 0)):
        mac.wire(back)
        mac.look()
        assert mac.charged == left
    assert mac.pool.models["a"].state is State.COLD
    assert mac.monitor.interval == 1.0


def test_the_living_are_not_taken_for_what_the_dead_left(mac: World) -> None:
    mac.look()
    mac.load("a", 7)
    mac.load("b", 8)
    mac.look()
    mac.end("a")
    mac.wire(-40)
    mac.look()
    assert mac.told.unattributed == [0]
    assert mac.charged == 40


def test_a_worker_that_grows_while_the_machine_is_read_hides_nothing(mac: World) -> None:
    mac.look()
    mac.load("a", 7)
    mac.load("b", 8)
    mac.reader.wirings[8] = 10 * GB
    mac.wire(-30)
    mac.end("a")
    before = mac.monitor.wired_by_workers()
    machine = mac.reader.machine()  # 3 + 40 + 10
    mac.reader.wirings[8] = 35 * GB  # it loads on
    mac.monitor.observe(machine, {}, before)
    assert mac.charged == 80


def test_a_worker_that_dies_while_the_machine_is_read_hides_nothing(mac: World) -> None:
    mac.look()
    mac.load("a", 7)
    mac.load("b", 8)
    mac.look()
    mac.end("a")
    before = mac.monitor.wired_by_workers()
    machine = mac.reader.machine()  # a is back to the last byte, b alive
    machine = MachineMemory(PHYSICAL, 40 * GB, wired=(machine.wired or 0) - 40 * GB)
    mac.end("b")
    mac.monitor.observe(machine, {}, before)
    # 40 GB are seen beside the system's: whoever they are of, they are charged.
    assert mac.charged == 40


def test_the_footprint_is_the_one_before_the_end_began(mac: World) -> None:
    mac.look()
    mac.load("a", 7)
    mac.reader.footprints[7] = 38 * GB
    mac.look()
    mac.pool.unload("a", mac.now)
    mac.reader.footprints[7] = 2 * GB  # half torn down
    mac.look()
    del mac.reader.footprints[7], mac.reader.wirings[7]
    mac.pool.exited("a", 1, "exit status 0", mac.now)
    mac.look()
    assert mac.charged == 38


def test_the_baseline_is_taken_in_quiet_times_alone(mac: World) -> None:
    mac.look()
    mac.pool.preload("a", mac.now)
    mac.pool.started("a", 1, 7)
    mac.wire(30)  # wired before the process's own figure shows it
    for _ in range(20):
        mac.look()
    mac.wire(10)
    mac.reader.footprints[7] = mac.reader.wirings[7] = 40 * GB
    mac.pool.ready("a", 1, 40 * GB, 4096, mac.now)
    mac.end("a")
    mac.look()
    # Had the load's looks counted, 30 of the 40 GB would pass for the system's.
    assert mac.charged == 40


def test_a_neighbour_that_came_in_quiet_times_is_not_waited_for(mac: World) -> None:
    mac.look()
    mac.load("a", 7)
    mac.wire(5)
    for _ in range(10):
        mac.look()
    mac.end("a")
    mac.wire(-40)
    mac.look()
    assert mac.charged == 0


def test_what_cannot_be_read_is_not_back(mac: World) -> None:
    mac.look()
    mac.load("a", 7)
    mac.end("a")
    mac.reader.seen = MachineMemory(PHYSICAL, 40 * GB)
    mac.look()
    assert mac.told.unattributed == []
    mac.pool.tick(mac.now + STRANDED_SECONDS)
    assert mac.pool.state.ledger.stranded == 40 * GB
    # Stranded memory is looked after once a second, and given back when it is seen.
    assert mac.monitor.interval == 1.0
    mac.reader.seen = MachineMemory(PHYSICAL, 40 * GB, wired=3 * GB)
    mac.look()
    assert mac.charged == 0


def test_the_quiet_baseline_is_the_median_of_the_last_readings() -> None:
    baseline = QuietBaseline()
    assert baseline.bytes == 0
    for reading in [3, 3, 90, 3, 4]:
        baseline.feed(reading)
    assert baseline.bytes == 3
    for _ in range(10):
        baseline.feed(7)
    assert baseline.bytes == 7
