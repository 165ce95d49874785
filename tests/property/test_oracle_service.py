"""The oracle finds who is served, kept waiting, stopped or taken against the rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from supervisor.errors import BulkheadError
from supervisor.scheduler import places, plan, requests
from supervisor.scheduler.effects import Effect, Refuse
from supervisor.scheduler.eviction import Candidate
from supervisor.scheduler.lease import Lease
from supervisor.scheduler.lifecycle import Event, State
from supervisor.scheduler.model import DrainCause, Model, Rules
from supervisor.scheduler.plan import Capacity, Demand, Plan, Tenant
from supervisor.scheduler.planner import HeldLoad, Planner
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.recovery import Recovery
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.workers import Workers
from tests.property.planted import Bug, Bugs, promise, violation_of

bugs = Bugs()

drain = Workers.drain
enqueue = Requests.enqueue
grant_all = Planner._grant_all
interrupt = Recovery.interrupt
open_at = plan._open_at
demands = Planner._demands
stop = Workers.stop


# ── what is spawned ──────────────────────────────────────────────────────────────────────────────


@bugs.plant("no spawn beyond the budget", Workers, "reap", 11, r"\w is spawned: \d+ of \d+ charged")
def release_unseen_memory(self: Workers, model: Model, now: float) -> bool:
    model.move(Event.EXITED)
    self._state.ledger.release(model.current.key)
    return True


@bugs.plant(
    "no spawn beyond max_loaded", Planner, "_occupied", 0, r"\d loaded, more than max_loaded"
)
def count_no_loaded_model(self: Planner) -> int:
    return 0


@bugs.plant("no spawn under pressure", Planner, "_demands", 3, "a spawn at pressure HIGH")
def load_at_any_level(self: Planner) -> list[Demand]:
    level, self._state.level = self._state.level, Level.NORMAL
    found = demands(self)
    self._state.level = level
    return found


@bugs.plant(
    "no spawn at a closed gate", Planner, "_start_alone", 0, r"\w loads through a gate with .*"
)
def load_at_once(
    self: Planner, names: list[str], held: HeldLoad | None, now: float
) -> list[Effect]:
    return [each for name in names for each in self._workers.spawn(self._state.models[name], now)]


@bugs.plant("nothing raises", Capacity, "fits_now", 3, r"OverBudget: .*")
def fits_always(self: Capacity, size: int) -> bool:
    return True


# ── who waits, and how long ──────────────────────────────────────────────────────────────────────


@bugs.plant("nobody waits past the hold", Requests, "enqueue", 0, "a hold that nobody watches")
def hold_for_ever(self: Requests, model: Model, lease: Lease) -> None:
    lease.deadline += 1e9
    enqueue(self, model, lease)


@bugs.plant("what is free is loaded", Planner, "_make_plan", 0, r"\w fits and is not loaded")
def plan_nothing(self: Planner, now: float) -> Plan:
    return Plan()


@bugs.plant(
    "idle models make room", plan, "make_room", 0, r"\w waits .* while idle models are kept: .*"
)
def unload_no_idle_model(
    candidates: list[Candidate], policy: str, need: float, slots: int = 0
) -> list[Candidate]:
    return []


@bugs.plant(
    "models that are busy for too long make room",
    plan,
    "_open_at",
    0,
    r"\w waits .* while busy ones are kept for ever: .*",
)
def never_take_a_busy_model(demand: Demand, tenant: Tenant, rules: Rules) -> float:
    return float("inf") if tenant.busy else open_at(demand, tenant, rules)


@bugs.plant("no more wait than may", Requests, "make_place", 2, r"\w: \d+ run, wait or return")
def admit_beyond_capacity(self: Requests, model: Model, now: float) -> list[Effect]:
    return []


# ── who is stopped, taken, or granted ────────────────────────────────────────────────────────────


@bugs.plant(
    "no busy worker is stopped",
    Workers,
    "stop_if_drained",
    0,
    r"\w is stopped with \[.+\] running",
)
def stop_a_busy_worker(self: Workers, model: Model, now: float) -> list[Effect]:
    if model.state is not State.DRAINING:
        return []
    model.move(Event.DRAINED)
    model.current.after_exit = Event.RELEASED
    return self.stop(model, now)


@bugs.plant("a drain has its time", Workers, "drain", 0, r"a request on \w is cut too early: .*")
def drain_in_no_time(
    self: Workers, model: Model, cause: DrainCause, now: float, *, seconds: float | None = None
) -> list[Effect]:
    return drain(self, model, cause, now, seconds=0.1)


@bugs.plant(
    "a worker is killed for its own fault alone", Workers, "stop", 0, r"\w is killed without .*"
)
def kill_at_once(
    self: Workers, model: Model, now: float, *, kill: bool = False, stacks: bool = False
) -> list[Effect]:
    return stop(self, model, now, kill=True, stacks=stacks)


def tenants(self: Planner, *, pinned: bool, busy: bool) -> list[Tenant]:
    return [
        Tenant(self._candidate(model), busy and model.in_use, self.safe_until(model))
        for model in self._models
        if model.state is State.READY and (pinned or not model.pinned)
    ]


@bugs.plant(
    "no busy worker is taken before its time",
    Planner,
    "_tenants",
    0,
    r"busy \w is drained before anybody waited long enough",
)
def evict_busy_as_idle(self: Planner) -> list[Tenant]:
    return tenants(self, pinned=False, busy=False)


@bugs.plant("no pinned worker is taken", Planner, "_tenants", 9, r"pinned \w is evicted by .*")
def evict_pinned(self: Planner) -> list[Tenant]:
    return tenants(self, pinned=True, busy=True)


@bugs.plant("a load has its residency", Planner, "safe_until", 0, r"\w goes within its residency")
def evict_just_loaded(self: Planner, model: Model) -> float:
    return 0.0


@bugs.plant(
    "no draining worker is granted", Planner, "_grant_all", 0, r"\w is granted while it drains"
)
def grant_while_draining(self: Planner, now: float) -> list[Effect]:
    effects = grant_all(self, now)
    for model in self._models:
        if model.state is State.DRAINING:
            effects += self._requests.grant_waiting(model)
    return effects


@bugs.plant("the last word on a time to live counts", Model, "note_keep_alive", 0, r"\w: kept .+ s")
def keep_the_first_word(self: Model, lease: Lease) -> None:
    if self.keep_alive is None:
        self.keep_alive = lease.keep_alive


@bugs.plant("a time to live ends", Model, "ttl", 2, r"\w outlives its ttl")
def live_on(self: Model) -> float | None:
    return None


# ── leases ───────────────────────────────────────────────────────────────────────────────────────


@bugs.plant("a lease that has ended is gone", Requests, "refuse", 0, r"\w: \[.+\] wait")
def refuse_and_keep(self: Requests, model: Model, lease: Lease, error: BulkheadError) -> Effect:
    return Refuse(lease.id, error)


@bugs.plant("no lease is lost", Recovery, "interrupt", 0, r"\w: \[.*\] granted")
def lose_one_of_the_interrupted(
    self: Recovery, model: Model, error: BulkheadError, now: float, *, parked: bool = False
) -> list[Effect]:
    if len(model.granted) > 1:
        lease, _ = model.granted.popitem()
        del self._state.leases[lease]
    return interrupt(self, model, error, now, parked=parked)


@bugs.plant("a learned limit holds", Model, "concurrency", 0, "more than may run")
def forget_the_learned_limit(self: Model) -> int:
    return self.spec.concurrency


# ── requests with several choices ────────────────────────────────────────────────────────────────


@bugs.plant("choices leave their places", Model, "in_flight", 0, r"\w: \d+ in flight")
def count_requests_alone(self: Model) -> int:
    return len(self.granted)


@bugs.plant("no more choices than places", requests, "_limit", 0, "more than may run")
def limit_nothing(model: Model) -> int:
    return 0


@bugs.plant("no more than it can use", places, "shares", 0, r"\d+ places for one that wants \d+")
def give_all_there_is(limit: int, wanted: Sequence[int]) -> list[int]:
    return [limit or 8 for _ in wanted]


@pytest.mark.parametrize("planted", bugs, ids=promise)
def test_a_broken_promise_is_found(planted: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(planted.violation, violation_of(planted, monkeypatch))
