"""The events of memory: what the workers hold and borrow, and what the machine has left.

`Pool` is made of these and of those that concern requests and processes.
"""

from __future__ import annotations

import logging

from supervisor.scheduler import refusals
from supervisor.scheduler.effects import Effect, LogLine
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import LoanNeeds, Loans
from supervisor.scheduler.model import Model
from supervisor.scheduler.planner import Planner
from supervisor.scheduler.prefill_gate import PrefillGate
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.recovery import Recovery
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.state import PoolState
from supervisor.scheduler.workers import Workers


class MemoryEvents:
    """The parts of the scheduler over one state, and the events of memory that they decide."""

    def __init__(self, state: PoolState) -> None:
        self.state = state
        self.models = state.models
        self.workers = Workers(state)
        self.requests = Requests(state)
        self.recovery = Recovery(state, self.requests)
        self.loans = Loans(state)
        self.prefill_gate = PrefillGate()
        self.planner = Planner(
            state, self.workers, self.requests, self.recovery, self.loans, self.prefill_gate
        )

    def reserve(self, size: int) -> None:
        """Keep `size` bytes of the budget for what is no model, before anything is charged."""
        self.state.ledger.reserve(size)

    def needs(self, name: str, generation: int, needs: LoanNeeds, now: float) -> list[Effect]:
        """The worker says how it stands with its loan."""
        model = self.state.living(name, generation)
        if model is None or model.state not in (State.READY, State.DRAINING):
            return []
        self.loans.needs(model, needs)
        return self.planner.settle(now)

    def repaid(
        self, name: str, generation: int, size: int, recall: int, now: float
    ) -> list[Effect]:
        """The worker has given back `size` bytes, because `recall` asked for them or, 0, by
        itself."""
        model = self.state.living(name, generation)
        if model is None:
            return []
        self.loans.repaid(model, size, recall, now)
        return [*self.planner.keep_to_budget(now), *self.planner.settle(now)]

    def wants_prefill(self, name: str, generation: int, wanted: bool, now: float) -> list[Effect]:
        """The worker has a heavy prefill to do, or none any more, see `PrefillGate`."""
        model = self.state.living(name, generation)
        if model is None or model.state not in (State.READY, State.DRAINING):
            return []
        self.prefill_gate.wants(model.current.key, wanted)
        return self.planner.settle(now)

    def footprint(self, name: str, generation: int, size: int) -> None:
        """The living worker was seen to hold `size` bytes; needed where `release` is WHEN_SEEN."""
        self.state.ledger.footprint((name, generation), size)

    def memory_seen(self, unattributed: int, now: float) -> list[Effect]:
        """Bytes that are wired by no living process of ours, above the quiet baseline; read after
        the last exit that was reported, or they would speak of a process that lived then."""
        effects: list[Effect] = []
        for name, generation in self.state.ledger.observe(unattributed, now):
            model = self.models[name]
            if model.state is State.RELEASING and model.generation == generation:
                effects += self.release_memory(model, now)
        return [*effects, *self.planner.settle(now)]

    def pressure(self, level: Level, figures: str, now: float) -> list[Effect]:
        """A reading's level, the same one or another; `figures` explains it in the log."""
        before = self.state.level
        self.state.level, self.state.pressure_figures = level, figures
        effects: list[Effect] = []
        if level is not before:
            serious = logging.WARNING if level >= Level.HIGH else logging.INFO
            effects.append(LogLine(f"memory pressure is {level.name.lower()}: {figures}", serious))
        return [*effects, *self.planner.relieve(before, now), *self.planner.settle(now)]

    def release_memory(self, model: Model, now: float) -> list[Effect]:
        """RELEASING: nobody has to wait for this incarnation's memory any longer."""
        effects = self.workers.release(model, now)
        if model.state is State.FAILED:
            effects += self.requests.turn_away(model, refusals.failed(model))
        elif model.state is State.CRASHED:
            effects += self.requests.drop_preload(model, "it keeps dying")
            effects += self.requests.turn_away(model, refusals.unavailable(model, now))
        return effects
