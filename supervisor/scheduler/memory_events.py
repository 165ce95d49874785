"""The events of memory: what the workers hold and borrow, and what the machine has left.

They are `Pool.memory`, and like the pool's own: each takes the time and returns the effects.
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
from supervisor.scheduler.relief import Relief
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.state import PoolState
from supervisor.scheduler.workers import Workers


class MemoryEvents:
    """Loans, turns to prefill, footprints, memory that comes back, and pressure."""

    def __init__(
        self,
        state: PoolState,
        workers: Workers,
        requests: Requests,
        planner: Planner,
        loans: Loans,
        prefill_gate: PrefillGate,
    ) -> None:
        self._state = state
        self._workers = workers
        self._requests = requests
        self._planner = planner
        self._loans = loans
        self._prefill_gate = prefill_gate
        self._relief = Relief(state, workers, planner, loans)

    def needs(self, name: str, generation: int, needs: LoanNeeds, now: float) -> list[Effect]:
        """The worker says how it stands with its loan."""
        model = self._state.living(name, generation)
        if model is None or model.state not in (State.READY, State.DRAINING):
            return []
        self._loans.needs(model, needs)
        return self._planner.settle(now)

    def repaid(
        self, name: str, generation: int, size: int, recall: int, now: float
    ) -> list[Effect]:
        """The worker has given back `size` bytes, because `recall` asked for them or, 0, by
        itself."""
        model = self._state.living(name, generation)
        if model is None:
            return []
        self._loans.repaid(model, size, recall, now)
        return [*self._planner.keep_to_budget(now), *self._planner.settle(now)]

    def wants_prefill(self, name: str, generation: int, wanted: bool, now: float) -> list[Effect]:
        """The worker has a heavy prefill to do, or none any more, see `PrefillGate`."""
        model = self._state.living(name, generation)
        if model is None or model.state not in (State.READY, State.DRAINING):
            return []
        self._prefill_gate.wants(model.current.key, wanted)
        return self._planner.settle(now)

    def footprint(self, name: str, generation: int, size: int, now: float) -> list[Effect]:
        """The living worker was seen to hold `size` bytes; told about once a second. Bounds what
        its end can leave behind where `release` is WHEN_SEEN."""
        self._state.ledger.footprint((name, generation), size)
        model = self._state.living(name, generation)
        if model is None or model.state is not State.READY:
            return []
        effects = self._relief.footprint(model, size, now)
        return [*effects, *self._planner.settle(now)] if effects else []

    def memory_seen(self, unattributed: int, now: float) -> list[Effect]:
        """Bytes that are wired by no living process of ours, above the quiet baseline; read after
        the last exit that was reported, or they would speak of a process that lived then."""
        effects: list[Effect] = []
        for name, generation in self._state.ledger.observe(unattributed, now):
            model = self._state.models[name]
            if model.state is State.RELEASING and model.generation == generation:
                effects += self.release(model, now)
        return [*effects, *self._planner.settle(now)]

    def pressure(
        self, level: Level, figures: str, now: float, *, eased: bool = False
    ) -> list[Effect]:
        """A reading's level, the same one or another; `figures` explains it in the log. `eased`:
        this reading alone would have led to a lower one."""
        before = self._state.level
        self._state.level, self._state.pressure_figures, self._state.eased = level, figures, eased
        effects: list[Effect] = []
        if level is not before:
            serious = logging.WARNING if level >= Level.HIGH else logging.INFO
            effects.append(LogLine(f"memory pressure is {level.name.lower()}: {figures}", serious))
        return [*effects, *self._relief.pressure(before, now), *self._planner.settle(now)]

    def release(self, model: Model, now: float) -> list[Effect]:
        """RELEASING: nobody has to wait for this incarnation's memory any longer."""
        effects = self._workers.release(model, now)
        if model.state is State.FAILED:
            effects += self._requests.turn_away(model, refusals.failed(model))
        elif model.state is State.CRASHED:
            effects += self._requests.drop_preload(model, "it keeps dying")
            effects += self._requests.turn_away(model, refusals.unavailable(model, now))
        return effects
