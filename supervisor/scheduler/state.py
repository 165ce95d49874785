"""What the parts of the scheduler share: plain data, and look-ups in it.

`Workers`, `Requests`, `Recovery` and `Planner` are given this and change it; nobody outside this
room does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from supervisor.scheduler import refusals
from supervisor.scheduler.breaker import Breaker
from supervisor.scheduler.ledger import Ledger
from supervisor.scheduler.lifecycle import HAS_PROCESS
from supervisor.scheduler.model import Limits, Model, NextCharge, Rules, Spec
from supervisor.scheduler.pressure import Level

DEFAULT_MODEL = "default_model"
UNSURE, UNSURE_SHARE = 64 * 10**6, 16
"""How much more a load may take than was known: a part of its size, and so many bytes at most."""
"""The name by which mlx_lm.server's clients ask for whatever is served."""


class PoolState:
    """All models, leases and charges. `jitter` gives numbers from 0 to 1, see `Breaker`."""

    def __init__(
        self,
        specs: Iterable[Spec],
        *,
        default_model: str,
        limits: Limits,
        rules: Rules,
        budget: int | None,
        jitter: Callable[[], float],
    ) -> None:
        self.limits = limits
        self.rules = rules
        self.ledger = Ledger(budget)
        self.models: dict[str, Model] = {}
        for spec in specs:
            breaker = Breaker(rules.max_restarts, rules.restart_window, rules.backoff_max, jitter)
            self.models[spec.name] = Model(spec, breaker, pinned=spec.pin)
        self.leases: dict[int, Model] = {}
        """The model of each lease that is open."""
        self.uses = 0
        """Requests over all models, the clock by which frequencies age."""
        self.level = Level.NORMAL
        self.eased = False
        """Whether the last reading was below the level, which it did not end yet."""
        self.pressure_figures = ""
        """Why the level is what it is."""
        self.shutting_down = False
        self._default_model = default_model
        self._names: Mapping[str, str] = {
            alias: model.name
            for model in self.models.values()
            for alias in (*model.spec.aliases, model.name)
        }

    def resolve(self, requested: str) -> Model:
        """The model that a request's `model` means. Raises ModelNotFound.

        An exact name or alias wins; then Ollama's `:latest` is dropped; an empty name and
        "default_model" mean the configured default.
        """
        if requested in ("", DEFAULT_MODEL) and requested not in self._names:
            requested = self._default_model
        name = self._names.get(requested) or self._names.get(requested.removesuffix(":latest"))
        if name is None:
            raise refusals.unknown(requested) if requested else refusals.unnamed()
        return self.models[name]

    def next_charge(self, name: str) -> NextCharge:
        """What the model's next incarnation is charged. What it is told that it could have is a
        little less than that: a load that takes more than the last one did is no reason to have
        promised too much."""
        model, most = self.models[name], self.most_for(self.models[name])
        if most == math.inf:
            return NextCharge(model.size, model.untouched, None)
        unsure = min(UNSURE, model.size // UNSURE_SHARE)
        return NextCharge(model.size, model.untouched, max(model.size, int(most) - unsure))

    def most_for(self, model: Model) -> float:
        """Bytes that the model could ever be charged with all its loans: what the budget leaves
        beside what is stranded and the models that are pinned, which yield to nobody."""
        if self.ledger.budget is None:
            return math.inf
        others = [each for each in self.models.values() if each.pinned and each is not model]
        return self.ledger.budget - self.ledger.stranded - sum(map(self._least_of, others))

    def _least_of(self, model: Model) -> int:
        """Bytes that a pinned model takes without a loan, loaded or not."""
        if model.state not in HAS_PROCESS:
            return model.size
        key = model.current.key
        return max(model.size, self.ledger.of(key) - self.ledger.lent(key))

    def living(self, name: str, generation: int) -> Model | None:
        """The model, unless this incarnation of it has no process any more."""
        model = self.models[name]
        lives = model.generation == generation and model.state in HAS_PROCESS
        return model if lives else None

    def crashing(self, name: str, generation: int) -> Model | None:
        """The model, if an end of this incarnation's process now is one that nobody asked for."""
        model = self.living(name, generation)
        return model if model is not None and model.current.exit_is_crash else None

    @property
    def stopped(self) -> bool:
        """Whether no worker process is left."""
        return not any(model.state in HAS_PROCESS for model in self.models.values())

    def deadlines(self) -> list[float | None]:
        """When a state, a time to live, a preload, a learned limit, or somebody's hold is over."""
        deadlines: list[float | None] = []
        for model in self.models.values():
            deadlines += (model.deadline, model.idle_at)
            if model.learned_limit is not None and not self.shutting_down:
                deadlines.append(model.learned_limit.ends)
            if model.preload is not None:
                deadlines.append(model.preload.deadline)
            deadlines += [model.hold_ends(lease) for lease in model.waiting.values()]
            if model.returning:
                deadlines.append(min([lease.deadline for lease in model.returning.values()]))
        return deadlines
