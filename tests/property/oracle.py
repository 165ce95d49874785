"""What a world knows of the scheduler that it drives, by its own accounts, and what it checks.

`Books` keeps charges, queues, deadlines and drains from the effects and from what the world did
itself, and raises `Violation` when the scheduler does what it must not, or not what it must:

* nothing is spawned beyond the budget, `max_loaded`, the pressure level, or a closed gate;
* nobody waits past the hold, and who is first in the queue of models is served as soon as what is
  free, idle, or busy for too long suffices;
* no busy worker is stopped but through a drain that had its time, or for its own fault;
* what a death interrupts goes on, unless it must not (`tests.property.recoveries`);
* no worker that drains, stops or is pinned away is granted or taken;
* every lease ends, once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from supervisor.errors import BulkheadError
from supervisor.scheduler.effects import (
    Effect,
    EndLease,
    Grant,
    Interrupt,
    Lend,
    LimitSequences,
    Loaded,
    LogLine,
    QuarantineRequest,
    Recall,
    Refuse,
    RememberLimit,
    SetPlaces,
    Shrink,
    Spawn,
    Stop,
)
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import LearnedLimit, Limits, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.recovery import RETURN_SECONDS
from tests.property.lending import Borrower, check_park
from tests.property.recoveries import DeathAccounts, Request, Violation, check

__all__ = ["GB", "Books", "Dead", "Process", "Request", "Violation", "check"]

GB = 10**9
LEAVING = (State.DRAINING, State.STOPPING, State.RELEASING)
HOLD_CODES = ("insufficient_memory_now", "memory_pressure", "queue_full", "model_loading")
_BACK_BYTES = 256 * 10**6
_EPSILON = 1e-6


@dataclass
class Process:
    """One incarnation as the machine has it."""

    model: str
    generation: int
    charge: int
    started_at: float
    phase: str = "loading"
    """loading, ready, stopped (told to, or dying)"""
    at_fault: bool = False
    asked: bool = False
    """To end: its end is no death."""
    by_hand: bool = False
    """A person wants it gone, and what runs in it with it."""
    was_by_hand: bool = False
    """Or a person wanted that, and an emergency came, which may have been quicker."""
    emergency: bool = False
    """It has to go, whoever wants it."""
    ready_at: float = 0.0
    load_seconds: float = 0.0
    draining_since: float | None = None
    killed: bool = False
    idle_since: float = 0.0
    """When it was last asked for or left, or became ready."""
    loan: Borrower = field(default_factory=Borrower)
    footprint: int = 0
    breaks_budget: bool = False
    """Its load was larger than was thought, and loans are called back for it."""
    outgrown: bool = False
    """It holds more than it is charged, and goes for that."""

    @property
    def is_over(self) -> bool:
        return self.footprint > 1.05 * self.charge + 256 * 10**6


@dataclass
class Dead:
    """Memory that a dead process has not given back, and what the world must be charged for it."""

    whole: int
    held: int
    since: float


@dataclass
class Model:
    """The world's own books on one model."""

    spec: Spec
    learned: int | None = None
    load_seconds: float | None = None
    queued_since: float | None = None
    roomless_since: float | None = None
    """Since when it is waited for and not loaded."""
    pinned: bool = False
    uses: int = 0
    preload_until: float | None = None
    alone_until: float | None = None
    """Until when it is not loaded because it keeps dying."""
    most: int | None = None
    """Requests at once, after it ran out of memory."""
    keep_alive: float | None = None
    """What the last request that was served said of it, until the model was unloaded."""
    measured: int | None = None
    excess: int = 0
    """What it was seen to hold beyond its charge."""
    restarted_at: float | None = None
    pressed_at: float | None = None
    """When an emergency unloaded it, and nothing was better for it."""

    def learn(self, size: int, budget: int | None) -> None:
        """What a load took, and how much of its headroom the budget leaves beside."""
        left = float("inf") if budget is None else max(0, budget - size)
        self.excess = int(min(self.excess, left))
        self.measured = size
        self.learned = size + int(min(self.spec.headroom_bytes, left - self.excess))

    def outgrow(self, more: int, budget: int | None) -> None:
        """Its worker held so much more than its charge; the next one is charged no more for that
        than there is beside what a load takes and the room for requests."""
        if self.measured is None or self.learned is None or self.spec.memory_bytes is not None:
            return
        most = float("inf") if budget is None else budget - self.learned
        self.excess = int(max(self.excess, min(self.excess + more, most)))
        self.learn(self.measured, budget)

    @property
    def limit(self) -> int:
        """Requests at once; 0 = any number."""
        return self.most or self.spec.concurrency

    @property
    def ttl(self) -> float | None:
        """Seconds idle before it goes; None = it stays."""
        if self.keep_alive is None:
            return self.spec.ttl or None
        return self.keep_alive if self.keep_alive >= 0 else None

    def served(self, request: Request) -> None:
        """What the request says of the model's time to live counts from now on."""
        if request.keep_alive is not None:
            self.keep_alive, request.keep_alive = request.keep_alive, None

    @property
    def size(self) -> int:
        if self.spec.memory_bytes is not None:
            return self.spec.memory_bytes
        known = self.spec.estimate_bytes if self.learned is None else self.learned
        return known + self.excess

    @property
    def expected_load(self) -> float:
        return self.load_seconds if self.load_seconds is not None else 2.0 + self.size / 2e9


