"""supervisor.scheduler.pool under a budget, through any interleaving, checked by the oracle."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from supervisor.scheduler.blame import PROBATION_TOKENS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pressure import Level
from tests.bench.eviction import ConcurrentSimulation, Machine
from tests.property import scheduling
from tests.property.books import GB
from tests.property.recoveries import Violation
from tests.property.scheduling import LIMITS, NAMES, make_world
from tests.property.world import World

names = st.sampled_from(NAMES)
spans = st.floats(0.0, 40.0)
shares = st.sampled_from([0.0, 0.5, 1.0])


class Scheduler(RuleBasedStateMachine):
    """Posts events in any order, those of processes that exist and those that make no sense."""

    @initialize(seed=st.integers(0, 10_000))
    def begin(self, seed: int) -> None:
        self.world = make_world(
            random.Random(seed), storm=seed % 2 == 0, calm=False, lends=seed % 3 == 0
        )

    def known(self, name: str) -> str:
        return name if name in self.world.models else NAMES[0]

    @rule(
        name=st.sampled_from([*NAMES, *NAMES, "alias-a", "a:latest", "unknown", ""]),
        hold=spans,
        kind=st.sampled_from(["", "tea", "poison"]),
    )
    def acquire(self, name: str, hold: float, kind: str) -> None:
        digest = f"{kind} for {name[-1:]}".encode() if kind else b""
        self.world.acquire(name, hold, digest=digest)

    @rule(name=names, hold=spans)
    def load(self, name: str, hold: float) -> None:
        self.world.acquire(self.known(name), hold, by_hand=True)

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.world.release(data.draw(st.sampled_from(sorted(self.world.requests))))

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data())
    def fault(self, data: st.DataObject) -> None:
        self.world.fault(data.draw(st.sampled_from(sorted(self.world.requests))))

    @precondition(lambda self: self.world.requests)
    @rule(
        data=st.data(),
        tokens=st.sampled_from([0, 0, 1, PROBATION_TOKENS, 40]),
        all_of_them=st.booleans(),
    )
    def returned(self, data: st.DataObject, tokens: int, all_of_them: bool) -> None:
        requests = self.world.requests
        asked = [lease for lease, each in requests.items() if each.status == "returning"]
        one = data.draw(st.sampled_from(sorted(requests)))
        for lease in asked if all_of_them else [one]:
            if lease in requests:
                self.world.returned(lease, requests[lease].position + tokens)

    @precondition(lambda self: any(each.until for each in self.world.requests.values()))
    @rule(data=st.data())
    def passed(self, data: st.DataObject) -> None:
        asked = [lease for lease, each in self.world.requests.items() if each.until]
        self.world.passed(data.draw(st.sampled_from(asked)))

    @rule(name=names)
    def preload(self, name: str) -> None:
        self.world.preload(self.known(name))

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.world.unload(self.known(name))

    @rule(name=names, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.world.pin(self.known(name), pinned)

    @rule(name=names)
    def changed(self, name: str) -> None:
        self.world.changed(self.known(name))

    @rule(name=names, size=st.integers(0, 12), headroom=st.integers(0, 2))
    def estimated(self, name: str, size: int, headroom: int) -> None:
        self.world.estimated(self.known(name), size * GB, headroom * GB)

    def of_process(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.processes)))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        self.world.progress(self.of_process(data))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data(), share=st.sampled_from([0.5, 1.0, 1.0, 1.0, 1.5, 3.0]))
    def ready(self, data: st.DataObject, share: float) -> None:
        name = self.of_process(data)
        self.world.ready(name, int(self.world.processes[name].charge * share))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data())
    def load_failed(self, data: st.DataObject) -> None:
        self.world.load_failed(self.of_process(data))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data())
    def broken(self, data: st.DataObject) -> None:
        self.world.broken(self.of_process(data))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data())
    def dying(self, data: st.DataObject) -> None:
        self.world.dying(self.of_process(data))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data(), left=shares, fault=st.sampled_from(Fault))
    def exited(self, data: st.DataObject, left: float, fault: Fault) -> None:
        self.world.exited(self.of_process(data), left, fault)

    # ── loans ──

    @precondition(lambda self: self.serving())
    @rule(
        data=st.data(),
        age=st.floats(0.0, 60.0),
        least=st.sampled_from([1, GB // 4, GB, 3 * GB]),
        ahead=st.sampled_from([0, GB // 4]),
    )
    def borrow(self, data: st.DataObject, age: float, least: int, ahead: int) -> None:
        name = data.draw(st.sampled_from(self.serving()))
        if not self.world.processes[name].loan.least:
            self.world.want(name, self.world.now - age, least, ahead)

    @precondition(lambda self: self.serving())
    @rule(data=st.data(), share=shares)
    def end_sequence(self, data: st.DataObject, share: float) -> None:
        name = data.draw(st.sampled_from(self.serving()))
        live = self.world.processes[name].loan.account.live
        if live:
            self.world.end_sequence(name, data.draw(st.sampled_from(sorted(live))))
        else:
            self.world.give_back(name, share)

    @precondition(lambda self: self.serving())
    @rule(data=st.data(), share=shares)
    def answer(self, data: st.DataObject, share: float) -> None:
        name = data.draw(st.sampled_from(self.serving()))
        if self.world.processes[name].loan.account.recalls:
            self.world.answer(name, share)

    @precondition(lambda self: self.serving())
    @rule(data=st.data(), heard=st.integers(0, 3), told=st.integers(0, 3))
    def carry_words(self, data: st.DataObject, heard: int, told: int) -> None:
        process = self.world.processes[data.draw(st.sampled_from(self.serving()))]
        for _ in range(min(heard, len(process.loan.down))):
            self.world.hear(process.model)
        for _ in range(told):
            if process.loan.up and process.phase == "ready":
                self.world.be_told(process.model)

    @precondition(lambda self: self.serving())
    @rule(data=st.data(), share=st.sampled_from([0.9, 1.0, 1.3, 2.0]))
    def footprint(self, data: st.DataObject, share: float) -> None:
        name = data.draw(st.sampled_from(self.serving()))
        size = int(self.world.processes[name].charge * share)
        self.world.footprint(name, size + (GB if share > 1 else 0))

    def serving(self) -> list[str]:
        return sorted(p.model for p in self.world.processes.values() if p.phase == "ready")

    @rule(name=names, offset=st.sampled_from([-1, 1, 5]))
    def words_about_another_generation(self, name: str, offset: int) -> None:
        self.world.stale(self.known(name), offset)

    @rule(share=shares, noise=st.integers(0, 5 * GB))
    def memory_back(self, share: float, noise: int) -> None:
        self.world.memory_back(share, noise)

    @rule(level=st.sampled_from(Level), eased=st.booleans())
    def pressure(self, level: Level, eased: bool) -> None:
        self.world.pressure(level, eased=eased and level is not Level.NORMAL)

    @rule(span=spans)
    def advance(self, span: float) -> None:
        self.world.advance(span)

    @rule(span=spans)
    def tick_late(self, span: float) -> None:
        self.world.jump(span)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


TestScheduler = Scheduler.TestCase
TestScheduler.settings = settings(deadline=None, max_examples=40, stateful_step_count=50)


def test_a_random_walk_finds_nothing() -> None:
    assert scheduling.walk(seed=4, steps=8_000) == (8_000, None)


@pytest.mark.parametrize("storm", [False, True], ids=["many models", "few models"])
@pytest.mark.parametrize("calm", [False, True], ids=["any death", "poison alone"])
@pytest.mark.parametrize("gate", ["shared", "exclusive"])
@pytest.mark.parametrize("recovery", ["off", "replay", "resume"])
def test_a_walk_in_each_kind_of_world_finds_nothing(
    storm: bool, calm: bool, gate: str, recovery: str
) -> None:
    fixed = {"load_gate": gate, "recovery": recovery}
    walked = scheduling.walk(seed=11, steps=3_000, storm=storm, calm=calm, rules=fixed)
    assert walked == (3_000, None)


def test_a_walk_is_the_same_each_time() -> None:
    def walked() -> list[tuple[object, ...]]:
        walk, seen = scheduling.Walk(random.Random(5)), []
        for _ in range(scheduling.EPISODE_STEPS):
            walk.move()
            for model in walk.world.pool.models.values():
                seen.append((model.state, model.generation, *model.waiting, *model.granted))
        return seen

    assert walked() == walked()


# ── quiescence: what is asked for is served in the end ───────────────────────────────────────────


def serve_everybody(world: World, spans: float = 1.0, most: int = 2000) -> int:
    """Let every load end, every request run a while, every stopped process exit. Seconds taken."""
    started = world.now
    for _ in range(most):
        if not world.requests:
            return int(world.now - started)
        for process in list(world.processes.values()):
            if process.phase == "loading" and world.now - process.started_at >= 2.0:
                world.ready(process.model, process.charge)
            elif process.phase == "stopped":
                world.exited(process.model)
        for lease in [i for i, r in world.requests.items() if r.status == "granted"]:
            world.release(lease)
        world.advance(spans)
    raise Violation(f"{len(world.requests)} are never served")


@pytest.mark.parametrize("policy", ["lru", "use_count", "gdsf"])
@pytest.mark.parametrize("gate", ["shared", "exclusive"])
def test_five_models_on_a_machine_for_two_serve_forty_clients(policy: str, gate: str) -> None:
    rules = Rules(policy=policy, load_gate=gate)  # type: ignore[arg-type]
    specs = [Spec(name, estimate_bytes=5 * GB, concurrency=4) for name in "abcde"]
    world = World(specs, LIMITS, rules, 10 * GB)
    rng = random.Random(1)
    leases = [world.acquire(rng.choice("abcde"), 1000.0) for _ in range(40)]
    refused: list[int] = []
    end = world.end

    def ended(lease: int, *before: str) -> object:
        refused.append(lease)
        return end(lease, *before)

    world.end = ended  # type: ignore[assignment,method-assign]
    seconds = serve_everybody(world)
    assert not refused
    assert len(set(leases)) == 40
    assert seconds < 200


@pytest.mark.parametrize("concurrency", [0, 4])
@pytest.mark.parametrize("gate", ["shared", "exclusive"])
def test_four_hundred_requests_of_forty_clients_wait_no_longer_than_documented(
    concurrency: int, gate: Literal["shared", "exclusive"]
) -> None:
    """Five models, room for two: each in its turn waits for at most all the others' turns."""
    machine = Machine({name: (5 * GB, 2.0) for name in "abcde"}, 10 * GB)
    rules = Rules(load_gate=gate)
    simulation = ConcurrentSimulation(machine, rules, concurrency=concurrency)
    waits = simulation.run(random.Random(5), clients=40, requests=400, service=1.0)
    assert len(waits) == 400
    turn = rules.patience(2.0, 2.0) + rules.residency(2.0) + 2.0 + 1.0  # + its load and its drain
    assert max(waits) <= 5 * turn


