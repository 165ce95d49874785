"""What follows from an event: who is granted, what is loaded next, who makes room, who waits.

`Scheduler` decides over all entries at once; `roster` has the steps, `pool` the events.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from supervisor.errors import BulkheadError
from supervisor.scheduler import eviction, refusals
from supervisor.scheduler.effects import Effect, LogLine
from supervisor.scheduler.eviction import Candidate
from supervisor.scheduler.lifecycle import HAS_PROCESS, Event, State
from supervisor.scheduler.model import DrainCause, Entry, Limits, Rules, Spec
from supervisor.scheduler.plan import Demand, Means, Plan, Room, Tenant, make_plan
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.refusals import gigabytes
from supervisor.scheduler.workers import Roster

_LEAVING = frozenset({State.DRAINING, State.STOPPING, State.RELEASING})
_OCCUPIES = HAS_PROCESS | {State.RELEASING}
"""States that count towards `max_loaded`."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A load that waits for other models' generations, and keeps new ones waiting."""

    model: str
    since: float


class Scheduler(Roster):
    """All models' entries and the decisions about them."""

    def __init__(
        self,
        specs: Iterable[Spec],
        *,
        default_model: str = "",
        limits: Limits | None = None,
        rules: Rules | None = None,
        budget: int | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            specs,
            default_model=default_model,
            limits=limits,
            rules=rules,
            budget=budget,
            jitter=jitter,
        )
        self.level = Level.NORMAL
        self._figures = ""
        """Why the level is what it is."""
        self._gate: Gate | None = None
        self._wake: float | None = None
        """When the plan must be made again though nothing has happened."""
        self._cleanup_at: float | None = None

    def _settle(self, now: float) -> list[Effect]:
        """What every event ends with: grants, then loads and the room for them."""
        for entry in self.entries.values():
            if not entry.waiting:
                entry.queued_since = None
            elif entry.queued_since is None and entry.state is not State.READY:
                entry.queued_since = now
        effects = [*self._refuse_impossible(), *self._grant_all(now)]
        held = self._gate is not None
        effects += self._plan(now)
        if held and self._gate is None:
            effects += self._grant_all(now)
        loaded = sum(entry.state in _OCCUPIES for entry in self.entries.values())
        if not 0 < self.rules.max_loaded < loaded or not self.rules.cleanup_interval:
            self._cleanup_at = None
        elif self._cleanup_at is None:
            self._cleanup_at = now + self.rules.cleanup_interval
        return effects

    def _refuse_impossible(self) -> list[Effect]:
        """A size that was learned, or estimated anew, may rule out what others wait for."""
        effects: list[Effect] = []
        for entry in self.entries.values():
            if entry.state is State.COLD and not self.ledger.can_ever_fit(entry.size):
                effects += self._rule_out(entry)
        return effects

    def _rule_out(self, entry: Entry) -> list[Effect]:
        """The model does not fit even alone: nobody waits for it any longer."""
        assert self.ledger.budget is not None
        error = refusals.too_large(entry, self.ledger.budget)
        return [*self._drop_wish(entry, error.message), *self._refuse_waiting(entry, error)]

    def _loading_now(self) -> str | None:
        """The load that keeps generations waiting, if the gate is exclusive and there is one."""
        if self.rules.load_gate == "shared":
            return None
        if self._gate is not None:
            return self._gate.model
        return next(
            (name for name, entry in self.entries.items() if entry.state is State.LOADING), None
        )

    def _grant_all(self, now: float) -> list[Effect]:
        closed = self._loading_now() is not None
        effects: list[Effect] = []
        for entry in self.entries.values():
            if entry.state is State.READY and (entry.waiting or entry.granted):
                effects += self._grant_waiting(entry, now, gate_closed=closed)
            elif entry.state is State.DRAINING and not entry.on_trial:
                effects += self._proceed(entry)  # the other suspects stand trial elsewhere
        return effects

    def _plan(self, now: float) -> list[Effect]:
        """Start the loads that may start, and make room for those that may not."""
        self._wake = None
        gate, self._gate = self._gate, None
        if self.shutting_down or self.level >= Level.HIGH:
            return []
        effects: list[Effect] = []
        while (plan := self._decide(now)).unload:
            # Again: who waits longer may now find room with what goes for somebody else.
            for unload in plan.unload:
                effects += self._evict(self.entries[unload.victim], self.entries[unload.model], now)
        self._wake = plan.wake
        if self.rules.load_gate == "exclusive":
            return [*effects, *self._start_alone(plan.start, gate, now)]
        for name in plan.start:
            effects += self._spawn(self.entries[name], now)
        return effects

    def _decide(self, now: float) -> Plan:
        demands = self._demands()
        if not demands:
            return Plan()
        return make_plan(demands, self._tenants(), self._room(), self.rules, now)

    def _start_alone(self, names: list[str], gate: Gate | None, now: float) -> list[Effect]:
        """Start the first of them, one load at a time, once no other model generates."""
        if not names or any(entry.state is State.LOADING for entry in self.entries.values()):
            return []
        name, others = names[0], [entry for entry in self.entries.values() if entry.granted]
        running = ", ".join(f"{entry.worker} ({len(entry.granted)})" for entry in others)
        since = now if gate is None else gate.since
        if not others:
            return self._spawn(self.entries[name], now)
        if now >= since + self.rules.load_gate_timeout:
            waited = f"waited {now - since:.0f} s for the generations of {running} and goes on"
            return [
                *self._warn(f"the load of {name} {waited}"),
                *self._spawn(self.entries[name], now),
            ]
        self._gate = Gate(name, since)
        if gate is None or gate.model != name:
            return [LogLine(f"the load of {name} waits for the generations of {running}")]
        return []

    def _demands(self) -> list[Demand]:
        demands = []
        for name, entry in self.entries.items():
            cold = entry.state is State.COLD
            if (
                entry.waiting
                and entry.queued_since is not None
                and (cold or entry.state in _LEAVING)
            ):
                means, since = Means.EVICTION if cold else Means.WAIT, entry.queued_since
            elif cold and entry.wish is not None:
                means, since = Means.FREE_ROOM, entry.wish.since
            else:
                continue
            demands.append(Demand(name, entry.size, since, entry.expected_load, means))
        return demands

    def _candidate(self, entry: Entry) -> Candidate:
        return entry.candidate(self.ledger.of(entry.key), self.uses)

    def _safe_until(self, entry: Entry) -> float:
        """End of a loaded model's minimum residency, monotonic seconds."""
        return (entry.loaded_at or 0.0) + self.rules.residency(entry.load_seconds or 0.0)

    def _tenants(self) -> list[Tenant]:
        return [
            Tenant(self._candidate(entry), entry.in_use, self._safe_until(entry))
            for entry in self.entries.values()
            if entry.state is State.READY and not entry.pinned
        ]

    def _room(self) -> Room:
        ledger, slots = self.ledger, self.rules.max_loaded or float("inf")
        leaving = [entry for entry in self.entries.values() if entry.state in _LEAVING]
        fixed = [
            entry
            for entry in self.entries.values()
            if entry.pinned and entry.state in (State.LOADING, State.READY)
        ]
        most = float("inf") if ledger.budget is None else ledger.budget - ledger.stranded
        free_slots = slots - sum(entry.state in _OCCUPIES for entry in self.entries.values())
        return Room(
            free=ledger.free,
            coming=ledger.free + sum(ledger.of(entry.key) for entry in leaving),
            most=most - sum(ledger.of(entry.key) for entry in fixed),
            free_slots=free_slots,
            coming_slots=free_slots + len(leaving),
            most_slots=slots - len(fixed),
        )

    # ── making room ──────────────────────────────────────────────────────────────────────────────

    def _evict(self, victim: Entry, model: Entry, now: float) -> list[Effect]:
        """Unload, or drain, one for another."""
        held = gigabytes(self.ledger.of(victim.key))
        how = f"is drained ({len(victim.granted)} running)" if victim.in_use else "is unloaded"
        needs = f"{gigabytes(model.size)} for {model.spec.name}, {gigabytes(self.ledger.free)} free"
        if model.size <= self.ledger.free and self._room().free_slots < 1:
            needs = f"for {model.spec.name}, memory.max_loaded is {self.rules.max_loaded}"
        said = LogLine(f"{victim.worker} ({held}) {how} to make room: {needs}")
        return [said, *self._drain(victim, DrainCause.EVICTION, self.limits.drain, now)]

    def _idle(self) -> list[Entry]:
        """Loaded models that nobody uses and that are not pinned, the first to go first."""
        idle = {
            name: entry
            for name, entry in self.entries.items()
            if entry.state is State.READY and not entry.in_use and not entry.pinned
        }
        ordered = eviction.order(map(self._candidate, idle.values()), self.rules.policy)
        return [idle[candidate.model] for candidate in ordered]

    def _make_good(self, entry: Entry, now: float) -> list[Effect]:
        """A load has turned out larger than its estimate. When that breaks the budget, idle models
        go; when that is not enough, the new one goes and comes back with the size it has shown."""
        if self.ledger.free >= 0:
            return []
        going = (State.STOPPING, State.RELEASING)
        coming = sum(self.ledger.of(e.key) for e in self.entries.values() if e.state in going)
        over = -self.ledger.free - coming
        if over <= 0:
            return []
        shown = f"{entry.worker} takes {gigabytes(self.ledger.of(entry.key))}, more than estimated"
        idle = [self._candidate(other) for other in self._idle() if other is not entry]
        victims = eviction.make_room(idle, self.rules.policy, over)
        effects = self._warn(f"{shown}: {gigabytes(over)} over the budget")
        if victims:
            for victim in victims:
                effects += self._evict(self.entries[victim.model], entry, now)
            return effects
        effects += self._drain(entry, DrainCause.EVICTION, self.limits.drain, now)
        if not self.ledger.can_ever_fit(entry.size):
            effects += self._rule_out(entry)
        return effects

    def _clean_up(self, level: Level, now: float) -> list[Effect]:
        """Under pressure: leave `keep` idle models. Those just loaded are spared at first, or two
        models used in turn would be loaded in turn."""
        pinned = sum(
            entry.pinned and entry.state is State.READY and not entry.in_use
            for entry in self.entries.values()
        )
        idle = self._idle()
        effects: list[Effect] = []
        for entry in idle[: max(0, len(idle) - max(0, self.rules.keep - pinned))]:
            if level >= Level.HIGH or self._safe_until(entry) <= now:
                effects.append(LogLine(f"{entry.worker} is idle and unloaded: {self._figures}"))
                effects += self._drain(entry, DrainCause.EVICTION, self.limits.drain, now)
        return effects

    def _trim(self, now: float) -> list[Effect]:
        """The periodic cleanup: no more than `max_loaded`, by policy."""
        loaded = sum(entry.state in _OCCUPIES - _LEAVING for entry in self.entries.values())
        effects: list[Effect] = []
        for entry in self._idle()[: max(0, loaded - self.rules.max_loaded)]:
            effects.append(LogLine(f"{entry.worker} is unloaded: more than memory.max_loaded"))
            effects += self._drain(entry, DrainCause.EVICTION, self.limits.drain, now)
        return effects

    def _emergency(self, now: float) -> list[Effect]:
        """The machine is out of memory: every model goes, pinned ones too. Who waits goes on
        waiting; who runs has a moment to end."""
        effects: list[Effect] = []
        seconds = min(self.limits.drain, self.limits.emergency_drain)
        for entry in self.entries.values():
            if entry.state is State.LOADING:
                effects += self._abort_load(entry, now)
            elif entry.state is State.READY:
                effects += self._drain(entry, DrainCause.EMERGENCY, seconds, now)
            elif entry.state is State.DRAINING and entry.deadline is not None:
                if entry.drain_cause is not DrainCause.SHUTDOWN:
                    entry.drain_cause = DrainCause.EMERGENCY
                entry.deadline = min(entry.deadline, now + seconds)
        return effects

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def _overdue(self, entry: Entry, now: float) -> list[Effect]:
        """The current state has lasted as long as it may."""
        if entry.state is State.LOADING:
            error = refusals.stalled(entry, self.limits.load_stall)
            refused = self._refuse_load(entry, error)
            self._move(entry, Event.LOAD_STALLED)
            entry.reason = f"the load made no progress for {self.limits.load_stall:g} s"
            return [*refused, *self._stop(entry, now, kill=True, stacks=True)]
        if entry.state is State.DRAINING:
            return self._cut(entry, now)
        if entry.state is State.CRASHED:
            entry.deadline = None
            self._move(entry, Event.BACKOFF_OVER)
            return [LogLine(f"{entry.spec.name} may be loaded again")]
        if entry.state is State.RELEASING:
            held = gigabytes(self.ledger.of(entry.key))
            self.ledger.strand(entry.key)
            return [*self._warn(f"{entry.worker} left {held} behind"), *self._released(entry, now)]
        # STOPPING: it ignored SIGTERM.
        return self._stop(entry, now, kill=True, stacks=True)

    def _hold_over(self, entry: Entry, now: float) -> BulkheadError:
        """What a request is told that has waited as long as it wanted: what kept it waiting."""
        if entry.state is State.READY:
            load = self._loading_now()
            return refusals.gate_closed(entry, load) if load else refusals.no_place(entry, now)
        if entry.state is not State.LOADING and self.level >= Level.HIGH:
            return refusals.no_new_loads(entry, self._figures)
        if entry.state is State.COLD:
            others = [other for other in self.entries.values() if other is not entry]
            return refusals.no_room(entry, others, self.ledger.free, self.ledger.stranded)
        return refusals.still_loading(entry, now)
