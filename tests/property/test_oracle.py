"""The random walk and its oracle can fail: a wrong function breaks each promise, and is found.

Every bug replaces one named function or method of the scheduler; without it the same walk finds
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import pytest

from supervisor.errors import BulkheadError
from supervisor.scheduler import overcharge, places, plan, recovery, requests
from supervisor.scheduler.blame import BlameRecords
from supervisor.scheduler.breaker import Breaker
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect, Lend, Refuse
from supervisor.scheduler.eviction import Candidate
from supervisor.scheduler.lease import Lease
from supervisor.scheduler.ledger import Key
from supervisor.scheduler.lifecycle import Event, State
from supervisor.scheduler.loans import Loans
from supervisor.scheduler.model import DrainCause, LearnedLimit, Model, Rules
from supervisor.scheduler.plan import Capacity, Demand, Loan, Need, Plan, Tenant, _Planning
from supervisor.scheduler.planner import HeldLoad, Planner
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.recovery import Recovery
from supervisor.scheduler.relief import Relief
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.workers import Workers
from tests.property.recoveries import Violation
from tests.property.scheduling import walk

STEPS = 2_500
Wrong = TypeVar("Wrong", bound=Callable[..., object])

decide_death = Recovery.decide_death
died = Breaker.died
pass_place = Recovery.pass_place
suspect = Recovery._suspect
add_death = BlameRecords.add_death
convict = Recovery._convict
drain = Workers.drain
enqueue = Requests.enqueue
grant_all = Planner._grant_all
interrupt = Recovery.interrupt
open_at = plan._open_at
open_needs = Loans.open_needs
demands = Planner._demands
stop = Workers.stop
take_back = Recovery.take_back
try_suspects = Recovery.try_suspects


class Bug(NamedTuple):
    promise: str
    owner: type | ModuleType
    name: str
    """What is replaced in `owner`."""
    wrong: Any
    seed: int
    violation: str
    """A regular expression for all that the oracle says."""


BUGS: list[Bug] = []


def bug(
    promise: str, owner: type | ModuleType, name: str, seed: int, violation: str
) -> Callable[[Wrong], Wrong]:
    """The function replaces `name` of `owner`. The seed is the first that finds it by this
    violation."""

    def add(wrong: Wrong) -> Wrong:
        BUGS.append(Bug(promise, owner, name, wrong, seed, violation))
        return wrong

    return add


# ── what is spawned ──────────────────────────────────────────────────────────────────────────────


@bug("no spawn beyond the budget", Workers, "reap", 6, r"\w is spawned: \d+ of \d+ charged")
def release_unseen_memory(self: Workers, model: Model, now: float) -> bool:
    model.move(Event.EXITED)
    self._state.ledger.release(model.current.key)
    return True


@bug("no spawn beyond max_loaded", Planner, "_occupied", 0, r"\d loaded, more than max_loaded")
def count_no_loaded_model(self: Planner) -> int:
    return 0


@bug("no spawn under pressure", Planner, "_demands", 1, "a spawn at pressure HIGH")
def load_at_any_level(self: Planner) -> list[Demand]:
    level, self._state.level = self._state.level, Level.NORMAL
    found = demands(self)
    self._state.level = level
    return found


@bug("no spawn at a closed gate", Planner, "_start_alone", 1, r"\w loads through a gate with .*")
def load_at_once(
    self: Planner, names: list[str], held: HeldLoad | None, now: float
) -> list[Effect]:
    return [each for name in names for each in self._workers.spawn(self._state.models[name], now)]


@bug("nothing raises", Capacity, "fits_now", 3, r"OverBudget: .*")
def fits_always(self: Capacity, size: int) -> bool:
    return True


# ── who waits, and how long ──────────────────────────────────────────────────────────────────────


@bug("nobody waits past the hold", Requests, "enqueue", 0, "a hold that nobody watches")
def hold_for_ever(self: Requests, model: Model, lease: Lease) -> None:
    lease.deadline += 1e9
    enqueue(self, model, lease)


@bug("what is free is loaded", Planner, "_make_plan", 0, r"\w fits and is not loaded")
def plan_nothing(self: Planner, now: float) -> Plan:
    return Plan()


@bug("idle models make room", plan, "make_room", 0, r"\w waits .* while idle models are kept: .*")
def unload_no_idle_model(
    candidates: list[Candidate], policy: str, need: float, slots: int = 0
) -> list[Candidate]:
    return []


@bug(
    "models that are busy for too long make room",
    plan,
    "_open_at",
    0,
    r"\w waits .* while busy ones are kept for ever: .*",
)
def never_take_a_busy_model(demand: Demand, tenant: Tenant, rules: Rules) -> float:
    return float("inf") if tenant.busy else open_at(demand, tenant, rules)


@bug("no more wait than may", Requests, "make_place", 0, r"\w: \d+ run, wait or return")
def admit_beyond_capacity(self: Requests, model: Model, now: float) -> list[Effect]:
    return []


# ── who is stopped, taken, or granted ────────────────────────────────────────────────────────────


@bug(
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


@bug("a drain has its time", Workers, "drain", 0, r"a request on \w is cut too early: .*")
def drain_in_no_time(
    self: Workers, model: Model, cause: DrainCause, now: float, *, seconds: float | None = None
) -> list[Effect]:
    return drain(self, model, cause, now, seconds=0.1)


@bug("a worker is killed for its own fault alone", Workers, "stop", 0, r"\w is killed without .*")
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


@bug(
    "no busy worker is taken before its time",
    Planner,
    "_tenants",
    0,
    r"busy \w is drained before anybody waited long enough",
)
def evict_busy_as_idle(self: Planner) -> list[Tenant]:
    return tenants(self, pinned=False, busy=False)


@bug("no pinned worker is taken", Planner, "_tenants", 6, r"pinned \w is evicted by .*")
def evict_pinned(self: Planner) -> list[Tenant]:
    return tenants(self, pinned=True, busy=True)


@bug("a load has its residency", Planner, "safe_until", 0, r"\w goes within its residency")
def evict_just_loaded(self: Planner, model: Model) -> float:
    return 0.0


@bug("no draining worker is granted", Planner, "_grant_all", 1, r"\w is granted while it drains")
def grant_while_draining(self: Planner, now: float) -> list[Effect]:
    effects = grant_all(self, now)
    for model in self._models:
        if model.state is State.DRAINING:
            effects += self._requests.grant_waiting(model)
    return effects


# ── leases ───────────────────────────────────────────────────────────────────────────────────────


@bug("a lease that has ended is gone", Requests, "refuse", 0, r"\w: \[.+\] wait")
def refuse_and_keep(self: Requests, model: Model, lease: Lease, error: BulkheadError) -> Effect:
    return Refuse(lease.id, error)


@bug("no lease is lost", Recovery, "interrupt", 0, r"\w: \[.*\] granted")
def lose_one_of_the_interrupted(
    self: Recovery, model: Model, error: BulkheadError, now: float, *, parked: bool = False
) -> list[Effect]:
    if len(model.granted) > 1:
        lease, _ = model.granted.popitem()
        del self._state.leases[lease]
    return interrupt(self, model, error, now, parked=parked)


@bug("a learned limit holds", Model, "concurrency", 1, "more than may run")
def forget_the_learned_limit(self: Model) -> int:
    return self.spec.concurrency


# ── after a death ────────────────────────────────────────────────────────────────────────────────


@bug("all come back together", Recovery, "_suspect", 8, r"\w is ready and those .* wait")
def suspect_everybody(
    self: Recovery, model: Model, lease: Lease, now: float, *, pointed: bool
) -> list[Effect]:
    return suspect(self, model, lease, now, pointed=True)


@bug(
    "nobody who is back waits for suspects", Recovery, "try_suspects", 3, r"\d+ is tried before .*"
)
def try_suspects_first(self: Recovery, model: Model, now: float) -> list[Effect]:
    return [self._try(model, model.suspects[0])]


@bug("one at a time is tried", Recovery, "try_suspects", 5, r"\d+ is on probation beside .*")
def try_all_suspects(self: Recovery, model: Model, now: float) -> list[Effect]:
    effects = try_suspects(self, model, now)
    if model.suspects and model.granted and self._requests.free_places(model):
        effects.append(self._try(model, model.suspects[0]))
    return effects


@bug("who had hardly begun is tried", recovery, "hardly_begun", 67, r"\d+ is tried before .*")
def point_at_nobody(inside: list[Lease]) -> list[Lease]:
    return []


@bug("the accused is tried first", BlameRecords, "deaths", 3, r"\d+ is granted before \d+, .*")
def accuse_nobody(self: BlameRecords, digest: bytes, now: float) -> int:
    return 0


@bug("no hold runs in a recovery", Model, "hold_ends", 0, r"\d+ gives up with .*")
def hold_runs_always(self: Model, lease: Lease) -> float | None:
    return lease.deadline


@bug("a hold runs where there is no room", Model, "hold_ends", 0, "a hold that nobody watches")
def hold_runs_never(self: Model, lease: Lease) -> float | None:
    return lease.deadline if lease.error is None else None


@bug("a death from outside is nobody's", Recovery, "decide_death", 5, r"\d+ is asked to tell .*")
def suspect_after_any_death(self: Recovery, model: Model, now: float) -> list[Effect]:
    if model.undecided is not None and model.undecided.fault is not None:
        model.undecided.fault = Fault.REQUEST
    return decide_death(self, model, now)


@bug("who has passed is cleared", Recovery, "pass_place", 9, r"\w is ready and \[.+\] wait")
def nobody_passes(self: Recovery, model: Model, lease: Lease, now: float) -> list[Effect]:
    return []


@bug("who is acquitted was one too many", Recovery, "pass_place", 3, r"\w may run \d+ and .*")
def acquit_and_forget(self: Recovery, model: Model, lease: Lease, now: float) -> list[Effect]:
    lease.accused_among = frozenset()
    return pass_place(self, model, lease, now)


@bug("a crowd that dies again is too large", Recovery, "_presume", 3, r"\w may run \d+ and .*")
def presume_nothing(
    self: Recovery, model: Model, limit: LearnedLimit, crowd: frozenset[int], why: str
) -> list[Effect]:
    return []


@bug(
    "who died as the only one on trial, then alone, is quarantined",
    Recovery,
    "_count_death",
    13,
    r"\{.+\} are quarantined and nobody says so",
)
def count_no_death(
    self: Recovery, model: Model, lease: Lease, inside: list[Lease], now: float
) -> list[Effect]:
    return []


@bug("the last of them is alone", BlameRecords, "add_death", 0, r".* is quarantined without cause")
def count_every_death_as_alone(
    self: BlameRecords, digest: bytes, now: float, *, alone: bool
) -> int:
    return add_death(self, digest, now, alone=True) + add_death(self, digest, now, alone=True)


@bug(
    "a model is proven anew after a quarantine", Recovery, "_convict", 6, r"\d+ is asked to tell .*"
)
def stay_proven(self: Recovery, model: Model, lease: Lease) -> list[Effect]:
    effects = convict(self, model, lease)
    model.proven = True
    return effects


@bug("one of a crowd is found first", Breaker, "died", 2, r"\w is left alone")
def allow_no_crowd(self: Breaker, now: float, *, crowd: bool = False) -> float | None:
    return died(self, now)


@bug(
    "who is quarantined is refused",
    BlameRecords,
    "is_quarantined",
    3,
    r"\d+ is quarantined and admitted",
)
def admit_quarantined(self: BlameRecords, digest: bytes, now: float) -> bool:
    return False


@bug("so many deaths are forgiven and no more", Recovery, "_suspect", 3, r"\d+ never .* up")
def forgive_every_death(
    self: Recovery, model: Model, lease: Lease, now: float, *, pointed: bool
) -> list[Effect]:
    unproductive, lease.unproductive = lease.unproductive, 0
    effects = suspect(self, model, lease, now, pointed=pointed)
    lease.unproductive = unproductive
    return effects


@bug("what has a token is not replayed", Recovery, "take_back", 5, r"\d+ never gives up")
def forget_what_was_sent(
    self: Recovery, model: Model, lease: Lease, position: int, now: float, hold: float = 0
) -> list[Effect]:
    return take_back(self, model, lease, 0, now, hold)


@bug(
    "a model that keeps dying is left alone",
    Breaker,
    "died",
    0,
    r"\w keeps dying and is not left alone",
)
def never_open(self: Breaker, now: float, *, crowd: bool = False) -> float | None:
    return None


@bug("the last word on a time to live counts", Model, "note_keep_alive", 1, r"\w: kept .+ s")
def keep_the_first_word(self: Model, lease: Lease) -> None:
    if self.keep_alive is None:
        self.keep_alive = lease.keep_alive


@bug("a time to live ends", Model, "ttl", 0, r"\w outlives its ttl")
def live_on(self: Model) -> float | None:
    return None


# ── loans ────────────────────────────────────────────────────────────────────────────────────────


@bug("no loan beyond the budget", Capacity, "free_for", 0, r"OverBudget: .*")
def lend_what_is_not_free(self: Capacity, need: Need) -> float:
    return 1e12


@bug("a loan is charged before it is told", Loans, "lend", 0, r"\w: charge is wrong")
def lend_without_a_charge(self: Loans, key: Key, size: int) -> Effect:
    self._say(key, replace(self._said[key], least=0, most=0))
    return Lend(*key, size)


@bug("idle loans are called back", _Planning, "_idle_loans", 0, r"\w \w+ .*\d+ of loans are idle")
def see_no_idle_loan(self: _Planning, counts: Callable[[Loan], bool]) -> int:
    return 0


@bug("one thing is asked at a time", Loans, "recallable", 1, "AssertionError: .*")
def ask_again_at_once(self: Loans, key: Key) -> int:
    said = self._said.get(key)
    return 0 if said is None else min(said.idle, self._state.ledger.lent(key))


@bug("nobody waits for an answer for ever", Loans, "expire", 0, "a tick leaves what is due")
def wait_for_an_answer_for_ever(self: Loans, now: float) -> list[Effect]:
    return []


@bug(
    "no busy model is evicted for another's cache",
    _Planning,
    "_open_to",
    6,
    r"busy \w is drained before anybody waited long enough",
)
def evict_busy_for_a_need(self: _Planning, need: Need) -> list[Tenant]:
    return [each for each in self._left if each.candidate.model != need.worker[0]]


@bug(
    "the oldest request gets the youngest's memory",
    _Planning,
    "_park_for",
    0,
    r"\w waits and younger \w is not parked",
)
def park_nobody(self: _Planning, need: Need, short: int) -> None:
    pass


@bug("nobody older is parked", _Planning, "_park_for", 0, r"\w parks for nobody older")
def park_an_older_one(self: _Planning, need: Need, short: int) -> None:
    live = [loan for loan in self._loans if loan.parkable]
    if live:
        loan = min(live, key=lambda each: each.youngest)
        self._plan.park = (loan.worker, min(short, loan.parkable))


@bug("the youngest of all is parked", _Planning, "_park_for", 12, r"\w parks before younger \w")
def park_another_than_the_youngest(self: _Planning, need: Need, short: int) -> None:
    live = [loan for loan in self._loans if loan.parkable and loan.youngest > need.since]
    if live:
        loan = min(live, key=lambda each: each.youngest)
        self._plan.park = (loan.worker, min(short, loan.parkable))


# ── workers above their charge, and pressure ─────────────────────────────────────────────────────


@bug("who holds what it may is let alone", overcharge, "is_over", 0, "shrinks without need")
def everybody_has_outgrown(footprint: int, charge: int) -> bool:
    return True


@bug("no restart in a cycle", Model, "may_restart_for_excess", 10, r"\w is restarted in a cycle")
def restart_at_once(self: Model, now: float) -> bool:
    return True


@bug(
    "pressure that did not help spares for a while",
    Relief,
    "_spares",
    13,
    r"\w is unloaded in vain .*",
)
def spare_nobody(self: Relief, model: Model, now: float) -> bool:
    return False


# ── requests with several choices ────────────────────────────────────────────────────────────────


@bug("choices leave their places", Model, "in_flight", 0, r"\w: \d+ in flight")
def count_requests_alone(self: Model) -> int:
    return len(self.granted)


@bug("no more choices than places", requests, "_limit", 0, "more than may run")
def limit_nothing(model: Model) -> int:
    return 0


@bug("no more than it can use", places, "shares", 0, r"\d+ places for one that wants \d+")
def give_all_there_is(limit: int, wanted: Sequence[int]) -> list[int]:
    return [limit or 8 for _ in wanted]


@bug("what is free is lent ahead of need", Loans, "open_needs", 0, r"\d+ are free and \w waits .*")
def lend_only_what_is_needed(self: Loans) -> list[Need]:
    return [need for need in open_needs(self) if need.least]


@cache
def walk_unbroken(seed: int) -> tuple[int, Violation | None]:
    return walk(seed, STEPS)


@pytest.mark.parametrize("planted", BUGS, ids=[each.promise for each in BUGS])
def test_a_broken_promise_is_found(planted: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    assert walk_unbroken(planted.seed) == (STEPS, None)
    replaced = vars(planted.owner)[planted.name]
    wrong = property(planted.wrong) if isinstance(replaced, property) else planted.wrong
    monkeypatch.setattr(planted.owner, planted.name, wrong)
    _, violation = walk(planted.seed, STEPS)
    assert re.fullmatch(planted.violation, str(violation))