def test_a_stream_of_requests_starves_nobody() -> None:
    """The stream never leaves `a` idle; `b` is served after `max_wait` all the same."""
    world = World(
        [Spec("a", estimate_bytes=8 * GB), Spec("b", estimate_bytes=8 * GB)],
        LIMITS,
        Rules(max_wait=10.0, min_residency=0.0),
        10 * GB,
    )
    running = [world.acquire("a", 100.0)]
    world.ready("a", 8 * GB)
    asked, waiter = world.now, world.acquire("b", 1000.0)
    while world.pool.models["a"].state is State.READY:
        running.append(world.acquire("a", 1000.0))  # the next comes before the last one ends
        world.release(running.pop(0))
        world.advance(0.5)
    assert world.now - asked <= 10.5
    late = world.acquire("a", 1000.0)
    for lease in running:
        world.release(lease)
    world.exited("a")
    assert world.pool.models["b"].state is State.LOADING
    world.ready("b", 8 * GB)
    assert world.requests[waiter].status == "granted"
    assert world.requests[late].status == "waiting"


@dataclass
class Engine:
    """How workers of the model `a` die."""

    depths: dict[int, int] = field(default_factory=dict)
    """Requests that kill at that token of theirs, or in their prefill (0)."""
    rows: int = 1000
    """Sequences that it can decode at once."""
    fault: Fault = Fault.REQUEST
    """What is said of deaths of too many."""

    def kills(self, lease: int, made: int, running: int) -> Fault | None:
        if self.depths.get(lease) == made:
            return Fault.REQUEST
        return self.fault if running > self.rows else None


