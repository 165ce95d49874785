"""Needs that can never be met.

At its load a worker is told the most that it can ever be lent, and refuses or ends requests that
would take more. What the budget can spare may become less after that: another model is pinned, a
pinned one takes more than was thought, memory of the dead is stranded. A request that needs more
than there can be by then would wait for ever, so the worker is loaded anew after a while: it is
told what can be lent now, and its requests go on or end by that.
"""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.scheduler.effects import Effect, warning
from supervisor.scheduler.ledger import Key
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import Loans
from supervisor.scheduler.model import Model
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.state import PoolState
from supervisor.units import gigabytes

PATIENCE_SECONDS = 30.0
"""Stranded memory may be seen to be back, and what was pinned be unpinned."""


class OutOfReach:
    """Which workers wait for what can't be, and since when."""

    def __init__(self, state: PoolState, loans: Loans) -> None:
        self._state = state
        self._loans = loans
        self._since: dict[Key, float] = {}

    def look(self, now: float) -> list[Effect]:
        """Note who waits so by now, and say it."""
        effects: list[Effect] = []
        found: dict[Key, float] = {}
        for need in self._loans.open_needs():
            model = self._state.models[need.worker[0]]
            held, most = self._state.ledger.of(need.worker), self._state.most_for(model)
            if model.state is not State.READY or not need.least or held + need.least <= most:
                continue
            found[need.worker] = self._since.get(need.worker, now)
            if need.worker not in self._since:
                effects.append(
                    warning(
                        f"a request in {model.current.name} needs {gigabytes(need.least)} more, "
                        f"and all that can ever be is {gigabytes(max(0, most - held))}: it is "
                        f"loaded anew in {PATIENCE_SECONDS:.0f} s"
                    )
                )
        self._since = found
        return effects

    def overdue(self, now: float) -> list[Model]:
        """Those that are to be loaded anew; none while nothing may be loaded."""
        due = [key for key, since in self._since.items() if since + PATIENCE_SECONDS <= now]
        return [self._state.models[key[0]] for key in due] if self._loads else []

    @property
    def deadlines(self) -> Iterable[float]:
        """When somebody is overdue."""
        return [since + PATIENCE_SECONDS for since in self._since.values()] if self._loads else []

    @property
    def _loads(self) -> bool:
        return self._state.level < Level.HIGH and not self._state.shutting_down
