"""KV cache on loan: who gets memory beyond what its load was charged, and who gives it back.

A ready worker says how it stands with `LoanNeeds`. What it is lent is charged in the ledger before
it is told, and what it gives back is free once it has said so: the ledger is never below what the
workers may hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.scheduler.effects import Effect, Lend
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Model
from supervisor.scheduler.state import PoolState


@dataclass(frozen=True, slots=True)
class LoanNeeds:
    """How a worker stands with its loan, see `wire.frames.Needs`. Bytes, and seconds since the
    epoch."""

    least: int = 0
    most: int = 0
    since: float = 0.0
    idle: int = 0
    youngest: float = 0.0
    parkable: int = 0


class Loans:
    """The needs of all workers, and how they are served."""

    def __init__(self, state: PoolState) -> None:
        self._state = state
        self._needs: dict[tuple[str, int], LoanNeeds] = {}

    def needs(self, model: Model, needs: LoanNeeds) -> None:
        """READY or DRAINING: the worker stands so from now on."""
        self._needs[model.current.key] = needs

    def repaid(self, model: Model, size: int) -> None:
        """The worker holds `size` bytes of its loan no longer."""
        self._state.ledger.repay(model.current.key, size)

    def serve(self, now: float) -> list[Effect]:
        """Lend what is free, to the oldest need first."""
        effects: list[Effect] = []
        for key in [key for key in self._needs if key not in self._state.ledger.charges]:
            del self._needs[key]
        serving = (State.READY, State.DRAINING)
        for key, needs in sorted(self._needs.items(), key=lambda item: item[1].since):
            model = self._state.models[key[0]]
            size = int(min(needs.most, self._state.ledger.free))
            if model.state not in serving or model.generation != key[1] or not needs.least:
                continue
            if size >= needs.least:
                self._state.ledger.lend(key, size)
                del self._needs[key]
                effects.append(Lend(*key, size))
        return effects
