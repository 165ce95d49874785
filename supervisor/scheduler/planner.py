"""What follows from an event: who is granted, what is loaded next, who makes room, who waits.

`Planner` looks at all models at once. `plan` has the decision about loads; this module takes the
snapshot for it and carries it out by the steps of `workers`, `requests` and `recovery`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from supervisor.errors import BulkheadError
from supervisor.scheduler import eviction, refusals
from supervisor.scheduler.effects import Effect, LogLine, warning
from supervisor.scheduler.eviction import Candidate
from supervisor.scheduler.ledger import Key
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.loans import Loans
from supervisor.scheduler.model import DrainCause, Model, PreloadRequest
from supervisor.scheduler.out_of_reach import OutOfReach
from supervisor.scheduler.plan import Capacity, Demand, Means, Plan, Tenant, make_plan
from supervisor.scheduler.prefill_gate import PrefillGate
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.recovery import Recovery
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.state import PoolState
from supervisor.scheduler.workers import Workers
from supervisor.units import gigabytes

_LEAVING = frozenset({State.DRAINING, State.STOPPING, State.RELEASING})
_OCCUPIES = HAS_PROCESS | {State.RELEASING}
"""States that count towards `max_loaded`."""


@dataclass(frozen=True, slots=True)
class HeldLoad:
    """A load that waits for other models' generations (`load_gate`), and keeps new ones waiting."""

    model: str
    since: float