def run_to_the_end(
    world: World, lengths: dict[int, int], engine: Engine, rng: random.Random
) -> set[int]:
    """Each request prefills in its turn and makes its tokens one by one. Who has made them all."""
    made, done = dict.fromkeys(lengths, 0), set()
    running: dict[int, int] = {}
    """Who decodes, and in which generation."""
    for _ in range(5000):
        for process in list(world.processes.values()):
            if process.phase == "loading":
                world.ready(process.model, 0)
        for lease in rng.sample(list(world.requests), len(world.requests)):
            request = world.requests.get(lease)
            if request is not None and request.status == "returning":
                world.returned(lease, made[lease])
            if request is None or request.status != "granted":
                continue
            generation = world.processes["a"].generation
            running[lease] = generation
            rows = sum(at == generation and i in world.requests for i, at in running.items())
            if (fault := engine.kills(lease, made[lease], rows)) is not None:
                world.exited("a", fault=fault)
                continue
            made[lease] += 1
            ends = made[lease] == lengths[lease]
            if request.until and (ends or made[lease] >= request.until):
                world.passed(lease)
            if ends:
                done.add(lease)
                world.release(lease)
        world.advance(0.1)
        if not world.requests:
            return done
    raise Violation(f"{len(world.requests)} never end")


@pytest.mark.parametrize("poisons", [0, 1, 3])
def test_poison_is_found_and_everybody_else_is_served_to_the_end(poisons: int) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        rules = Rules(recovery="resume", max_restarts=3 if poisons < 2 else 10**9)
        world = World([Spec("a")], LIMITS, rules, None, calm=True)
        bad = [world.acquire("a", 1.0, digest=b"%d bad" % i, poison=True) for i in range(poisons)]
        good = [world.acquire("a", 1.0) for _ in range(16 - poisons)]
        lengths = {lease: rng.randint(1, 90) for lease in (*bad, *good)}
        engine = Engine({lease: rng.randrange(lengths[lease]) for lease in bad})
        assert run_to_the_end(world, lengths, engine, rng) == set(good)
        assert len(world.deaths.quarantined) == poisons
        assert poisons <= world.pool.models["a"].deaths <= 4 * poisons
        assert world.pool.models["a"].concurrency == 0  # it was nobody's number


