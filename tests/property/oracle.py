"""What the scheduler must not do, and what it must, checked with every effect and after every step.

`Oracle` writes the `Books` of what the scheduler makes of each event, and raises `Violation` when
the scheduler does what it must not, or not what it must:

* nothing is spawned beyond the budget, `max_loaded`, the pressure level, or a closed gate;
* nobody waits past the hold, and whoever can be served is (`tests.property.service`);
* no busy worker is stopped but through a drain that had its time, or for its own fault;
* what a death interrupts goes on, unless it must not (`tests.property.recoveries`);
* no worker that drains, stops or is pinned away is granted or taken;
* every lease ends, once.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from supervisor.scheduler.model import LearnedLimit
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.recovery import RETURN_SECONDS
from tests.property.books import EPSILON, Books, Process
from tests.property.lending import Account, Borrower, check_park
from tests.property.recoveries import Request, check
from tests.property.service import check_drain, check_service

HOLD_CODES = ("insufficient_memory_now", "memory_pressure", "queue_full", "model_loading")


@dataclass
class Oracle(Books):
    """The books of one world; `step` takes every event's effects."""

    # ── effects ───────────────────────────────────────────────────────────────────────────────────

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
            late = waited is not None and waited + EPSILON >= self.rules.load_gate_timeout
            check(not others or late, f"{name} loads through a gate with {len(others)} running")
            check(
                all(p.phase != "loading" for p in self.processes.values()),
                "two loads behind an exclusive gate",
            )
        wanted = self.open_of(name, "waiting") or model.preload_until is not None
        check(wanted, f"{name} is spawned and nobody wants it")
        self.generation[name] = generation
        loan = Borrower(Account(self.loan_limit(name)), self.late)
        self.processes[name] = Process(name, generation, model.size, self.now, loan=loan)

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

    def _learned(self, name: str, limit: LearnedLimit | None) -> None:
        """A model that ran out of memory serves fewer at once, or as many as before again."""
        model = self.models[name]
        most = model.spec.concurrency or 2**31
        check(limit is None or 1 <= limit.concurrency <= most, "a limit that is none")
        check(limit is None or limit.since <= self.now, "learned in the future")
        model.most = limit.concurrency if limit else None

    # ── loans ─────────────────────────────────────────────────────────────────────────────────────

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
            borrowers = [(each.model, each.loan) for each in self.borrowing()]
            check_park(name, borrowers, process.loan.said_youngest, self.now)
        process.loan.is_asked(number, size, park, self.now)

    # ── ends ──────────────────────────────────────────────────────────────────────────────────────

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
            if process.outgrown or self.waits_in_vain(process):
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
        if self.shutdowns <= 1 and not process.outgrown and not self.waits_in_vain(process):
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
                self.now - self_since + EPSILON >= patience or self.level is not Level.NORMAL,
                "a request is cut too early in an emergency",
            )
            return
        check(
            since is not None and self.now - since + EPSILON >= patience,
            f"a request on {process.model} is cut too early: {error.code}",
        )

    # ── what must hold after every step ───────────────────────────────────────────────────────────

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
            if not waiting or not self.has_no_room(state):
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
        check_service(self)

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
        process.highest = max(process.highest, process.charge)
        if before is State.READY and state in (State.DRAINING, State.STOPPING):
            check_drain(self, name, process)
        if state is State.DRAINING and process.draining_since is None:
            process.draining_since = self.now
        if process.draining_since is not None:
            check(state in (State.DRAINING, State.STOPPING), f"{name} drained and is {state}")
        lent = self.pool.state.ledger.lent(key)
        check(lent == process.loan.lent, f"{name} holds {process.loan.lent}, {lent} are charged")
        process.loan.check_agreed(name)
        if self.level is Level.CRITICAL and not self.eased:
            check(state is not State.LOADING, f"{name} is {state} in an emergency")
