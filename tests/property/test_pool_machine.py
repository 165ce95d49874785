"""supervisor.scheduler.pool without a budget, through any interleaving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from supervisor.errors import BulkheadError
from supervisor.scheduler.effects import Effect, EndLease, Grant, Refuse, Spawn, Stop
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool
from tests.helpers.pools import LIMITS

CAPACITIES = {"a": 3, "b": 2}
NAMES = ["a", "alias", "b", "b:latest", "unknown", ""]
models = st.sampled_from(sorted(CAPACITIES))
spans = st.floats(0.0, 40.0)


@dataclass
class Request:
    """What the machine was told about one lease."""

    deadline: float
    status: str = "waiting"
    released: bool = False


class PoolMachine(RuleBasedStateMachine):
    """Posts events in any order and checks every effect against what was told before."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(
            [Spec("a", ("alias",), CAPACITIES["a"]), Spec("b", (), CAPACITIES["b"])],
            default_model="a",
            limits=LIMITS,
            rules=Rules(max_restarts=10**9),
        )
        self.now = 0.0
        self.requests: dict[int, Request] = {}
        self.processes: dict[str, int] = {}
        """The generation of each model's process, as Spawn effects and exits have it."""
        self.started_at: dict[str, int] = dict.fromkeys(CAPACITIES, 0)
        self.ready_ones: set[tuple[str, int]] = set()
        self.killed: set[tuple[str, int]] = set()

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Spawn(model, generation):
                    assert model not in self.processes
                    assert generation > self.started_at[model]
                    assert not self.pool.state.shutting_down
                    self.processes[model] = self.started_at[model] = generation
                case Stop(model, generation, kill):
                    assert self.processes.get(model) == generation
                    if kill:
                        self.killed.add((model, generation))
                case Grant(lease, model, worker, generation):
                    assert self.processes.get(model) == generation
                    assert (model, generation) in self.ready_ones
                    assert (model, generation) not in self.killed
                    assert worker == f"{model}#{generation}"
                    self.answer(lease, "waiting", "granted")
                case Refuse(lease, error):
                    assert isinstance(error, BulkheadError)
                    self.answer(lease, "waiting", "ended")
                case EndLease(lease, error):
                    assert isinstance(error, BulkheadError)
                    self.answer(lease, "granted", "ended")

    def answer(self, lease: int, before: str, after: str) -> None:
        request = self.requests[lease]
        assert not request.released
        assert request.status == before
        request.status = after

    # ── requests ──

    @rule(name=st.sampled_from(NAMES), hold=spans)
    def acquire(self, name: str, hold: float) -> None:
        lease, effects = self.pool.acquire("r", name, hold, self.now)
        assert lease not in self.requests
        self.requests[lease] = Request(self.now + hold)
        self.perform(effects)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.requests)))
        self.requests[lease].released = True
        self.perform(self.pool.release(lease, self.now))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def fault(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.requests)))
        effects = self.pool.fault(lease, "a torn frame", self.now)
        request = self.requests[lease]
        if request.status != "granted" or request.released:
            assert effects == []
        self.perform(effects)

    # ── workers ──

    def of_process(self, data: st.DataObject) -> tuple[str, int]:
        return data.draw(st.sampled_from(sorted(self.processes.items())))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def started(self, data: st.DataObject) -> None:
        self.pool.started(*self.of_process(data), 1234)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def loading(self, data: st.DataObject) -> None:
        self.pool.loading(*self.of_process(data), self.now)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), size=st.integers(0, 10**11))
    def ready(self, data: st.DataObject, size: int) -> None:
        process = self.of_process(data)
        self.ready_ones.add(process)
        self.perform(self.pool.ready(*process, size, 4096, self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def load_failed(self, data: st.DataObject) -> None:
        self.perform(self.pool.load_failed(*self.of_process(data), "no such file", self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def broken(self, data: st.DataObject) -> None:
        self.perform(self.pool.broken(*self.of_process(data), "it stalled", self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def dying(self, data: st.DataObject) -> None:
        self.perform(self.pool.dying(*self.of_process(data), "SIGABRT", self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def exited(self, data: st.DataObject) -> None:
        model, generation = self.of_process(data)
        del self.processes[model]
        self.perform(self.pool.exited(model, generation, "SIGABRT", self.now))

    @rule(model=models, offset=st.sampled_from([-1, 1, 5]))
    def words_about_another_generation(self, model: str, offset: int) -> None:
        generation = self.pool.models[model].generation + offset
        before = self.pool.models[model].state
        events: list[Callable[[], list[Effect]]] = [
            lambda: self.pool.ready(model, generation, 1, 1, self.now),
            lambda: self.pool.load_failed(model, generation, "no", self.now),
            lambda: self.pool.broken(model, generation, "no", self.now),
            lambda: self.pool.dying(model, generation, "SIGABRT", self.now),
            lambda: self.pool.exited(model, generation, "SIGKILL", self.now),
        ]
        for event in events:
            assert event() == []
        assert self.pool.models[model].state is before

    # ── the rest ──

    @rule(model=models)
    def preload(self, model: str) -> None:
        self.perform(self.pool.preload(model, self.now))

    @rule(model=models)
    def changed(self, model: str) -> None:
        self.perform(self.pool.changed(model, self.now))

    @rule(span=spans)
    def tick(self, span: float) -> None:
        self.now += span
        self.perform(self.pool.tick(self.now))
        due = self.pool.next_deadline()
        assert due is None or due > self.now
        assert all(
            request.deadline > self.now
            for request in self.requests.values()
            if request.status == "waiting" and not request.released
        )

    @rule()
    def tick_at_the_deadline(self) -> None:
        due = self.pool.next_deadline()
        if due is not None:
            self.tick(max(0.0, due - self.now))

    @rule(sure=st.integers(0, 4))
    def shutdown(self, sure: int) -> None:
        if sure == 4:  # rarely, since it ends everything interesting
            self.perform(self.pool.shutdown(self.now))

    # ── what always holds ──

    @invariant()
    def the_pool_counts_as_we_do(self) -> None:
        waiting = {lease for entry in self.pool.models.values() for lease in entry.waiting}
        granted = {lease for entry in self.pool.models.values() for lease in entry.granted}
        open_ones = {
            status: {
                lease
                for lease, request in self.requests.items()
                if request.status == status and not request.released
            }
            for status in ("waiting", "granted")
        }
        assert waiting == open_ones["waiting"]
        assert granted == open_ones["granted"]

    @invariant()
    def a_process_exists_when_the_state_says_so(self) -> None:
        alive = {name for name, entry in self.pool.models.items() if entry.state in HAS_PROCESS}
        assert alive == set(self.processes)
        assert self.pool.state.stopped == (not alive)

    @invariant()
    def only_lasting_states_are_seen(self) -> None:
        for entry in self.pool.models.values():
            assert entry.state not in (State.RELEASING, State.CRASHED)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        for name, entry in self.pool.models.items():
            assert len(entry.waiting) + len(entry.granted) <= CAPACITIES[name]
            if entry.waiting:
                assert entry.state in (State.LOADING, State.STOPPING)
                assert not self.pool.state.shutting_down
            if entry.granted:
                assert entry.state in (State.READY, State.DRAINING, State.STOPPING)

    @invariant()
    def every_passing_state_has_an_end(self) -> None:
        for name, entry in self.pool.models.items():
            if entry.state in (State.LOADING, State.DRAINING):
                assert entry.deadline is not None
            if entry.state is State.DRAINING:
                assert entry.granted
            if entry.state is State.STOPPING and entry.deadline is None:
                assert (name, entry.generation) in self.killed
        due = self.pool.next_deadline()
        for request in self.requests.values():
            if request.status == "waiting" and not request.released:
                assert due is not None
                assert due <= request.deadline

    def teardown(self) -> None:
        """A shutdown, asked for twice, ends every request and every process."""
        self.perform(self.pool.shutdown(self.now))
        self.perform(self.pool.shutdown(self.now))
        for model, generation in sorted(self.processes.items()):
            del self.processes[model]
            self.perform(self.pool.exited(model, generation, "exit status 0", self.now))
        assert not self.processes
        assert self.pool.state.stopped
        assert self.pool.next_deadline() is None
        assert all(
            request.released or request.status == "ended" for request in self.requests.values()
        )


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(deadline=None, max_examples=35, stateful_step_count=50)