@pytest.mark.parametrize("depth", [0, 20])
@pytest.mark.parametrize("place", [0, 6, 15])
@pytest.mark.parametrize("staggered", [False, True])
def test_poison_among_sixteen_costs_four_deaths(depth: int, place: int, staggered: bool) -> None:
    """On a model that never made a token before."""
    rng = random.Random(1)
    world = World([Spec("a", concurrency=32)], LIMITS, Rules(recovery="resume"), None, calm=True)
    leases = [world.acquire("a", 1.0, poison=number == place) for number in range(16)]
    lengths = dict.fromkeys(leases, 60)
    if staggered:
        lengths = {lease: 40 + 3 * number for number, lease in enumerate(leases)}
    engine = Engine({leases[place]: depth})
    assert run_to_the_end(world, lengths, engine, rng) == {*leases} - {leases[place]}
    assert len(world.deaths.quarantined) == 1
    assert world.pool.models["a"].deaths <= 4


@pytest.mark.parametrize("fault", [Fault.REQUEST, Fault.MEMORY])
@pytest.mark.parametrize(
    ("streams", "rows", "deaths"),
    [(6, 3, 2), (8, 1, 3), (8, 2, 3), (8, 3, 3), (8, 7, 4), (32, 2, 4)],
)
def test_too_many_at_once_are_nobodys_fault(
    fault: Fault, streams: int, rows: int, deaths: int
) -> None:
    """Whatever is said of the cause, all are served, and a limit is found soon."""
    for seed in range(3):
        rng = random.Random(seed)
        rules = Rules(recovery="resume")
        world = World([Spec("a", concurrency=32)], LIMITS, rules, None, calm=True)
        leases = [world.acquire("a", 1.0) for _ in range(streams)]
        engine = Engine(rows=rows, fault=fault)
        served = run_to_the_end(world, dict.fromkeys(leases, 60), engine, rng)
        assert served == set(leases)
        assert not world.deaths.quarantined
        assert world.pool.models["a"].deaths <= deaths
