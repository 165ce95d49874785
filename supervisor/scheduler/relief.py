"""Memory is short, in one worker or in the whole machine: who gives it up, and in which order.

A worker that holds more than it is charged is dealt with by itself (`overcharge`). When the machine
is pressed, one step is taken after the other, and each has a moment to take effect:

1. workers that outgrew their charge     parked, restarted, resumed (HIGH); on their way (WARN)
2. idle loans                            called back
3. idle models                           down to `keep`; at CRITICAL all that are not pinned
4. idle models that are pinned           CRITICAL alone
5. what runs                             CRITICAL alone: drained in a hurry, `memory_pressure`

A step with nothing to do takes no time. Nothing more is done while readings say that the pressure
falls. A model whose unloading did not relieve it is spared by pressure for its minimum residency:
unloading it again would not either.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.scheduler import overcharge
from supervisor.scheduler.effects import Effect, LimitSequences, LogLine, Shrink, warning
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import Loans
from supervisor.scheduler.model import DrainCause, Model
from supervisor.scheduler.overcharge import Action
from supervisor.scheduler.planner import Planner
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.state import PoolState
from supervisor.scheduler.workers import Workers
from supervisor.units import gigabytes

MOMENT_SECONDS = 2.0
"""Between two steps: a reading or two."""
MOMENT_CRITICAL_SECONDS = 1.0
EXIT_SECONDS = 5.0
"""While workers end that a step has stopped, the next one waits so long at most."""
GROWN_SECONDS = 10.0
"""For which, at WARN, the others are left alone while a worker above its charge is dealt with."""
SPARED_SECONDS = 60.0
"""For which pressure spares a model in vain unloaded, where `min_residency` is "auto"."""


class Step(enum.IntEnum):
    OUTGROWN = 0
    LOANS = 1
    IDLE = 2
    PINNED = 3
    BUSY = 4


@dataclass(slots=True)
class _Unloaded:
    """A model that had to go by pressure."""

    at: float
    level: Level
    helped: bool = False
    """Whether the pressure fell then."""


class Relief:
    """What is done about workers and a machine that hold too much."""

    def __init__(self, state: PoolState, workers: Workers, planner: Planner, loans: Loans) -> None:
        self._state = state
        self._workers = workers
        self._planner = planner
        self._loans = loans
        self._next = Step.OUTGROWN
        self._acted_at: float | None = None
        self._grown_since: float | None = None
        """Since when workers above their charge have been waited for."""
        self._batch: list[str] = []
        """Models that the last step has unloaded."""
        self._unloaded: dict[str, _Unloaded] = {}

    @property
    def _models(self) -> Iterable[Model]:
        return self._state.models.values()

    # ── a worker above its charge ────────────────────────────────────────────────────────────────

    def footprint(self, model: Model, size: int, now: float) -> list[Effect]:
        """READY: its process was seen to hold `size` bytes. What it was charged then counts: it may
        have given back some of it since."""
        worker = model.current
        charge = self._state.ledger.charges[worker.key].allowed
        over = overcharge.is_over(size, charge)
        may = model.may_restart_for_excess(now) and not self._state.shutting_down
        running = model.in_flight
        watch, action = overcharge.step(
            worker.watch, over=over, running=running, may_restart=may, now=now
        )
        worker.watch = watch
        holds = f"{worker.name} holds {gigabytes(size)} and is charged {gigabytes(charge)}"
        match action:
            case Action.NONE:
                return []
            case Action.SHRINK:
                back = self._loans.recall_idle(float("inf"), now, model)
                return [warning(f"{holds}: it gives back what is idle"), self._shrink(model), *back]
            case Action.LIMIT:
                limited = LimitSequences(*worker.key, watch.limit)
                if not over:
                    many = watch.limit or "as many as are configured"
                    return [LogLine(f"{worker.name} is within its charge: {many} at once"), limited]
                return [warning(f"{holds}: at most {watch.limit} run at once"), limited]
            case Action.RESTART:
                return self._restart(model, size, now)

    def _restart(self, model: Model, size: int, now: float) -> list[Effect]:
        """READY: park what runs in it and have it loaded anew, charged what it was seen to hold."""
        worker = model.current
        charge = self._state.ledger.charges[worker.key].allowed
        model.excess_restarts, model.excess_restarted_at = model.excess_restarts + 1, now
        learned: list[Effect] = []
        # Its files may be others by now; and what is configured is charged, whatever it holds.
        if model.measured_bytes is not None and model.spec.memory_bytes is None:
            learned = self._workers.learn_excess(model, max(0, size - charge))
        said = warning(
            f"{worker.name} holds {gigabytes(size)} and is charged {gigabytes(charge)}: it is "
            f"loaded anew and charged {gigabytes(model.size)}"
        )
        return [said, *learned, *self._planner.load_anew(model, DrainCause.OUTGROWN, now)]

    @staticmethod
    def _shrink(model: Model) -> Effect:
        return Shrink(model.name, model.generation)

    # ── a machine under pressure ─────────────────────────────────────────────────────────────────

    def pressure(self, before: Level, now: float) -> list[Effect]:
        """A reading; the level was `before`. Where the pressure falls, nothing more goes."""
        state = self._state
        if state.level < before or state.eased or state.level is Level.NORMAL:
            for name in self._batch:
                self._unloaded[name].helped = True
            self._batch, self._next = [], Step.OUTGROWN
        effects: list[Effect] = []
        if state.level is Level.CRITICAL and not state.eased:
            effects += self._abort_loads(now)
        if state.level is Level.NORMAL or state.level < before:
            self._acted_at = None
        elif state.level > before:
            self._acted_at, self._next = None, min(self._next, Step.IDLE)
        if state.level >= Level.WARN and not state.eased and not self._waits(now):
            effects += self._take_step(now)
        if before < Level.HIGH <= state.level:
            effects += [self._shrink(model) for model in self._ready()]
        return effects

    def _take_step(self, now: float) -> list[Effect]:
        last = Step.BUSY if self._state.level is Level.CRITICAL else Step.IDLE
        first, self._next = min(self._next, last), Step.OUTGROWN
        for step in list(Step)[first : last + 1]:
            done = self._do(step, now)
            if done is not None:
                # Nothing done: the next step waits for what goes on already.
                self._next = Step((step + 1) % (last + 1)) if done else step
                self._acted_at = now
                return done
        return []

    def _waits(self, now: float) -> bool:
        """Whether the last step may still take effect."""
        if self._acted_at is None:
            return False
        critical = self._state.level is Level.CRITICAL
        moment = MOMENT_CRITICAL_SECONDS if critical else MOMENT_SECONDS
        ending = any(each.state in (State.STOPPING, State.RELEASING) for each in self._models)
        return now < self._acted_at + (max(moment, EXIT_SECONDS) if ending else moment)

    def _do(self, step: Step, now: float) -> list[Effect] | None:
        """Take the step; None where there is nothing to do."""
        match step:
            case Step.OUTGROWN:
                return self._outgrown(now)
            case Step.LOANS:
                self._batch = []
                return self._loans.recall_idle(float("inf"), now) or None
            case Step.IDLE:
                return self._unload(self._superfluous(now), DrainCause.EVICTION, now)
            case Step.PINNED:
                idle = [model for model in self._ready() if not model.in_use]
                return self._unload(idle, DrainCause.EMERGENCY, now)
            case Step.BUSY:
                self._hurry_drains(now)
                return self._unload(self._ready(), DrainCause.EMERGENCY, now)

    def _outgrown(self, now: float) -> list[Effect] | None:
        """Those above their charge, which the next readings of theirs deal with; at once where the
        machine is pressed hard."""
        self._batch = []
        grown = [
            each
            for each in self._ready()
            if self._is_over(each) and each.may_restart_for_excess(now)
        ]
        if not grown:
            self._grown_since = None
            return None
        if self._state.level < Level.HIGH:
            if self._grown_since is None:
                self._grown_since = now
            return [] if now < self._grown_since + GROWN_SECONDS else None
        ledger = self._state.ledger
        effects: list[Effect] = []
        for model in grown:
            size = ledger.charges[model.current.key].footprint or 0
            effects += self._restart(model, size, now)
        return effects

    def _is_over(self, model: Model) -> bool:
        """Whether it held more when it was last seen than it was charged, and than it is now."""
        charge = self._state.ledger.charges[model.current.key]
        seen, allowed = charge.footprint or 0, max(charge.allowed, charge.bytes)
        return model.current.watch.over and overcharge.is_over(seen, allowed)

    def _superfluous(self, now: float) -> list[Model]:
        """Idle models that are not pinned, but for `keep`; those just loaded are spared at first,
        or two models used in turn would be loaded in turn. At CRITICAL all of them."""
        state, idle = self._state, self._planner.idle()
        if state.level is Level.CRITICAL:
            return idle
        pinned = sum(model.pinned and not model.in_use for model in self._ready())
        most = max(0, len(idle) - max(0, state.rules.keep - pinned))
        fresh = state.level < Level.HIGH
        return [
            model for model in idle[:most] if not fresh or self._planner.safe_until(model) <= now
        ]

    def _unload(self, models: list[Model], cause: DrainCause, now: float) -> list[Effect] | None:
        """Unload those that pressure does not spare."""
        limits, level = self._state.limits, self._state.level
        seconds = min(limits.drain, limits.emergency_drain)
        effects: list[Effect] = []
        going = [model for model in models if not self._spares(model, now)]
        if not going:
            return None
        self._batch = [model.name for model in going]
        for model in going:
            self._unloaded[model.name] = _Unloaded(now, level)
            how = "is drained" if model.in_use else "is idle and unloaded"
            effects.append(LogLine(f"{model.current.name} {how}: {self._state.pressure_figures}"))
            emergency = seconds if cause is DrainCause.EMERGENCY else None
            effects += self._workers.drain(model, cause, now, seconds=emergency)
        return effects

    def _hurry_drains(self, now: float) -> None:
        """What drains already has little time left."""
        limits = self._state.limits
        for model in self._models:
            if model.state is State.DRAINING:
                self._workers.hurry_drain(model, min(limits.drain, limits.emergency_drain), now)

    def _spares(self, model: Model, now: float) -> bool:
        """Whether it was unloaded in vain a short while ago, when the pressure was no lower."""
        before = self._unloaded.get(model.name)
        residency = self._state.rules.min_residency
        spared = SPARED_SECONDS if residency is None else residency
        if before is None or before.helped or self._state.level > before.level:
            return False
        return now < before.at + spared

    def _abort_loads(self, now: float) -> list[Effect]:
        """What still loads makes it worse with every moment."""
        effects: list[Effect] = []
        for model in self._models:
            if model.state is State.LOADING:
                effects += self._workers.abort_load(model, now)
        return effects

    def _ready(self) -> list[Model]:
        return [model for model in self._models if model.state is State.READY]