class Planner:
    """Decides over all models at once."""

    def __init__(
        self,
        state: PoolState,
        workers: Workers,
        requests: Requests,
        recovery: Recovery,
        loans: Loans,
        prefill_gate: PrefillGate,
    ) -> None:
        self._state = state
        self._workers = workers
        self._requests = requests
        self._recovery = recovery
        self._loans = loans
        self._prefill_gate = prefill_gate
        self._out_of_reach = OutOfReach(state, loans)
        self.held_load: HeldLoad | None = None
        self._wake: float | None = None
        """When the plan must be made again though nothing has happened."""
        self._cleanup_at: float | None = None
        self._made_good_for: Key | None = None
        """The worker whose load broke the budget, while loans are to make up for it."""

    @property
    def deadlines(self) -> list[float | None]:
        """When `settle` or `trim_if_due` must be called though nothing has happened."""
        timeout = self._state.rules.load_gate_timeout
        gate = None if self.held_load is None else self.held_load.since + timeout
        return [
            self._wake,
            self._cleanup_at,
            gate,
            self._prefill_gate.deadline,
            *self._loans.deadlines(),
            *self._out_of_reach.deadlines,
        ]

    def settle(self, now: float) -> list[Effect]:
        """What every event ends with: grants, then loads and the room for them."""
        self._loans.forget_dead()
        for model in self._models:
            if not model.waiting:
                model.queued_since = None
            elif model.queued_since is None and model.state is not State.READY:
                model.queued_since = now
        effects = [*self._out_of_reach.look(now), *self._reload_overdue(now)]
        effects += [*self._refuse_impossible(), *self._grant_all(now)]
        held = self.held_load is not None
        effects += self._plan_memory(now)
        if held and self.held_load is None:
            effects += self._grant_all(now)
        serving = (State.READY, State.DRAINING)
        living = [model.current.key for model in self._models if model.state in serving]
        effects += self._prefill_gate.serve(living, now)
        for model in self._models:
            if not model.waiting or not self._has_no_room(model):
                model.roomless_since = None
            elif model.roomless_since is None:
                model.roomless_since = now
        rules = self._state.rules
        if not 0 < rules.max_loaded < self._occupied() or not rules.cleanup_interval:
            self._cleanup_at = None
        elif self._cleanup_at is None:
            self._cleanup_at = now + rules.cleanup_interval
        return effects

    @property
    def _models(self) -> Iterable[Model]:
        return self._state.models.values()

    def _occupied(self) -> int:
        return sum(model.state in _OCCUPIES for model in self._models)

    def _refuse_impossible(self) -> list[Effect]:
        """A size that was learned, or estimated anew, may rule out what others wait for."""
        effects: list[Effect] = []
        for model in self._models:
            if model.state is State.COLD and not self._state.ledger.can_ever_fit(model.size):
                effects += self._refuse_too_large(model)
        return effects

    def _refuse_too_large(self, model: Model) -> list[Effect]:
        """The model does not fit even alone: nobody waits for it any longer."""
        assert self._state.ledger.budget is not None
        error = refusals.too_large(model, self._state.ledger.budget)
        dropped = self._requests.drop_preload(model, error.message)
        return [*dropped, *self._requests.refuse_waiting(model, error)]

    # ── grants ───────────────────────────────────────────────────────────────────────────────────

    def _grant_all(self, now: float) -> list[Effect]:
        closed = self._load_at_gate() is not None
        effects: list[Effect] = []
        for model in self._models:
            if model.state is State.READY and (model.waiting or model.granted):
                effects += self._grant(model, now, gate_closed=closed)
        return effects

    def _grant(self, model: Model, now: float, *, gate_closed: bool) -> list[Effect]:
        """READY: as many as have a place, those who have been interrupted before the others and of
        these the suspects last, one at a time."""
        effects = self._requests.answer_loads(model, now)
        if model.returning or model.on_probation:
            return effects
        effects += self._recovery.convict_proven(model, now)
        if gate_closed:
            return effects
        if model.suspects:
            return [*effects, *self._recovery.try_suspects(model, now)]
        return [*effects, *self._requests.grant_waiting(model)]

    def _load_at_gate(self) -> str | None:
        """The load that keeps generations waiting, if the gate is exclusive and there is one."""
        if self._state.rules.load_gate == "shared":
            return None
        if self.held_load is not None:
            return self.held_load.model
        loading = (model.name for model in self._models if model.state is State.LOADING)
        return next(loading, None)

    def why_waiting(self, model: Model, now: float) -> BulkheadError:
        """What a request is told that has waited as long as it wanted: what kept it waiting."""
        state = self._state
        if model.state is State.READY:
            load = self._load_at_gate()
            if load:
                return refusals.gate_closed(model, load)
            if model.recovers:
                return refusals.others_return(model)
            return refusals.no_place(model, now)
        if model.state is not State.LOADING and state.level >= Level.HIGH:
            return refusals.no_new_loads(model, state.pressure_figures)
        if model.state is State.COLD:
            others = [other for other in self._models if other is not model]
            return refusals.no_room(model, others, state.ledger.free, state.ledger.stranded)
        return refusals.still_loading(model, now)

    # ── loads and loans ──────────────────────────────────────────────────────────────────────────

    def _plan_memory(self, now: float) -> list[Effect]:
        """Start the loads that may start, lend what may be lent, and make room for the rest."""
        state, models = self._state, self._state.models
        self._wake = None
        held, self.held_load = self.held_load, None
        if state.level is Level.CRITICAL and not state.eased:
            return []
        effects: list[Effect] = []
        while (plan := self._make_plan(now)).unload or plan.lend:
            # Again: who waits longer may now find room with what goes for somebody else, and
            # whoever was lent something moves.
            for unload in plan.unload:
                effects += self.evict(models[unload.victim], models[unload.model], now)
            if not plan.unload:
                effects += [self._loans.lend(key, size) for key, size in plan.lend.items()]
        self._wake = plan.wake
        effects += self._call_back(plan, now)
        if state.rules.load_gate == "exclusive":
            return [*effects, *self._start_alone(plan.start, held, now)]
        for name in plan.start:
            effects += self._workers.spawn(models[name], now)
        return effects

    def _make_plan(self, now: float) -> Plan:
        demands, needs = self._demands(), self._loans.open_needs()
        if not demands and not needs:
            return Plan()
        if self._state.level >= Level.HIGH:
            needs = [replace(need, most=need.least) for need in needs]
        return make_plan(
            demands,
            self._tenants(),
            self._capacity(),
            self._state.rules,
            now,
            needs,
            self._loans.loans(),
        )

    def _call_back(self, plan: Plan, now: float) -> list[Effect]:
        effects: list[Effect] = []
        asked = dict(plan.recall)
        if plan.park is not None:
            key, size = plan.park
            # It gives what is idle first.
            whole = size + max(asked.pop(key, 0), self._loans.recallable(key))
            effects.append(LogLine(self._parks(key, size)))
            effects.append(self._loans.recall(key, whole, now, park=True))
        return [*effects, *(self._loans.recall(key, asked[key], now) for key in asked)]

    def _parks(self, key: Key, size: int) -> str:
        free = gigabytes(self._state.ledger.free)
        return (
            f"the youngest request in {key[0]}#{key[1]} is parked: an older one needs "
            f"{gigabytes(size)} more, {free} free"
        )

    def _start_alone(self, names: list[str], held: HeldLoad | None, now: float) -> list[Effect]:
        """Start the first of them, one load at a time, once no other model generates."""
        if not names or any(model.state is State.LOADING for model in self._models):
            return []
        name, others = names[0], [model for model in self._models if model.granted]
        if not others:
            return self._workers.spawn(self._state.models[name], now)
        running = ", ".join(f"{each.current.name} ({len(each.granted)})" for each in others)
        since = now if held is None else held.since
        if now >= since + self._state.rules.load_gate_timeout:
            waited = f"waited {now - since:.0f} s for the generations of {running} and goes on"
            said = warning(f"the load of {name} {waited}")
            return [said, *self._workers.spawn(self._state.models[name], now)]
        self.held_load = HeldLoad(name, since)
        if held is None or held.model != name:
            return [LogLine(f"the load of {name} waits for the generations of {running}")]
        return []

    def _has_no_room(self, model: Model) -> bool:
        """Whether there is none to load it, or will be none once its last worker has gone."""
        barred = self._state.level >= Level.HIGH
        return model.state is State.COLD or (barred and model.state in _LEAVING)

    def _demands(self) -> list[Demand]:
        if self._state.shutting_down or self._state.level >= Level.HIGH:
            return []
        demands = []
        for name, model in self._state.models.items():
            cold, queued_since = model.state is State.COLD, model.queued_since
            if model.waiting and queued_since is not None and (cold or model.state in _LEAVING):
                means, since = Means.EVICTION if cold else Means.WAIT, queued_since
            elif cold and model.preload is not None:
                means, since = Means.FREE_ROOM, model.preload.since
            else:
                continue
            demands.append(Demand(name, model.size, since, model.expected_load, means))
        return demands

    def _candidate(self, model: Model) -> Candidate:
        return model.candidate(self._held(model), self._state.uses)

    def _charge(self, model: Model) -> int:
        return self._state.ledger.of(model.current.key)

    def _held(self, model: Model) -> int:
        """Bytes of its charge that it can't be asked for, nor has been."""
        key = model.current.key
        return self._charge(model) - self._loans.recallable(key) - self._loans.on_its_way(key)

    def safe_until(self, model: Model) -> float:
        """End of a loaded model's minimum residency, monotonic seconds."""
        loaded_at = model.current.loaded_at or 0.0
        return loaded_at + self._state.rules.residency(model.load_seconds or 0.0)

    def _tenants(self) -> list[Tenant]:
        needy = {need.worker for need in self._loans.open_needs() if need.least}
        return [
            Tenant(
                self._candidate(model),
                model.in_use or model.current.key in needy,
                self.safe_until(model),
            )
            for model in self._models
            if model.state is State.READY and not model.pinned
        ]

    def _capacity(self) -> Capacity:
        ledger, slots = self._state.ledger, self._state.rules.max_loaded or float("inf")
        leaving = [model for model in self._models if model.state in _LEAVING]
        drain = [model for model in leaving if model.state is State.DRAINING]
        ready = [model for model in self._models if model.state is State.READY]
        fixed = [
            model
            for model in self._models
            if model.pinned and model.state in (State.LOADING, State.READY)
        ]
        most = float("inf") if ledger.budget is None else ledger.budget - ledger.stranded
        free_slots = slots - self._occupied()
        recalled = sum(self._loans.on_its_way(model.current.key) for model in ready)
        coming = ledger.free + recalled + sum(map(self._charge, leaving))
        draining = sum(
            self._charge(model) - self._loans.on_its_way(model.current.key) for model in drain
        )
        return Capacity(
            free=ledger.free,
            coming=coming,
            most=most - sum(map(self._held, fixed)),
            free_slots=free_slots,
            coming_slots=free_slots + len(leaving),
            most_slots=slots - len(fixed),
            soon=coming - draining,
        )

    # ── making room ──────────────────────────────────────────────────────────────────────────────

    def evict(self, victim: Model, model: Model, now: float) -> list[Effect]:
        """READY: unload, or drain, `victim` for another one: its load, or a request in its
        worker."""
        state = self._state
        held, free = gigabytes(self._charge(victim)), gigabytes(state.ledger.free)
        how = f"is drained ({len(victim.granted)} running)" if victim.in_use else "is unloaded"
        needs = f"{gigabytes(model.size)} for {model.name}, {free} free"
        if model.state in (State.READY, State.DRAINING):
            needs = f"more for the requests in {model.current.name}, {free} free"
        elif model.size <= state.ledger.free and self._capacity().free_slots < 1:
            needs = f"for {model.name}, memory.max_loaded is {state.rules.max_loaded}"
        said = LogLine(f"{victim.current.name} ({held}) {how} to make room: {needs}")
        return [said, *self._workers.drain(victim, DrainCause.EVICTION, now)]

    def idle(self) -> list[Model]:
        """Loaded models that nobody uses and that are not pinned, the first to go first."""
        idle = {
            model.name: model
            for model in self._models
            if model.state is State.READY and not model.in_use and not model.pinned
        }
        ordered = eviction.order(map(self._candidate, idle.values()), self._state.rules.policy)
        return [idle[candidate.model] for candidate in ordered]

    def make_good(self, model: Model, now: float) -> list[Effect]:
        """READY: its load may have turned out larger than its estimate. When that breaks the
        budget, idle loans are called back, then idle models go; when that is not enough, it goes
        itself and comes back with the size it has shown."""
        ledger = self._state.ledger
        going = (State.STOPPING, State.RELEASING)
        coming = sum(self._charge(each) for each in self._models if each.state in going)
        serving = [each for each in self._models if each.state in (State.READY, State.DRAINING)]
        coming += sum(self._loans.on_its_way(each.current.key) for each in serving)
        recallable = sum(self._loans.recallable(each.current.key) for each in serving)
        over = -ledger.free - coming
        if over <= 0:
            return []
        takes = f"{model.current.name} takes {gigabytes(self._charge(model))}"
        effects: list[Effect] = [
            warning(f"{takes}, more than estimated: {gigabytes(over)} over the budget")
        ]
        if recallable >= over:
            self._made_good_for = model.current.key
            return [*effects, *self._loans.recall_idle(over, now)]
        idle = [self._candidate(other) for other in self.idle() if other is not model]
        victims = eviction.make_room(idle, self._state.rules.policy, over - recallable)
        if victims:
            for victim in victims:
                effects += self.evict(self._state.models[victim.model], model, now)
            recalls = self._loans.recall_idle(over, now)
            self._made_good_for = model.current.key if recalls else None
            return [*effects, *recalls]
        effects += self._workers.drain(model, DrainCause.EVICTION, now)
        if not ledger.can_ever_fit(model.size):
            effects += self._refuse_too_large(model)
        return effects

    def keep_to_budget(self, now: float) -> list[Effect]:
        """Loans may have come back short that were called back because a load broke the budget."""
        key = self._made_good_for
        if key is None or any(loan.awaited for loan in self._loans.loans()):
            return []
        self._made_good_for = None
        model = self._state.models[key[0]]
        serves = model.state is State.READY and model.current.key == key
        return self.make_good(model, now) if serves else []

    def unload_idle(self, model: Model, now: float) -> list[Effect]:
        """READY: its time to live is over."""
        said = LogLine(f"{model.current.name} was idle for {model.ttl:g} s: unloaded")
        return [said, *self._workers.drain(model, DrainCause.EVICTION, now)]

    def trim_if_due(self, now: float) -> list[Effect]:
        """The periodic cleanup: no more than `max_loaded`, by policy."""
        if self._cleanup_at is None or self._cleanup_at > now:
            return []
        self._cleanup_at = None
        loaded = sum(model.state in _OCCUPIES - _LEAVING for model in self._models)
        effects: list[Effect] = []
        for model in self.idle()[: max(0, loaded - self._state.rules.max_loaded)]:
            name = model.current.name
            effects.append(LogLine(f"{name} is unloaded: more than memory.max_loaded"))
            effects += self._workers.drain(model, DrainCause.EVICTION, now)
        return effects

    def cut_drain(self, model: Model, now: float) -> list[Effect]:
        """DRAINING, for as long as it may: park what still runs, or end it where a person wants the
        model gone; then stop the worker."""
        error = refusals.cut_off(model)
        if model.current.drain_cause is DrainCause.BY_HAND:
            cut = self._recovery.end_granted(model, error)
        else:
            cut = self._recovery.interrupt(model, error, now, parked=True)
        return [*cut, *self._workers.stop_if_drained(model, now)]

    def load_anew(self, model: Model, cause: DrainCause, now: float) -> list[Effect]:
        """READY: park what runs in it, and have it loaded again; if it is pinned, for nobody."""
        if model.pinned:
            model.preload = PreloadRequest(now, now + self._state.limits.preload)
        effects = self._workers.drain(model, cause, now, seconds=0.0)
        if model.state is State.DRAINING:
            effects += self.cut_drain(model, now)
        return effects

    def _reload_overdue(self, now: float) -> list[Effect]:
        """Those with requests for which there can never be enough memory."""
        effects: list[Effect] = []
        for model in self._out_of_reach.overdue(now):
            said = LogLine(f"{model.current.name} is loaded anew: it needs more than there can be")
            effects += [said, *self.load_anew(model, DrainCause.OUT_OF_REACH, now)]
        if effects:
            self._loans.forget_dead()
            effects += self._out_of_reach.look(now)
        return effects

    def stop_at_once(self, now: float) -> list[Effect]:
        """The second time that somebody asks for the end: nothing is waited for."""
        effects: list[Effect] = []
        for model in self._models:
            if model.state is State.DRAINING:
                effects += self.cut_drain(model, now)
            elif model.state is State.STOPPING:
                effects += self._workers.stop(model, now, kill=True)
        return effects
