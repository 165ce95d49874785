"""One worker at a time prefills long prompts; each gets its turn."""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from supervisor.scheduler.effects import Effect, MayPrefill
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.prefill_gate import TURN_SECONDS, PrefillGate
from tests.helpers.pools import GB, ask, serve, small_machine, state
from worker.engine.prefill_turns import HEAVY_TOKENS, PrefillTurns

A, B, C = ("a", 1), ("b", 1), ("c", 1)
ALL = {A, B, C}


def may(worker: tuple[str, int], allowed: bool = True) -> MayPrefill:
    return MayPrefill(*worker, allowed=allowed)


def waiting(*workers: tuple[str, int]) -> PrefillGate:
    """The first has had the turn since 0."""
    gate = PrefillGate()
    for worker in workers:
        gate.wants(worker, True)
    assert gate.serve(ALL, 0.0) == [may(workers[0])]
    return gate


def holder(gate: PrefillGate) -> tuple[str, int] | None:
    return gate.holder


def due(gate: PrefillGate) -> float | None:
    return gate.deadline


def test_who_is_alone_gets_the_turn_and_keeps_it() -> None:
    gate = waiting(A)
    assert holder(gate) == A
    assert gate.serve(ALL, 1.0) == []
    assert due(gate) is None
    assert gate.serve(ALL, 1000.0) == []
    gate.wants(A, False)
    assert holder(gate) is None
    assert gate.serve(ALL, 1001.0) == []


def test_first_come_first_served() -> None:
    gate = waiting(A, B, C)
    gate.wants(A, False)
    assert gate.serve(ALL, 1.0) == [may(B)]
    gate.wants(B, False)
    assert gate.serve(ALL, 2.0) == [may(C)]


def test_who_keeps_others_waiting_passes_the_turn_on_in_time() -> None:
    gate = waiting(A, B)
    assert due(gate) == TURN_SECONDS
    assert gate.serve(ALL, TURN_SECONDS - 0.1) == []
    assert gate.serve(ALL, TURN_SECONDS) == [may(A, False)]
    assert due(gate) is None
    assert gate.serve(ALL, TURN_SECONDS + 1.0) == []  # its slice is not over
    assert holder(gate) == A
    gate.wants(A, True)
    assert gate.serve(ALL, 7.0) == [may(B)]
    assert due(gate) == 7.0 + TURN_SECONDS
    assert gate.serve(ALL, 7.0 + TURN_SECONDS) == [may(B, False)]
    gate.wants(B, True)
    assert gate.serve(ALL, 13.0) == [may(A)]


def test_a_turn_that_has_lasted_ends_when_the_second_comes() -> None:
    gate = waiting(A)
    gate.wants(B, True)
    assert gate.serve(ALL, 100.0) == [may(A, False)]
    gate.wants(A, False)
    assert gate.serve(ALL, 101.0) == [may(B)]
    assert due(gate) is None


def test_who_wants_none_any_more_is_passed_over() -> None:
    gate = waiting(A, B, C)
    gate.wants(B, False)
    gate.wants(A, False)
    assert gate.serve(ALL, 1.0) == [may(C)]


def test_nobody_waits_twice() -> None:
    gate = waiting(A, B, C)
    gate.wants(B, True)
    gate.wants(A, False)
    assert gate.serve(ALL, 1.0) == [may(B)]
    gate.wants(B, False)
    assert gate.serve(ALL, 2.0) == [may(C)]
    gate.wants(C, False)
    assert gate.serve(ALL, 3.0) == []


def test_one_that_has_ended_holds_nobody_up() -> None:
    gate = waiting(A, B, C)
    assert gate.serve({B, C}, 1.0) == [may(B)]
    assert due(gate) == 1.0 + TURN_SECONDS
    assert gate.serve({B}, 2.0) == []
    assert due(gate) is None
    assert gate.serve((), 3.0) == []
    assert holder(gate) is None


def test_one_that_ends_while_it_was_asked_to_stop() -> None:
    gate = waiting(A, B)
    assert gate.serve(ALL, TURN_SECONDS) == [may(A, False)]
    assert gate.serve({B, C}, 6.0) == [may(B)]
    gate.wants(C, True)
    assert due(gate) == 6.0 + TURN_SECONDS


# ── in the pool ──────────────────────────────────────────────────────────────────────────────────


def two_at_work() -> Pool:
    """`a` and `b` are loaded, each with a request, and want to prefill; `a` has the turn."""
    pool = small_machine("a", "b", size=3 * GB)
    serve(pool, "a", 0.0, size=3 * GB)
    serve(pool, "b", 0.0, size=3 * GB)
    assert pool.memory.wants_prefill("a", 1, True, 2.0) == [may(A)]
    assert pool.memory.wants_prefill("b", 1, True, 2.0) == []
    return pool


def turns(effects: list[Effect]) -> list[MayPrefill]:
    return [effect for effect in effects if isinstance(effect, MayPrefill)]


def test_the_pool_passes_the_turn_on_when_it_is_due() -> None:
    pool = two_at_work()
    assert pool.next_deadline() == 2.0 + TURN_SECONDS
    assert pool.tick(2.0 + TURN_SECONDS) == [may(A, False)]
    assert pool.memory.wants_prefill("a", 1, True, 7.5) == [may(B)]
    assert pool.memory.wants_prefill("b", 1, False, 8.0) == [may(A)]


