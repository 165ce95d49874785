"""A world for the real scheduler to run in: the shell, the processes, the machine, the clients.

Every method is one event; `tests.property.oracle` checks what follows from it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from supervisor.errors import BulkheadError
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Grant, Loaded, Recall, Refuse
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import LoanNeeds
from supervisor.scheduler.model import ReleaseRule, Spec
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.relief import EXIT_SECONDS
from tests.property.books import GB, Dead
from tests.property.lending import GivenBack, Word
from tests.property.oracle import Oracle
from tests.property.recoveries import Request, Violation, check, death_of


@dataclass
class World(Oracle):
    """Drive it by its methods."""

    # ── clients and people ───────────────────────────────────────────────────────────────────────

    def acquire(
        self,
        name: str,
        hold: float,
        *,
        by_hand: bool = False,
        digest: bytes = b"",
        poison: bool = False,
        keep_alive: float | None = None,
        places: int = 1,
        at_once: int = 0,
    ) -> int:
        """A request for a name or alias, or an admin's load; with `keep_alive` a client's. It has
        `places` choices and can use so many `at_once`, 0 = all."""
        doing = "load" if by_hand else "acquire"
        called = f"r{self.asked + 1}"
        if by_hand and keep_alive is None:
            lease, effects = self.pool.load(called, name, hold, self.now)
            self._forgive(name)
        elif by_hand:
            lease, effects = self.pool.warm(called, name, hold, self.now, keep_alive)
        else:
            lease, effects = self.pool.acquire(
                called, name, hold, self.now, digest, keep_alive, places, at_once
            )
        check(lease == self.asked + 1, "a lease twice")
        refused = any(isinstance(effect, Refuse) and effect.lease == lease for effect in effects)
        quarantined = not refused and digest in self.deaths.quarantined
        check(not quarantined, f"{lease} is quarantined and admitted")
        if not refused:
            model = self.pool.state.resolve(name).spec.name
            self.requests[lease] = Request(
                model,
                self.now + hold,
                by_hand,
                name=called,
                hold=hold,
                digest=digest or called.encode(),
                poison=poison,
                keep_alive=keep_alive,
                places=places,
                at_once=at_once,
            )
            if not by_hand:
                self.models[model].uses += 1
                if model in self.processes:
                    self.processes[model].idle_since = self.now
        self.step(doing, effects)
        self.asked = lease
        return lease

    def _forgive(self, name: str) -> None:
        """A person asks for the model: whatever made it crash counts no longer."""
        with suppress(BulkheadError):
            called = self.pool.state.resolve(name).spec.name
            self.deaths.records[called].forgiven()
            self._forget_excess(called)

    def _forget_excess(self, name: str) -> None:
        self.models[name].excess, self.models[name].restarted_at = 0, None

    def release(self, lease: int) -> None:
        request = self.requests.pop(lease, None)
        if request is not None:
            if request.status == "granted":
                self.processes[request.model].idle_since = self.now
            self.deaths.ends(request)
        self.step("release", self.pool.release(lease, self.now))

    def returned(self, lease: int, position: int) -> None:
        """A gateway says where its request stands, asked or not."""
        request = self.requests.get(lease)
        known = request is not None and request.status == "returning"
        if request is not None and known:
            self.deaths.returns(request, position, self.now)
        effects = self.pool.returned(lease, position, self.now)
        check(known or not effects, "nobody returns, and something follows")
        self.step("returned", effects)

    def passed(self, lease: int) -> None:
        """A gateway says that its request is as far as it was asked, or has ended; perhaps it has
        died by now."""
        request = self.requests.get(lease)
        known = request is not None and request.status == "granted"
        if request is not None and known:
            self.deaths.passes(request)
        effects = self.pool.passed(lease, self.now)
        check(known or not effects, "nobody passes, and something follows")
        self.step("passed", effects)

    def holds(self, lease: int, ended: int, off: int) -> None:
        """Choices of a request have ended, on its worker and `off` it; perhaps it has itself."""
        request = self.requests.get(lease)
        if request is None or request.status != "granted":
            check(not self.pool.holds(lease, 1, 1, self.now), "holds of nobody do something")
            return
        ended = min(ended, request.held - 1)
        request.places = max(request.held - ended, request.places - ended - off)
        # Others of its choices take the places that it may have.
        request.held = max(request.held - ended, min(request.allowed, request.wants))
        # What it says may have crossed the word that it may have more.
        said = request.held if off else min(request.held, max(1, request.held - ended))
        effects = self.pool.holds(lease, said, request.places, self.now)
        self.step("holds", effects)

    def fault(self, lease: int) -> None:
        request = self.requests.get(lease)
        known = request is not None and request.status == "granted"
        if request is not None and known:
            self.processes[request.model].at_fault = True
        effects = self.pool.fault(lease, "a torn frame", self.now)
        check(known or not effects, "a fault of nobody does something")
        self.step("fault", effects)

    def preload(self, name: str) -> None:
        model = self.models[name]
        fits = self.budget is None or model.size <= self.budget
        if self.pool.models[name].state is State.COLD and not self.shutdowns and fits:
            model.preload_until = self.now + self.limits.preload
        self.step("preload", self.pool.preload(name, self.now))

    def unload(self, name: str) -> None:
        self.models[name].preload_until = None
        if self.pool.models[name].state in (State.READY, State.DRAINING):
            self.processes[name].by_hand = not self.processes[name].emergency
            self.processes[name].was_by_hand = True
        self.step("unload", self.pool.unload(name, self.now))

    def expire(self, name: str) -> None:
        """A client has done with the model."""
        if name in self.processes:
            self.models[name].keep_alive = 0.0
        self.step(f"expire {name}", self.pool.expire(name, self.now))

    def pin(self, name: str, pinned: bool) -> None:
        self.models[name].pinned = pinned
        do = self.pool.pin if pinned else self.pool.unpin
        self.step("pin", do(name, self.now))

    def changed(self, name: str) -> None:
        self._forgive(name)
        self.step("changed", self.pool.changed(name, self.now))

    def estimated(self, name: str, size: int, headroom: int) -> None:
        model, old = self.models[name], self.models[name].spec
        if size != old.estimate_bytes:
            model.learned = model.measured = None
            self._forget_excess(name)
        self.models[name].spec = Spec(
            old.name, old.aliases, old.capacity, old.concurrency, size, headroom,
            old.memory_bytes, old.pin, old.ttl,
        )  # fmt: skip
        self._drop_impossible_preloads()
        self.step("estimated", self.pool.estimated(name, size, headroom, self.now))

    def _drop_impossible_preloads(self) -> None:
        for name, model in self.models.items():
            impossible = self.budget is not None and model.size > self.budget
            if impossible and self.pool.models[name].state is State.COLD:
                model.preload_until = None

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    def progress(self, name: str) -> None:
        process = self.processes[name]
        self.pool.started(name, process.generation, 1234)
        self.pool.loading(name, process.generation, self.now)
        self.step("loading", [])

    def ready(self, name: str, size: int) -> None:
        process, model = self.processes[name], self.models[name]
        asked = self.pool.models[name].current.unload_asked
        loads = process.phase == "loading"
        if loads:
            process.phase, process.ready_at, process.idle_since = "ready", self.now, self.now
            process.load_seconds = model.load_seconds = self.now - process.started_at
            model.learn(size, self.budget)
            process.charge, process.by_hand = model.size, asked
        effects = self.pool.ready(name, process.generation, size, 4096, self.now)
        check(loads or not effects, f"{name} is ready twice")
        if loads and self.pool.models[name].state is not State.READY and not asked:
            over = self.budget is not None and self.pool.state.ledger.charged > self.budget
            wanted = any(m.queued_since is not None for n, m in self.models.items() if n != name)
            wanted |= bool(self.needs())
            check(over or wanted, f"{name} is thrown out although it fits")
        if loads and self.budget is not None:
            going = (State.STOPPING, State.RELEASING)
            entries = self.pool.models.values()
            coming = sum(
                self.pool.state.ledger.of(e.current.key) for e in entries if e.state in going
            )
            recalls = [e for e in effects if isinstance(e, Recall)]
            process.breaks_budget = bool(recalls) and self.pool.state.ledger.free < 0
            coming += self.awaited() + sum(e.bytes for e in recalls)
            over_by = self.pool.state.ledger.charged - coming - self.budget
            check(over_by <= 0, f"{name} was larger than estimated and {over_by} are over")
        returning = loads and self.open_of(name, "returning")
        if returning or any(isinstance(e, Grant | Loaded) and e.model == name for e in effects):
            model.queued_since = None  # its turn is over, even where it has to go in the same step
        self.last_state[name] = self.pool.models[name].state if asked else self.last_state[name]
        self._drop_impossible_preloads_of(name)
        self.step(f"ready {name}", effects)

    def _drop_impossible_preloads_of(self, name: str) -> None:
        if self.budget is not None and self.models[name].size > self.budget:
            self.models[name].preload_until = None

    def load_failed(self, name: str) -> None:
        process = self.processes[name]
        if process.phase == "loading":
            self.models[name].preload_until = None
            process.at_fault = True
        self.step("load_failed", self.pool.load_failed(name, process.generation, "no", self.now))

    def broken(self, name: str) -> None:
        process = self.processes[name]
        self._spoil(name)
        self.step("broken", self.pool.broken(name, process.generation, "stalled", self.now))

    def dying(self, name: str) -> None:
        process = self.processes[name]
        self._spoil(name)
        process.phase = "stopped"
        self.step("dying", self.pool.dying(name, process.generation, "SIGABRT", self.now))

    def _spoil(self, name: str) -> None:
        process = self.processes[name]
        process.at_fault = True
        if process.phase == "loading" and self.rules.recovery == "off":
            self.models[name].preload_until = None

    def exited(self, name: str, left_behind: float = 0.0, fault: Fault = Fault.REQUEST) -> None:
        """The process ends, asked to or not, and gives back all but that share of its memory."""
        self._spoil(name)
        process = self.processes.pop(name)
        if not process.asked:
            self.deaths.died(
                name, fault, self.now, memory=fault is Fault.MEMORY, limit=self.models[name].limit
            )
        else:
            self.models[name].keep_alive = None
        if self.shutdowns:
            self.deaths.records[name].pause = None
        key = (name, process.generation)
        whole = process.charge
        if self.rules.release is ReleaseRule.WHEN_SEEN:
            self.pool.memory.footprint(name, process.generation, whole, self.now)
            self.dead[key] = Dead(whole, max(int(whole * left_behind), 0), self.now)
        self._drop_impossible_preloads()
        effects = self.pool.exited(name, process.generation, "SIGKILL", self.now, death_of(fault))
        self.step("exited", effects)

    def stale(self, name: str, offset: int) -> None:
        """Words about another generation change nothing."""
        generation = self.pool.models[name].generation + offset
        pool, now = self.pool, self.now
        pool.started(name, generation, 666)
        pool.loading(name, generation, now)
        pool.memory.footprint(name, generation, 1, now)
        for effects in (
            pool.ready(name, generation, GB, 1, now),
            pool.load_failed(name, generation, "no", now),
            pool.broken(name, generation, "no", now),
            pool.dying(name, generation, "SIGABRT", now),
            pool.exited(name, generation, "SIGKILL", now),
        ):
            check(effects == [], "a stale event did something")
        self.step("stale", [])

    # ── loans ────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, name: str, *words: Word | GivenBack) -> None:
        """The worker says something, and how it stands then."""
        loan = self.processes[name].loan
        loan.up += [*words, loan.account.word()]
        while loan.up and not loan.late:
            self.be_told(name)

    def be_told(self, name: str) -> None:
        """What the worker has said first arrives."""
        process = self.processes[name]
        memory, said = self.pool.memory, process.loan.up.popleft()
        if isinstance(said, Word):
            process.loan.says(said)
            needs = LoanNeeds(
                said.least, said.most, said.since, said.idle, said.youngest, said.parkable,
                said.heard,
            )  # fmt: skip
            self.step(f"needs {name}", memory.needs(name, process.generation, needs, self.now))
            return
        process.charge -= said.bytes
        process.loan.gives_back(said, self.now)
        effects = memory.repaid(name, process.generation, said.bytes, said.number, self.now)
        self.step(f"repaid {name}", effects)

    def hear(self, name: str) -> None:
        """The worker hears what it was told first; it may have something to say then."""
        loan = self.processes[name].loan
        idle = loan.account.idle
        loan.hear()
        if loan.account.parked or loan.account.idle != idle:
            self._tell(name)

    def say(self, name: str) -> None:
        """The worker says how it stands with its loan."""
        self._tell(name)

    def want(self, name: str, since: float, least: int, ahead: int) -> None:
        """A request that came then can't go on without `least` bytes."""
        self.processes[name].loan.account.wants(since, least, ahead)
        self._tell(name)

    def end_sequence(self, name: str, since: float) -> None:
        self.processes[name].loan.account.end(since)
        self._tell(name)

    def give_back(self, name: str, share: float) -> None:
        """The worker no longer wants a part of what is idle."""
        self._tell(name, self.processes[name].loan.account.give_back(share))

    def answer(self, name: str, share: float) -> None:
        """The worker answers what it was asked first, in time or late."""
        self._tell(name, self.processes[name].loan.account.answer(share))

    def lose_answer(self, name: str) -> None:
        """The worker never answers: as far as it knows, it has."""
        self.processes[name].loan.deaf = True

    def footprint(self, name: str, size: int) -> None:
        """The process was seen to hold so much."""
        process = self.processes[name]
        process.footprint, process.allowed = size, process.highest
        process.highest = process.charge
        before = self._restarts()
        effects = self.pool.memory.footprint(name, process.generation, size, self.now)
        self._note_restarts(before)
        self.step(f"footprint {name}", effects)

    def _restarts(self) -> dict[str, int]:
        return {name: entry.excess_restarts for name, entry in self.pool.models.items()}

    def _note_restarts(self, before: dict[str, int]) -> None:
        """Who was restarted for its footprint is charged more from now on."""
        for name, entry in self.pool.models.items():
            if entry.excess_restarts == before[name]:
                continue
            process, model = self.processes[name], self.models[name]
            process.outgrown = True
            again = model.restarted_at is not None and self.now < model.restarted_at + 60
            check(not again, f"{name} is restarted in a cycle")
            model.restarted_at = self.now
            model.outgrow(process.footprint - process.allowed, self.budget)
            if entry.pinned and entry.preload is not None:
                model.preload_until = self.now + self.limits.preload

    # ── the machine ──────────────────────────────────────────────────────────────────────────────

    def memory_back(self, share: float, noise: int) -> None:
        """The kernel gives back some of what the dead hold; a reading is taken, `noise` bytes of
        others in it."""
        for key, dead in list(self.dead.items()):
            dead.held = int(dead.held * (1.0 - share))
            if dead.held == 0:
                del self.dead[key]
        held = sum(dead.held for dead in self.dead.values())
        self._drop_impossible_preloads()
        self.step("memory", self.pool.memory.memory_seen(held + noise, self.now))

    def pressure(self, level: Level, *, eased: bool = False) -> None:
        if eased or level < self.level:
            for name in self.pressed:
                self.models[name].pressed_at = None
            self.pressed = []
        if self.level is level is Level.CRITICAL and not eased:
            # Two readings after the last workers have had their time to end: it was in vain.
            self.late_readings += self.now >= self.pressed_at + EXIT_SECONDS
            if self.late_readings >= 2:
                self.pressed = []
        self.new_batch = True
        self.level, self.eased = level, eased
        for process in self.processes.values():
            # An emergency parks what a person would have let end.
            process.was_by_hand |= process.by_hand
            process.emergency |= level is Level.CRITICAL
            process.by_hand &= not process.emergency
        before = self._restarts()
        effects = self.pool.memory.pressure(level, "figures", self.now, eased=eased)
        self._note_restarts(before)
        self.step("pressure", effects)

    def advance(self, span: float) -> None:
        """Let time pass, with a tick at every deadline."""
        target = self.now + span
        for _ in range(1000):
            due = self.pool.next_deadline()
            if due is None or due > target:
                self.now = target
                return
            self.now = max(self.now, due)
            self._tick()
        raise Violation("a deadline that a tick does not clear")

    def jump(self, span: float) -> None:
        """A tick that comes late, or early."""
        self.now += span
        self._tick()

    def _tick(self) -> None:
        for name, process in self.processes.items():
            entry = self.pool.models[name]
            if process.phase == "loading" and entry.deadline is not None:
                process.at_fault |= entry.deadline <= self.now
        for name, model in self.models.items():
            over = model.preload_until is not None and model.preload_until <= self.now
            loads = self.processes.get(name)
            stalled = loads is not None and loads.at_fault and loads.phase == "loading"
            if over or stalled:
                model.preload_until = None
        self.step("tick", self.pool.tick(self.now))
        due = self.pool.next_deadline()
        check(due is None or due > self.now, "a tick leaves what is due")
        for lease, request in self.requests.items():
            ends = self.hold_ends(request, self.pool.models[request.model].state)
            late = request.status != "granted" and ends is not None and ends <= self.now
            check(not late, f"lease {lease} waits beyond its hold")

    def shutdown(self) -> None:
        self.shutdowns += 1
        self.deaths.ends_all = True
        for record in self.deaths.records.values():
            record.pause = None
        self.step("shutdown", self.pool.shutdown(self.now))

    def finish(self) -> None:
        """A shutdown, asked for twice, ends every request and every process."""
        self.shutdown()
        self.shutdown()
        for name in list(self.processes):
            self.exited(name)
        if self.dead or self.rules.release is ReleaseRule.WHEN_SEEN:
            self.memory_back(1.0, 0)
        check(self.pool.state.stopped, "a process is left")
        check(not self.requests, f"leases {list(self.requests)} never end")
        check(not self.pool.state.ledger.charges, "charges that nobody owes")
        check(self.pool.next_deadline() is None, "a deadline when all is over")