@dataclass
class Books:
    """The accounts of one world; `step` takes every event's effects."""

    specs: list[Spec]
    limits: Limits
    rules: Rules
    budget: int | None
    default_model: str = ""
    calm: bool = False
    """Nobody dies but of poison."""
    now: float = 100.0
    requests: dict[int, Request] = field(default_factory=dict)
    """Those that are open."""
    processes: dict[str, Process] = field(default_factory=dict)
    dead: dict[tuple[str, int], Dead] = field(default_factory=dict)
    level: Level = Level.NORMAL
    eased: bool = False
    shutdowns: int = 0
    gate_since: float | None = None
    doing: str = ""
    asked: int = 0
    """Leases that were handed out."""
    pressed: list[str] = field(default_factory=list)
    """Whom an emergency has unloaded last."""
    new_batch: bool = True
    pressed_at: float = 0.0
    late_readings: int = 0
    """Since then, that came so late that the pressure should have fallen."""

    def __post_init__(self) -> None:
        self.pool = Pool(
            self.specs,
            default_model=self.default_model,
            limits=self.limits,
            rules=self.rules,
            budget=self.budget,
            jitter=random.Random(0).random,
        )
        self.deaths = DeathAccounts(
            self.rules, self.requests, [s.name for s in self.specs], calm=self.calm
        )
        self.models = {spec.name: Model(spec, pinned=spec.pin) for spec in self.specs}
        self.last_state = dict.fromkeys(self.models, State.COLD)
        self.generation = dict.fromkeys(self.models, 0)

    # ── books ────────────────────────────────────────────────────────────────────────────────────

    def open_of(self, model: str, status: str) -> list[int]:
        return [i for i, r in self.requests.items() if r.model == model and r.status == status]

    def taken(self, model: str) -> int:
        """Places on its worker."""
        return sum(self.requests[lease].held for lease in self.open_of(model, "granted"))

    def charged(self) -> int:
        """What must be counted against the budget: the living by their charge, the dead by what
        they really hold (but for what passes as noise)."""
        living = sum(process.charge for process in self.processes.values())
        held = sum(dead.held for dead in self.dead.values())
        noise = sum(max(_BACK_BYTES, dead.whole // 50) for dead in self.dead.values())
        return living + max(0, held - noise)

    def safe_until(self, process: Process) -> float:
        residency = self.rules.min_residency
        if residency is None:
            residency = min(60.0, 2 * process.load_seconds)
        return process.ready_at + residency

    def patience(self, waiter: Model, victim: Model) -> float:
        if self.rules.max_wait is not None:
            return self.rules.max_wait
        return max(1.0, min(60.0, 3 * (waiter.expected_load + victim.expected_load)))

    def hold_ends(self, request: Request, state: State) -> float | None:
        """When one that waits or returns must have ended. What was interrupted, and has returned,
        waits for as long as nothing but its recovery keeps it waiting."""
        if request.status == "returning" or not request.interrupted:
            return request.deadline
        since = self.models[request.model].roomless_since
        if not self._has_no_room(state) or since is None:
            return None
        return max(request.deadline, since + max(1.0, request.hold))

    def _has_no_room(self, state: State) -> bool:
        """Whether a model in this state waits for memory, not just for its worker's end."""
        leaves = state in (State.DRAINING, State.STOPPING, State.RELEASING)
        return state is State.COLD or (leaves and self.level >= Level.HIGH)

    def end(self, lease: int, *before: str) -> Request:
        check(lease in self.requests, f"lease {lease} has ended already")
        request = self.requests.pop(lease)
        check(request.status in before, f"lease {lease} is {request.status}")
        self.deaths.ends(request)
        return request

    # ── effects ──────────────────────────────────────────────────────────────────────────────────

    def step(self, doing: str, effects: list[Effect]) -> None:
        self.doing = doing
        for effect in effects:
            match effect:
                case Spawn(model, generation):
                    self._spawned(model, generation)
                case Stop(model, generation, kill):
                    self._stopped(model, generation, kill)
                case Grant():
                    self._granted(effect)
                case SetPlaces(lease, places):
                    self._places_set(self.requests[lease], places)
                case Interrupt(lease, error):
                    self._interrupted(lease, error)
                case QuarantineRequest(model, name):
                    self.deaths.quarantine(model, name)
                case Loaded(lease, model):
                    check(self.requests[lease].by_hand, "a request was told `loaded`")
                    check(self.processes[model].phase == "ready", "loaded, but not ready")
                    self.models[model].served(self.end(lease, "waiting"))
                    self.processes[model].idle_since = self.now
                case Refuse(lease, error):
                    self._refused(lease, error)
                case EndLease(lease, error):
                    self._lease_ended(lease, error)
                case Shrink(model, generation):
                    check(self.processes[model].generation == generation, "shrinks another")
                    over = self.doing == f"footprint {model}" and self.processes[model].is_over
                    check(self.level >= Level.HIGH or over, "shrinks without need")
                case Lend(model, generation, size):
                    self._lent(model, generation, size)
                case Recall(model, generation, number, size, park):
                    self._recalled(model, generation, number, size, park)
                case LimitSequences(model, generation, sequences):
                    check(self.processes[model].generation == generation, "limits another")
                    check(sequences >= 0, "less than none")
                case RememberLimit(model, limit):
                    self._learned(model, limit)
                case LogLine():
                    pass
        self._compare()

    def _spawned(self, name: str, generation: int) -> None:
        model = self.models[name]
        check(name not in self.processes, f"{name} has a process already")
        check(generation > self.generation[name], f"{name}#{generation} is no new generation")
        check(not self.shutdowns, "a spawn after shutdown")
        check(self.level < Level.HIGH, f"a spawn at pressure {self.level.name}")
        if self.budget is not None:
            total = self.charged() + model.size
            check(total <= self.budget, f"{name} is spawned: {total} of {self.budget} charged")
        if self.rules.max_loaded:
            count = len(self.processes) + 1
            check(count <= self.rules.max_loaded, f"{count} loaded, more than max_loaded")
        if self.rules.load_gate == "exclusive":
            others = [r for r in self.requests.values() if r.status == "granted"]
            waited = None if self.gate_since is None else self.now - self.gate_since
            late = waited is not None and waited + _EPSILON >= self.rules.load_gate_timeout
            check(not others or late, f"{name} loads through a gate with {len(others)} running")
            check(
                all(p.phase != "loading" for p in self.processes.values()),
                "two loads behind an exclusive gate",
            )
        wanted = self.open_of(name, "waiting") or model.preload_until is not None
        check(wanted, f"{name} is spawned and nobody wants it")
        self.generation[name] = generation
        self.processes[name] = Process(name, generation, model.size, self.now)

    def _stopped(self, name: str, generation: int, kill: bool) -> None:
        process = self.processes.get(name)
        check(process is not None and process.generation == generation, f"stops no {name}")
        assert process is not None
        busy = self.open_of(name, "granted")
        if kill:
            overdue = process.phase == "stopped" or self.doing.startswith("tick")
            check(process.at_fault or overdue, f"{name} is killed without cause")
            check(process.at_fault or not busy, f"busy {name} is killed: {busy}")
        else:
            check(not busy, f"{name} is stopped with {busy} running")
            process.asked = True
        process.phase = "stopped"
        process.killed |= kill

    def _granted(self, grant: Grant) -> None:
        lease, name = grant.lease, grant.model
        process = self.processes.get(name)
        check(process is not None, f"{name} is granted without a process")
        assert process is not None
        check(process.generation == grant.generation, "another generation is granted")
        check(grant.worker == f"{name}#{grant.generation}", "the worker's name is wrong")
        check(process.phase == "ready", f"{name} is granted while {process.phase}")
        check(process.draining_since is None, f"{name} is granted while it drains")
        request = self.requests[lease]
        check(request.model == name and request.status == "waiting", "a grant out of place")
        check(not request.by_hand, "an admin's load takes a place")
        limit = self.models[name].limit
        self.deaths.grant(lease, request, grant, limit)
        if self.rules.load_gate == "exclusive":
            loads = [p.model for p in self.processes.values() if p.phase == "loading"]
            check(not loads, f"{name} is granted while {loads} loads behind an exclusive gate")
        request.status = "granted"
        self.models[name].served(request)
        request.held = 0
        self._places_set(request, grant.places)

    def _places_set(self, request: Request, places: int) -> None:
        """It may have so many of its choices on the worker at once, as those there end."""
        limit, name = self.models[request.model].limit, request.model
        check(request.status == "granted", "places for one that is not granted")
        check(1 <= places <= request.wants, f"{places} places for one that wants {request.wants}")
        takes_more = places > request.held
        request.allowed, request.held = places, max(request.held, places)
        check(not (limit and takes_more) or self.taken(name) <= limit, "more than may run")

    # ── loans ────────────────────────────────────────────────────────────────────────────────────

    def _lent(self, name: str, generation: int, size: int) -> None:
        process = self.processes.get(name)
        check(process is not None and process.generation == generation, f"lends to no {name}")
        assert process is not None
        check(process.phase == "ready", f"{name} is lent while {process.phase}")
        check(self.level < Level.CRITICAL or self.eased, "lent in an emergency")
        if self.budget is not None:
            total = self.charged() + size
            check(total <= self.budget, f"{name} is lent: {total} of {self.budget} charged")
        process.loan.is_lent(size)
        process.charge += size

    def _recalled(self, name: str, generation: int, number: int, size: int, park: bool) -> None:
        process = self.processes.get(name)
        check(process is not None and process.generation == generation, f"asks no {name}")
        assert process is not None
        check(process.phase == "ready", f"{name} is asked while {process.phase}")
        if park:
            borrowers = [(each.model, each.loan) for each in self._borrowing()]
            check_park(name, borrowers, process.loan.said_youngest, self.now)
        process.loan.is_asked(number, size, park, self.now)

    def _borrowing(self) -> list[Process]:
        return [each for each in self.processes.values() if each.phase == "ready"]

    def _idle_loans(self, but: str = "") -> int:
        """What could be called back now, of all but one."""
        return sum(p.loan.callable(self.now) for p in self._borrowing() if p.model != but)

    def _awaited(self) -> int:
        """What was called back, and is still expected."""
        return sum(process.loan.waits_for(self.now) for process in self._borrowing())

    def _needs(self) -> list[Process]:
        """Workers with a request that can't go on, the oldest first."""
        needy = [process for process in self._borrowing() if process.loan.least]
        return sorted(needy, key=lambda process: process.loan.since)

    def _check_oldest_need(self) -> None:
        """Nothing is left untried for the request that can't go on and is the oldest."""
        needs = self._needs()
        if self.level is not Level.NORMAL or not needs or self.budget is None or self.shutdowns:
            return
        process, loan = needs[0], needs[0].loan
        older = [m.queued_since for m in self.models.values() if m.queued_since is not None]
        preloads = [m.preload_until for m in self.models.values() if m.preload_until is not None]
        if preloads or any(since <= loan.since for since in older):
            return
        free = self.budget - self.pool.state.ledger.charged
        states = {name: entry.state for name, entry in self.pool.models.items()}
        leaving = [
            self.pool.state.ledger.of(self.pool.models[name].current.key)
            for name, state in states.items()
            if state in LEAVING
        ]
        name = process.model
        check(loan.least > free, f"{loan.least} of {free} are free and {name} is not lent them")
        if loan.least <= free + self._awaited() + sum(leaving):
            return
        idle_loans = self._idle_loans(name)
        check(
            loan.least > free + self._awaited() + idle_loans,
            f"{name} needs {loan.least} while {idle_loans} of loans are idle",
        )
        others = [p for p in self._borrowing() if p is not process]
        idle = [p for p in self._takeable() if self._is_idle(p)]
        bases = sum(p.charge - p.loan.lent for p in idle if p is not process)
        moving = [p for p in others if not p.loan.least and not p.loan.silent(self.now)]
        if loan.least <= free + self._awaited() + bases + sum(
            p.loan.lent - p.loan.waits_for(self.now) for p in moving
        ):
            # It can be had: nobody idle is left, and nobody younger may be parked.
            check(idle_loans == 0, f"{name} waits and {idle_loans} of loans are idle")
            check(not [p for p in idle if p is not process], f"{name} waits beside idle models")
            for other in others:
                parkable = other.loan.said_parkable and not other.loan.asked
                younger = other.loan.said_youngest > loan.since
                waits = any(each.loan.asked for each in self._borrowing())
                check(
                    not (parkable and younger) or waits,
                    f"{name} waits and younger {other.model} is not parked",
                )

    def _check_ahead_of_need(self) -> None:
        """Where nobody waits for memory, what is free is lent to who will need it soon."""
        waited_for = any(
            model.queued_since is not None or model.preload_until is not None
            for model in self.models.values()
        )
        if self.level >= Level.HIGH or waited_for or self._needs() or self.budget is None:
            return
        free = self.budget - self.pool.state.ledger.charged
        for process in self._borrowing():
            soon = process.loan.most
            check(not soon or free <= 0, f"{free} are free and {process.model} waits for {soon}")

    def _learned(self, name: str, limit: LearnedLimit | None) -> None:
        """A model that ran out of memory serves fewer at once, or as many as before again."""
        model = self.models[name]
        most = model.spec.concurrency or 2**31
        check(limit is None or 1 <= limit.concurrency <= most, "a limit that is none")
        check(limit is None or limit.since <= self.now, "learned in the future")
        model.most = limit.concurrency if limit else None

    def _refused(self, lease: int, error: BulkheadError) -> None:
        check(isinstance(error, BulkheadError), "no error")
        request = self.requests.get(lease)
        if request is None:  # refused as it came
            check(lease == self.asked + 1, f"lease {lease} has ended already")
            return
        ends = self.hold_ends(request, self.last_state[request.model])
        late = ends is not None and ends <= self.now
        self.deaths.refused(lease, request, error.code, late=late)
        self.end(lease, "waiting", "returning")
        if error.code == "worker_crashed" and self.rules.recovery != "off":
            check(request.by_hand or request.interrupted, "a death ends what only waited")
        if request.interrupted:
            return
        if error.code == "model_too_large":
            size = self.models[request.model].size
            check(self.budget is not None and size > self.budget, "it could fit")
        displaced = error.code == "queue_full" and self.doing in ("acquire", "load")
        stalled = error.code == "model_loading" and "progress" in error.message
        if error.code in HOLD_CODES and not displaced and not stalled:
            check(request.deadline <= self.now, f"{error.code} before the hold was over")

    def _interrupted(self, lease: int, error: BulkheadError) -> None:
        request = self.requests[lease]
        check(request.status == "granted", f"lease {lease} is {request.status}")
        check(self.rules.recovery != "off" and not self.shutdowns, "nobody may return")
        process = self.processes.get(request.model)
        parked = process is not None and self.doing != "dying"
        if parked:
            assert process is not None
            check(not process.by_hand, f"{lease} is parked though a person wants it to end")
            if process.outgrown:
                self.deaths.interrupt(request, parked=True)
                request.deadline = self.now + RETURN_SECONDS
                return
            self._check_cut(process, error)
        self.deaths.interrupt(request, parked=parked)
        request.deadline = self.now + RETURN_SECONDS

    def _lease_ended(self, lease: int, error: BulkheadError) -> None:
        request = self.end(lease, "granted")
        process = self.processes.get(request.model)
        ends = self.shutdowns or self.rules.recovery == "off"
        by_hand = process is not None and (process.by_hand or process.was_by_hand)
        check(ends or by_hand, f"{lease} ends and could return")
        if error.code in ("worker_crashed", "worker_stalled") or process is None:
            check(
                process is None or process.at_fault,
                f"{request.model} is said to have died and has not",
            )
            return
        if self.shutdowns <= 1 and not process.outgrown:
            self._check_cut(process, error)

    def _check_cut(self, process: Process, error: BulkheadError) -> None:
        """A living worker's request is ended, or parked: has its drain had its time?"""
        since = process.draining_since
        check(since is not None, f"a request on {process.model} is cut without a drain")
        patience = self.limits.drain if self.level < Level.CRITICAL else 0.0
        if error.code == "memory_pressure":
            patience = min(self.limits.drain, self.limits.emergency_drain)
            self_since = self.now if since is None else since
            check(
                self.now - self_since + _EPSILON >= patience or self.level is not Level.NORMAL,
                "a request is cut too early in an emergency",
            )
            return
        check(
            since is not None and self.now - since + _EPSILON >= patience,
            f"a request on {process.model} is cut too early: {error.code}",
        )

    # ── what must hold after every step ──────────────────────────────────────────────────────────

    def _compare(self) -> None:
        pool = self.pool
        open_leases = 0
        for name, entry in pool.models.items():
            model, process = self.models[name], self.processes.get(name)
            state, before = entry.state, self.last_state[name]
            waiting, granted = self.open_of(name, "waiting"), self.open_of(name, "granted")
            returning = self.open_of(name, "returning")
            open_leases += len(waiting) + len(granted) + len(returning)
            check(list(entry.waiting) == waiting, f"{name}: {list(entry.waiting)} wait")
            check(set(entry.granted) == set(granted), f"{name}: {list(entry.granted)} granted")
            check(entry.in_flight == self.taken(name), f"{name}: {entry.in_flight} in flight")
            check(set(entry.returning) == set(returning), f"{name}: {returning} return")
            check(entry.use_count == model.uses, f"{name}: {entry.use_count} uses")
            check((state in HAS_PROCESS) == (process is not None), f"{name} is {state}")
            self._compare_crashed(name, state, before)
            taken = len(waiting) + len(granted) + len(returning)
            check(taken <= model.spec.capacity, f"{name}: {taken} run, wait or return")
            check(entry.pinned == model.pinned, f"{name}: pinned {entry.pinned}")
            check(entry.keep_alive == model.keep_alive, f"{name}: kept {entry.keep_alive} s")
            if process is not None:
                self._compare_process(name, process, state, before)
            if granted:
                check(state in HAS_PROCESS and state is not State.LOADING, f"{name} serves {state}")
            if waiting:
                unserved = state in (State.FAILED, State.CRASHED) or self.shutdowns
                check(not unserved, f"{name}: waits for nothing")
            if state in (State.LOADING, State.DRAINING, State.RELEASING):
                check(entry.deadline is not None, f"{name} is {state} without end")
            if state is State.DRAINING:
                check(granted, f"{name} drains and nobody runs")
            if state is State.STOPPING and entry.deadline is None:
                check(process is not None and process.killed, f"{name} is stopping without end")
            if not waiting or not self._has_no_room(state):
                model.roomless_since = None
            elif model.roomless_since is None:
                model.roomless_since = self.now
            if not waiting or state is State.READY:
                model.queued_since = None
            elif model.queued_since is None:
                model.queued_since = self.now
            if state is State.READY or self.shutdowns:
                model.preload_until = None
            self.last_state[name] = state
        check(len(pool.state.leases) == open_leases, "leases that nobody knows")
        limit = self.rules.max_requests
        check(not limit or open_leases <= limit, "more than max_requests run or wait")
        total = sum(charge.bytes for charge in pool.state.ledger.charges.values())
        check(pool.state.ledger.charged == total, "Σ charges is wrong")
        due = pool.next_deadline()
        for request in self.requests.values():
            ends = self.hold_ends(request, pool.models[request.model].state)
            if request.status != "granted" and ends is not None:
                check(due is not None and due <= ends, "a hold that nobody watches")
        gate = pool.planner.held_load is not None
        self.gate_since = (self.gate_since or self.now) if gate else None
        if self.gate_since is not None:
            over = self.gate_since + self.rules.load_gate_timeout
            check(self.now < over, "a load waits at the gate beyond its timeout")
        self._check_service()

    def _compare_crashed(self, name: str, state: State, before: State) -> None:
        model, deadline = self.models[name], self.pool.models[name].deadline
        if state is State.CRASHED:
            check(deadline is not None, f"{name} is left alone for ever")
            assert deadline is not None
            if model.alone_until is None:
                self.deaths.crashed(name, deadline - self.now)
                model.alone_until, model.preload_until = deadline, None
            check(deadline == model.alone_until > self.now, f"{name} is left alone for too long")
        elif model.alone_until is not None:
            by_hand = self.doing in ("load", "changed", "shutdown")
            check(by_hand or model.alone_until <= self.now, f"{name} is not left alone")
            model.alone_until = None

    def _compare_process(self, name: str, process: Process, state: State, before: State) -> None:
        if state is State.STOPPING and process.phase != "stopped":
            check(process.at_fault, f"{name} is stopping untold")
            process.phase = "stopped"
        if process.phase == "stopped":
            check(state is State.STOPPING, f"{name} was stopped and is {state}")
        if process.phase == "loading":
            check(state is State.LOADING, f"{name} loads and is {state}")
        key = (name, process.generation)
        check(self.pool.state.ledger.of(key) == process.charge, f"{name}: charge is wrong")
        if before is State.READY and state in (State.DRAINING, State.STOPPING):
            self._check_drain(name, process)
        if state is State.DRAINING and process.draining_since is None:
            process.draining_since = self.now
        if process.draining_since is not None:
            check(state in (State.DRAINING, State.STOPPING), f"{name} drained and is {state}")
        lent = self.pool.state.ledger.lent(key)
        check(lent == process.loan.lent, f"{name} holds {process.loan.lent}, {lent} are charged")
        if self.level is Level.CRITICAL and not self.eased:
            check(state is not State.LOADING, f"{name} is {state} in an emergency")

    def _check_drain(self, name: str, process: Process) -> None:
        """A READY worker was taken: by whom, and was it allowed?"""
        if (
            process.at_fault
            or self.shutdowns
            or self.doing in ("unload", f"unload at ready {name}")
        ):
            return
        broken = [p.model for p in self.processes.values() if p.breaks_budget]
        if self.pool.state.ledger.free < 0 and (
            name in broken or (broken and self._is_idle(process))
        ):
            return  # loans came back short that were to make up for a load
        if process.outgrown:
            check(process.is_over, f"{name} is restarted and holds what it may")
            return
        busy = bool(self.open_of(name, "granted"))
        if self.doing == "pressure":
            if self.level is Level.CRITICAL and not self.eased:
                self._check_pressed(name)
                return
            safe = self.safe_until(process) <= self.now or self.level >= Level.HIGH
            if self.level >= Level.WARN and not busy and safe:
                check(not self.models[name].pinned, f"pinned {name} goes by pressure")
                return
        check(not self.models[name].pinned, f"pinned {name} is evicted by {self.doing}")
        ttl = self.models[name].ttl
        idle_for = self.now - process.idle_since
        if not busy and ttl is not None and idle_for + _EPSILON >= ttl:
            return
        if self.doing.startswith("ready") and not busy:
            return  # another was larger than estimated
        check(self.safe_until(process) <= self.now + _EPSILON, f"{name} goes within its residency")
        waiters = [
            model
            for other, model in self.models.items()
            if other != name and model.queued_since is not None
        ]
        # Or its queue has begun with this very step.
        fresh = any(
            other != name and model.queued_since is None and self.open_of(other, "waiting")
            for other, model in self.models.items()
        )
        needy = [each for each in self._needs() if each.model != name]
        check(waiters or fresh or needy, f"{name} is evicted for nobody by {self.doing}")
        if not busy and self.budget is not None and not self.rules.max_loaded and not fresh:
            free = self.budget - self.charged() + process.loan.idle
            idle = self._idle_loans(name) + self._awaited()
            sizes = [model.size for model in waiters] + [each.loan.least for each in needy]
            dead = self.dead or any(p.phase == "stopped" for p in self.processes.values())
            enough = sizes and all(size <= free + idle - process.charge for size in sizes)
            check(not enough or dead, f"{name} goes while {idle} of loans are idle")
        if busy:
            since = [m.queued_since for m in waiters if m.queued_since is not None]
            patient = [
                at + self.patience(m, self.models[name])
                for m, at in zip(waiters, since, strict=True)
            ]
            check(
                (patient and min(patient) <= self.now + _EPSILON) or self.rules.max_wait == 0,
                f"busy {name} is drained before anybody waited long enough",
            )

    def _check_pressed(self, name: str) -> None:
        """An emergency unloads nobody again for whose unloading nothing was better."""
        model, residency = self.models[name], self.rules.min_residency
        spared = 60.0 if residency is None else residency
        again = model.pressed_at is not None and self.now < model.pressed_at + spared
        check(not again, f"{name} is unloaded in vain again")
        if self.new_batch:
            self.pressed, self.new_batch = [], False
            self.pressed_at, self.late_readings = self.now, 0
        self.pressed.append(name)
        model.pressed_at = self.now

    def _check_service(self) -> None:
        """Whoever can be served is served; above all the model that has waited longest."""
        entries = self.pool.models
        exclusive = self.rules.load_gate == "exclusive"
        loads = any(entry.state is State.LOADING for entry in entries.values())
        closed = exclusive and (loads or self.gate_since is not None)
        for name, entry in entries.items():
            self.deaths.compare(name, entry.state, closed=closed, limit=self.models[name].limit)
        if self.shutdowns:
            return
        for name, entry in entries.items():
            if entry.state is not State.READY:
                continue
            probes = self.deaths.records[name].trips > 0
            limit = 1 if probes else self.models[name].limit
            check(not probes or len(entry.granted) <= 1, f"several probe {name} at once")
            waits = self.open_of(name, "waiting")
            full = limit and self.taken(name) >= limit
            # Suspects have the worker to themselves, and the others wait for them.
            tries = bool(self.deaths.suspects(name)) or self.deaths.probation(name)
            tries = tries or bool(self.open_of(name, "returning"))
            check(not waits or full or closed or tries, f"{name} is ready and {waits} wait")
            ttl = self.models[name].ttl
            process = self.processes[name]
            timed = ttl is not None and self.doing in ("tick", f"expire {name}")
            if timed and not self.models[name].pinned and not entry.in_use:
                assert ttl is not None
                check(self.now < process.idle_since + ttl, f"{name} outlives its ttl")
        self._check_oldest_need()
        self._check_ahead_of_need()
        if self.level >= Level.HIGH:
            return
        queue = [
            (model.queued_since, name)
            for name, model in self.models.items()
            if model.queued_since is not None and entries[name].state in (State.COLD, *LEAVING)
        ]
        if queue:
            since, name = min(queue)
            if entries[name].state is State.COLD:
                self._check_first(name, since, closed)
        borrows = any(p.loan.lent or p.loan.least for p in self._borrowing())
        if len(queue) > 1 and not borrows:
            first, second, *_ = sorted(queue)
            self._check_second(first, second, closed)

    def _is_idle(self, process: Process) -> bool:
        return not self.pool.models[process.model].in_use and not process.loan.least

    def _takeable(self) -> list[Process]:
        """Ready models that may be taken now, busy ones among them."""
        return [
            process
            for name, process in self.processes.items()
            if self.pool.models[name].state is State.READY
            and not self.models[name].pinned
            and self.safe_until(process) <= self.now
        ]

    def _room(self) -> tuple[float, int, float, int]:
        """Bytes and places that are free, and that will be once those have gone who leave."""
        entries, ledger = self.pool.models.values(), self.pool.state.ledger
        budget = float("inf") if self.budget is None else float(self.budget)
        free = budget - ledger.charged
        leaving = [entry for entry in entries if entry.state in LEAVING]
        occupied = sum(e.state in HAS_PROCESS or e.state is State.RELEASING for e in entries)
        places = (self.rules.max_loaded or len(self.models) + 1) - occupied
        coming = free + sum(ledger.of(entry.current.key) for entry in leaving)
        return free, places, coming, places + len(leaving)

    def _check_first(self, name: str, since: float, closed: bool) -> None:
        """`name` is first in the queue of models: has everything been done for it?"""
        model = self.models[name]
        # A preload that was there before keeps its turn.
        if any(m.preload_until is not None for m in self.models.values()):
            return
        needs = self._needs()
        if needs and needs[0].loan.since <= since:
            return  # what is free is kept for older ones
        free, places, coming, places_coming = self._room()
        if model.size <= free and places >= 1:
            check(closed, f"{name} fits and is not loaded")
            return
        coming += sum(
            p.loan.waits_for(self.now) for p in self._borrowing() if p.draining_since is None
        )
        if model.size <= coming and places_coming >= 1:
            return
        ready = [p for p in self._borrowing() if p.draining_since is None]
        idle_loans = sum(p.loan.callable(self.now) for p in ready)
        check(
            model.size > coming + idle_loans or places_coming < 1,
            f"{name} waits while {idle_loans} of loans are idle",
        )
        ready = self._takeable()
        idle = [p for p in ready if self._is_idle(p)]
        late = [
            p
            for p in ready
            if p in idle or since + self.patience(model, self.models[p.model]) <= self.now
        ]
        for who, what in ((idle, "idle models are kept"), (late, "busy ones are kept for ever")):
            held = sum(p.charge - p.loan.waits_for(self.now) for p in who)
            held += sum(p.loan.callable(self.now) for p in ready if p not in who)
            enough = model.size <= coming + held
            check(
                not enough or places_coming + len(who) < 1,
                f"{name} waits since {since} while {what}: {[p.model for p in who]}",
            )

    def _check_second(
        self, first: tuple[float, str], second: tuple[float, str], closed: bool
    ) -> None:
        """Room that comes for the first is not the second's, who gets its own; and who fits beside
        may overtake one that can't be served yet and still has patience."""
        (since, name), (_, other) = first, second
        preloads = any(m.preload_until is not None for m in self.models.values())
        both_cold = all(self.pool.models[n].state is State.COLD for n in (name, other))
        if closed or preloads or not both_cold:
            return
        size = self.models[other].size
        free, places, coming, places_coming = self._room()
        if self.models[name].size <= coming and places_coming >= 1:
            coming, places_coming = coming - self.models[name].size, places_coming - 1
            if size <= coming and places_coming >= 1:
                return
            idle = [p for p in self._takeable() if not self.pool.models[p.model].in_use]
            enough = size <= coming + sum(p.charge for p in idle)
            check(
                not enough or places_coming + len(idle) < 1,
                f"{other} waits behind {name} while idle models are kept",
            )
            return
        patience = 1.0 if self.rules.max_wait is None else self.rules.max_wait
        if self.now < since + patience:
            fits = size <= free and places >= 1
            check(not fits, f"{other} fits and waits behind {name}")