def test_a_death_passes_the_turn_on_and_the_next_incarnation_asks_anew() -> None:
    pool = two_at_work()
    assert turns(pool.exited("a", 1, "SIGABRT", 3.0)) == [may(B)]
    assert pool.memory.wants_prefill("a", 1, True, 3.1) == []
    assert turns(pool.memory.wants_prefill("b", 1, False, 3.2)) == []


def test_a_worker_that_is_killed_or_drained_passes_the_turn_on() -> None:
    pool = two_at_work()
    assert turns(pool.broken("a", 1, "it stalled", 3.0)) == [may(B)]
    pool = two_at_work()
    lease = next(iter(pool.models["a"].granted))
    assert turns(pool.unload("a", 3.0)) == []  # what is in it is prefilled to its end
    assert state(pool, "a") is State.DRAINING
    assert pool.memory.wants_prefill("a", 1, False, 3.5) == [may(B)]
    assert turns(pool.release(lease, 4.0)) == []
    assert state(pool, "a") is State.STOPPING


def test_words_of_those_that_serve_nobody_mean_nothing() -> None:
    pool = small_machine(Spec("a", estimate_bytes=GB), "b", size=GB)
    ask(pool, "a", 0.0)
    assert state(pool, "a") is State.LOADING
    assert pool.memory.wants_prefill("a", 1, True, 1.0) == []
    pool.ready("a", 1, GB, 4096, 2.0)
    assert pool.memory.wants_prefill("a", 0, True, 2.0) == []
    assert pool.memory.wants_prefill("a", 2, True, 2.0) == []
    assert pool.memory.wants_prefill("b", 0, True, 2.0) == []
    assert pool.memory.wants_prefill("a", 1, True, 2.0) == [may(A)]


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────


class Worker:
    """The real other side, and what is under way between the two."""

    def __init__(self) -> None:
        self.turns = PrefillTurns(True)
        self.prompts: list[int] = []
        self.to_worker: deque[bool] = deque()
        self.to_gate: deque[bool] = deque()
        self.starved_since: float | None = None
        """Since when it has wanted a turn and had none."""

    @property
    def works(self) -> bool:
        """Whether a heavy prompt would get a slice."""
        return bool(self.prompts) and self.turns.may_go_on(HEAVY_TOKENS)

    def speaks(self) -> None:
        self.to_gate.extend(frame.wanted for frame in self.turns.news(self.prompts))


NAMES = [A, B, C]


class GateMachine(RuleBasedStateMachine):
    """Prompts come and end, clients leave, workers die, and every word takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.gate = PrefillGate()
        self.workers: dict[tuple[str, int], Worker] = {name: Worker() for name in NAMES}

    def settle(self) -> None:
        for effect in self.gate.serve(self.workers, self.now):
            self.workers[effect.model, effect.generation].to_worker.append(effect.allowed)

    def pick(self, data: st.DataObject) -> tuple[str, int]:
        return data.draw(st.sampled_from(sorted(self.workers)))

    @rule(data=st.data())
    def prompt(self, data: st.DataObject) -> None:
        worker = self.workers[self.pick(data)]
        worker.prompts.append(HEAVY_TOKENS)
        worker.speaks()

    @rule(data=st.data())
    def prompt_ends(self, data: st.DataObject) -> None:
        """It is done, or its client leaves."""
        worker = self.workers[self.pick(data)]
        if worker.prompts:
            worker.prompts.pop()
        worker.speaks()

    @rule(data=st.data())
    def worker_hears(self, data: st.DataObject) -> None:
        worker = self.workers[self.pick(data)]
        if worker.to_worker:
            worker.turns.allow(worker.to_worker.popleft())
            worker.speaks()

    @rule(data=st.data())
    def gate_hears(self, data: st.DataObject) -> None:
        name = self.pick(data)
        if self.workers[name].to_gate:
            self.gate.wants(name, self.workers[name].to_gate.popleft())
            self.settle()

    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        model, generation = self.pick(data)
        del self.workers[model, generation]
        self.settle()
        self.workers[model, generation + 1] = Worker()

    @rule(span=st.floats(0.0, 2 * TURN_SECONDS))
    def time_passes(self, span: float) -> None:
        self.now += span
        self.settle()

    @precondition(lambda self: any(worker.prompts for worker in self.workers.values()))
    @rule()
    def everybody_gets_a_turn(self) -> None:
        """With words that arrive and nobody who ends, each works before the others have had two
        turns."""
        wanting = {name for name, worker in self.workers.items() if worker.prompts}
        for _ in range(2 * len(NAMES)):
            for _ in range(8):
                for name, worker in self.workers.items():
                    while worker.to_worker:
                        worker.turns.allow(worker.to_worker.popleft())
                        worker.speaks()
                    while worker.to_gate:
                        self.gate.wants(name, worker.to_gate.popleft())
                        self.settle()
            wanting -= {name for name in wanting if self.workers[name].works}
            self.now = self.now if self.gate.deadline is None else max(self.now, self.gate.deadline)
            self.settle()
        assert not wanting

    @invariant()
    def one_at_a_time(self) -> None:
        assert sum(worker.works for worker in self.workers.values()) <= 1

    @invariant()
    def a_deadline_that_was_met_is_over(self) -> None:
        self.settle()
        assert self.gate.deadline is None or self.gate.deadline > self.now


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(deadline=None, max_examples=30, stateful_step_count=50)
