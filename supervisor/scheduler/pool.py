"""Who gets which worker and whose memory, decided in one place and without I/O.

Each method of `Pool` is one event: it takes the time, changes the state by the table in
`lifecycle`, and returns the effects that the caller must carry out in order. Nothing here blocks,
sleeps, reads a clock or touches a process, so a test drives it step by step.

What an event does to a request:

1. acquire: shutting down → refuse; unknown name → refuse; quarantined → refuse; FAILED or CRASHED →
   its fallback serves, or refuse with the reason; larger than the budget → refuse with the figures;
   the model's queue, or the server, is full → refuse.
2. acquire, READY → grant, unless all places are taken or the load gate is closed.
3. acquire otherwise → wait. Everyone who comes meanwhile waits for the one load.
4. every event ends in `Planner.settle`: who can be granted is granted, then `plan` says which model
   is loaded next and who must make room for it.
5. ready → grant all who wait. A failed load refuses them; a load that dies does without recovery.
6. a death with leases → each is interrupted once, and returns, or ends.
7. a waiter that leaves cancels nothing: the load goes on for those who come next.
8. the hold is over → refuse, with what it was that kept the request waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from supervisor.errors import BulkheadError, ModelLoadFailed, ModelUnavailable
from supervisor.scheduler import refusals
from supervisor.scheduler.death import Death
from supervisor.scheduler.effects import Effect, LogLine, Refuse, RememberExcess, warning
from supervisor.scheduler.lease import Purpose
from supervisor.scheduler.lifecycle import HAS_PROCESS, Event, State
from supervisor.scheduler.loans import Loans
from supervisor.scheduler.memory_events import MemoryEvents
from supervisor.scheduler.model import (
    DrainCause,
    LearnedLimit,
    Limits,
    Model,
    PreloadRequest,
    Rules,
    Spec,
)
from supervisor.scheduler.planner import Planner
from supervisor.scheduler.prefill_gate import PrefillGate
from supervisor.scheduler.recovery import Recovery
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.state import PoolState
from supervisor.scheduler.workers import FAULT_SECONDS, Workers
from supervisor.units import gigabytes


class Pool:
    """All models, and every event that concerns them; those of memory are in `memory`.

    `budget` is in bytes, None = unlimited. `jitter` gives numbers from 0 to 1 that spread the
    retries of machines which crashed together.
    """

    def __init__(
        self,
        specs: Iterable[Spec],
        *,
        default_model: str = "",
        limits: Limits | None = None,
        rules: Rules | None = None,
        budget: int | None = None,
        jitter: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.state = state = PoolState(
            specs,
            default_model=default_model,
            limits=limits or Limits(),
            rules=rules or Rules(),
            budget=budget,
            jitter=jitter,
        )
        self.models = state.models
        self.workers = workers = Workers(state)
        self.requests = requests = Requests(state)
        self.recovery = Recovery(state, requests)
        self.loans = loans = Loans(state)
        gate = PrefillGate()
        self.planner = planner = Planner(state, workers, requests, self.recovery, loans, gate)
        self.memory = MemoryEvents(state, workers, requests, planner, loans, gate)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def acquire(
        self,
        request_id: str,
        name: str,
        hold: float,
        now: float,
        digest: bytes = b"",
        keep_alive: float | None = None,
        places: int = 1,
        at_once: int = 0,
    ) -> tuple[int, list[Effect]]:
        """A request wants so many places and waits for the first at most `hold` seconds; see
        `Model.keep_alive`, and `Lease` for the others. Returns its lease's id."""
        lease = self.requests.new_lease(
            request_id, hold, now, Purpose.REQUEST, digest, keep_alive, places, at_once
        )
        effects: list[Effect] = []
        try:
            # (1)
            if self.state.shutting_down:
                raise refusals.shutting_down()
            model = self.state.resolve(name)
            if self.recovery.blame.is_quarantined(lease.digest, now):
                raise refusals.quarantined(model)
            try:
                self.requests.check_servable(model, now)
            except (ModelLoadFailed, ModelUnavailable) as error:
                other = self.requests.fallback(model)
                if other is None:
                    raise
                effects.append(self.requests.send_on(model, lease, other, error))
                model = other
            effects += self.requests.make_place(model, now)
        except BulkheadError as error:
            return lease.id, [Refuse(lease.id, error)]
        self.state.uses += 1
        model.count_use(now, self.state.uses)
        self.requests.enqueue(model, lease)  # (3), for no time where (2) holds
        return lease.id, [*effects, *self.planner.settle(now)]  # (2), (4)

    def release(self, lease_id: int, now: float) -> list[Effect]:
        """The lease's connection closed. Unknown leases ended earlier and need nothing."""
        model = self.state.leases.get(lease_id)
        if model is None:
            return []
        if lease_id in model.granted:
            model.last_used = now
            model.count_freed_place(now)
        self.requests.forget(model, lease_id)  # (7)
        effects = self.recovery.decide_death(model, now)
        stopped = self.workers.stop_if_drained(model, now)
        return [*effects, *stopped, *self.planner.settle(now)]

    def returned(self, lease_id: int, position: int, now: float, hold: float = 0) -> list[Effect]:
        """As `Recovery.take_back`, of an interrupted request that would go on."""
        model = self.state.leases.get(lease_id)
        lease = None if model is None else model.returning.pop(lease_id, None)
        if model is None or lease is None:
            return []
        effects = self.recovery.take_back(model, lease, position, now, hold)  # (6)
        return [*effects, *self.planner.settle(now)]

    def passed(self, lease_id: int, now: float) -> list[Effect]:
        """A request has as many tokens as its grant asked for, or has ended."""
        model = self.state.leases.get(lease_id)
        lease = None if model is None else model.granted.get(lease_id)
        if model is None or lease is None:
            return []
        self.recovery.count_progress(model)
        effects = self.recovery.pass_place(model, lease, now) if lease.awaited else []
        return [*effects, *self.planner.settle(now)]

    def holds(self, lease_id: int, held: int, left: int, now: float) -> list[Effect]:
        """Choices of a request have ended: it has `held` on its worker, and `left` in all."""
        model = self.state.leases.get(lease_id)
        lease = None if model is None else model.granted.get(lease_id)
        if model is None or lease is None:
            return []
        lease.places = max(1, min(left, lease.places))
        lease.allowed = min(lease.allowed, lease.wants)
        # Its word may have crossed one that allows more.
        lease.held = max(lease.allowed, min(held, lease.held))
        return self.planner.settle(now)

    def fault(self, lease_id: int, reason: str, now: float) -> list[Effect]:
        """The gateway caught this lease's worker breaking the protocol: it must go."""
        model = self.state.leases.get(lease_id)
        if model is None or lease_id not in model.granted:
            return []
        return [*self._kill(model, reason, now), *self.planner.settle(now)]

    # ── by hand ──────────────────────────────────────────────────────────────────────────────────

    def preload(self, name: str, now: float) -> list[Effect]:
        """Load without a request once it fits, evicting nobody; nothing where the model is on its
        way already."""
        model = self.models[name]
        if model.state is not State.COLD or self.state.shutting_down:
            return []
        model.preload = PreloadRequest(now, now + self.state.limits.preload)
        return self.planner.settle(now)

    def load(self, request_id: str, name: str, hold: float, now: float) -> tuple[int, list[Effect]]:
        """A person wants the model loaded: as `warm`, and a failed load may be tried again."""
        forgotten: list[Effect] = []
        with suppress(BulkheadError):  # it is refused in a moment
            model = self.state.resolve(name)
            if model.excess_bytes:
                forgotten.append(RememberExcess(model.name, 0))
            self.workers.forget_crashes(model)
            forgotten += self.recovery.forget_presumption(model)
        lease, effects = self.warm(request_id, name, hold, now)
        return lease, [*forgotten, *effects, *self.planner.settle(now)]

    def warm(
        self, request_id: str, name: str, hold: float, now: float, keep_alive: float | None = None
    ) -> tuple[int, list[Effect]]:
        """A client wants the model loaded: queues and makes room like a request, but is no use of
        the model and takes no place on the worker. Ends in Loaded or Refuse."""
        lease = self.requests.new_lease(request_id, hold, now, Purpose.LOAD, keep_alive=keep_alive)
        try:
            model = self.state.resolve(name)
            self.requests.check_servable(model, now)
            ready = model.state is State.READY
            effects = [] if ready else self.requests.make_place(model, now)
        except BulkheadError as error:
            return lease.id, [Refuse(lease.id, error)]
        if model.worker is not None:
            model.worker.unload_asked = False  # the later request counts
        self.requests.enqueue(model, lease)
        return lease.id, [*effects, *self.planner.settle(now)]

    def expire(self, name: str, now: float) -> list[Effect]:
        """A client has done with the model: it goes as soon as nobody uses it, unless pinned."""
        model = self.models[name]
        if model.state in HAS_PROCESS:
            model.keep_alive = 0.0
        idle = [] if model.idle_at is None else self.planner.unload_idle(model, now)
        return [*idle, *self.planner.settle(now)]

    def unload(self, name: str, now: float) -> list[Effect]:
        """A person wants the model gone, pinned or not: once those who have a place, or wait for
        its running load, are served."""
        model = self.models[name]
        model.preload = None
        effects: list[Effect] = []
        if model.state is State.LOADING:
            model.current.unload_asked = True
        elif model.state is State.READY:
            effects = self.workers.drain(model, DrainCause.BY_HAND, now)
        elif model.state is State.DRAINING and model.current.drain_cause is DrainCause.EVICTION:
            model.current.drain_cause = DrainCause.BY_HAND  # what is left at its end ends with it
        return [*effects, *self.planner.settle(now)]

    def pin(self, name: str, now: float) -> list[Effect]:
        """Only an emergency or a person unloads this model from now on. One that drains already
        goes all the same."""
        self.models[name].pinned = True
        return self.planner.settle(now)

    def unpin(self, name: str, now: float) -> list[Effect]:
        """The opposite of `pin`, also of a configured one."""
        self.models[name].pinned = False
        return self.planner.settle(now)

    def changed(self, name: str, now: float) -> list[Effect]:
        """The files of a model that has failed are others: it may be tried. Who waits for a probe
        of it to end need not any more."""
        self.workers.forget_crashes(self.models[name])
        return self.planner.settle(now)

    def estimated(
        self, name: str, estimate_bytes: int, headroom_bytes: int, now: float
    ) -> list[Effect]:
        """The model's next load needs so much, and leaves so much of it untouched; what was learned
        of other files counts no longer."""
        model = self.models[name]
        if estimate_bytes != model.spec.estimate_bytes:
            model.measured_bytes = model.learned_bytes = None
            model.forget_excess()
        model.spec = replace(
            model.spec,
            estimate_bytes=estimate_bytes,
            headroom_bytes=headroom_bytes,
        )
        return self.planner.settle(now)

    def recall(
        self,
        name: str,
        use_count: int,
        load_seconds: float | None,
        memory_bytes: int | None,
        limit: LearnedLimit | None = None,
        excess: int = 0,
    ) -> None:
        """What earlier runs of the supervisor have seen of the model; None = nothing."""
        model = self.models[name]
        model.learned_limit, model.excess_bytes = limit, excess
        model.use_count, model.load_seconds = use_count, load_seconds
        if memory_bytes is not None:
            self.workers.learn_size(model, memory_bytes)

    def restore_quarantine(self, quarantined: Iterable[tuple[bytes, float]]) -> None:
        """Refuse what an earlier run refused: digests and when that expires."""
        self.recovery.blame.restore(quarantined)

    def quarantined(self, now: float) -> list[tuple[bytes, float]]:
        """What is refused: digests and when that expires."""
        return self.recovery.blame.quarantined(now)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    def started(self, name: str, generation: int, pid: int) -> None:
        """The process exists."""
        model = self.state.living(name, generation)
        if model is not None:
            model.current.pid = pid

    def loading(self, name: str, generation: int, now: float, read: int = 0, of: int = 0) -> None:
        """The load made progress, to `read` bytes `of` so many: its deadline starts anew."""
        model = self.state.living(name, generation)
        if model is not None and model.state is State.LOADING:
            model.current.loading = (read, of)
            model.current.deadline = now + self.state.limits.load_stall

    def ready(
        self, name: str, generation: int, memory_bytes: int, context: int, now: float
    ) -> list[Effect]:
        """The worker serves. `memory_bytes` is measured, `context` is in tokens."""
        model = self.state.living(name, generation)
        if model is None or model.state is not State.LOADING:
            return []
        self.workers.become_ready(model, memory_bytes, context, now)
        effects = self.planner.make_good(model, now)
        if model.is_ready:
            model.preload = model.queued_since = None
        effects += self.planner.settle(now)  # (5)
        asked = model.current.unload_asked
        return [*effects, *self.unload(name, now)] if asked else effects

    def load_failed(self, name: str, generation: int, reason: str, now: float) -> list[Effect]:
        """These files can never be served: FAILED once the process is gone."""
        model = self.state.living(name, generation)
        if model is None or model.state is not State.LOADING:
            return []
        stop = self.workers.fail_load(model, reason, now)
        error = refusals.failed(model)
        refused = [  # (5)
            *self.requests.drop_preload(model, error.message),
            *self.requests.turn_away(model, error),
        ]
        return [*refused, *stop, *self.planner.settle(now)]

    def broken(self, name: str, generation: int, reason: str, now: float) -> list[Effect]:
        """The process runs but can't be worked with any more: it must go."""
        model = self.state.living(name, generation)
        return [] if model is None else [*self._kill(model, reason, now), *self.planner.settle(now)]

    def progress(self, name: str, generation: int) -> None:
        """The worker has made a token for somebody."""
        model = self.state.living(name, generation)
        if model is not None:
            self.recovery.count_progress(model)

    def stalled(
        self, name: str, generation: int, how: str, now: float, death: Death | None = None
    ) -> list[Effect]:
        """The process lives and does not move: it must go, and those who are in it learn it now."""
        model = self.state.living(name, generation)
        if model is None or model.state not in (State.READY, State.DRAINING):
            return []
        error = refusals.stalled(model, how, death)
        effects = self.recovery.interrupt(model, error, now)  # (6)
        effects += self.workers.kill(model, f"it stalled: {how}", now, stacks=True)
        return [*effects, *self.planner.settle(now)]

    def dying(
        self, name: str, generation: int, how: str, now: float, death: Death | None = None
    ) -> list[Effect]:
        """A fatal signal has come. Nothing can save the process, and its end takes its time: those
        who are in it learn it now, with the `death` as far as it is understood."""
        model = self.state.living(name, generation)
        if model is None or model.state is State.STOPPING:
            return []
        effects = self._tell_of_death(model, how, now, death)  # (5), (6)
        self.workers.await_exit(model, how, now)
        return [*effects, *self.planner.settle(now)]

    def exited(
        self, name: str, generation: int, how: str, now: float, death: Death | None = None
    ) -> list[Effect]:
        """The process is reaped. `how` describes its end, such as "SIGABRT"; `death` is what is
        known of it if nobody had asked for it."""
        model = self.state.living(name, generation)
        if model is None:
            return []
        worker = model.current
        effects = self._tell_of_death(model, how, now, death)  # (5), (6)
        if worker.exit_is_crash:
            effects += self.recovery.record_death(model, death, now)
            if death is not None and death.permanent:
                worker.after_exit = Event.RELEASED_FAILED
                worker.stop_reason = f"{death.summary}. {death.advice}"
        if self.workers.reap(model, now):
            effects += self.memory.release(model, now)
        return [*effects, *self.planner.settle(now)]

    def _tell_of_death(
        self, model: Model, how: str, now: float, death: Death | None
    ) -> list[Effect]:
        """Who is in a worker that has ended, or waits for its load, learns it."""
        error = refusals.crashed(model, how, death)
        interrupted = self.recovery.interrupt(model, error, now)
        return [*interrupted, *self.requests.refuse_dead_load(model, error)]

    def _kill(self, model: Model, reason: str, now: float) -> list[Effect]:
        """The worker is at fault. Those who are in it learn it when it has ended."""
        if model.state is State.STOPPING:
            due = model.deadline
            soon = due is not None and due <= now + FAULT_SECONDS
            return [] if soon else self.workers.stop(model, now, kill=True)
        if model.state is not State.LOADING:
            self.workers.await_moment(model, reason, now)
            return []
        error = refusals.crashed(model, reason)
        refused = self.requests.refuse_dead_load(model, error)
        return [*refused, *self.workers.kill(model, reason, now)]

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def next_deadline(self) -> float | None:
        """When `tick` must be called next, monotonic seconds."""
        deadlines = [*self.planner.deadlines, *self.state.deadlines()]
        return min([at for at in deadlines if at is not None], default=None)

    def tick(self, now: float) -> list[Effect]:
        """Do what has fallen due."""
        effects: list[Effect] = []
        for model in self.models.values():
            ends = [(model.hold_ends(lease), lease) for lease in model.waiting.values()]
            for lease in [lease for at, lease in ends if at is not None and at <= now]:
                error = lease.error or self.planner.why_waiting(model, now)
                effects.append(self.requests.refuse(model, lease, error))  # (8)
            for lease in [each for each in model.returning.values() if each.deadline <= now]:
                effects += self.recovery.give_up(model, lease, now)
            if model.preload is not None and model.preload.deadline <= now:
                effects += self.requests.drop_preload(model, "there was no room")
            if model.deadline is not None and model.deadline <= now:
                effects += self._end_overdue_state(model, now)
            if model.idle_at is not None and model.idle_at <= now:
                effects += self.planner.unload_idle(model, now)
            if model.learned_limit is not None and model.learned_limit.ends <= now:
                effects += self.recovery.raise_limit(model, now)
        effects += self.loans.expire(now)
        effects += self.planner.keep_to_budget(now)
        effects += self.planner.trim_if_due(now)
        return [*effects, *self.planner.settle(now)]

    def _end_overdue_state(self, model: Model, now: float) -> list[Effect]:
        """The current state has lasted for as long as it may."""
        match model.state:
            case State.LOADING:
                error = refusals.load_stalled(model, self.state.limits.load_stall)
                refused = self.requests.refuse_failed_load(model, error)  # (5)
                return [*refused, *self.workers.kill_stalled_load(model, now)]
            case State.DRAINING:
                return self.planner.cut_drain(model, now)
            case State.CRASHED:
                self.workers.end_backoff(model)
                return [LogLine(f"{model.name} may be loaded again")]
            case State.RELEASING:
                worker = model.current
                held = gigabytes(self.state.ledger.of(worker.key))
                self.state.ledger.strand(worker.key)
                said = warning(f"{worker.name} left {held} behind")
                return [said, *self.memory.release(model, now)]
            case _:  # STOPPING: it ignored SIGTERM, or is at fault and lives
                return self.workers.stop(model, now, kill=True, stacks=True)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def shutdown(self, now: float) -> list[Effect]:
        """Admit nobody, let what runs finish until the drain deadline. Again: stop at once."""
        if self.state.shutting_down:
            return self.planner.stop_at_once(now)
        self.state.shutting_down = True
        effects: list[Effect] = []
        for model in self.models.values():
            model.preload = None
            for lease in list(model.returning.values()):
                effects += self.recovery.give_up(model, lease, now)
            effects += self.requests.refuse_waiting(model, refusals.shutting_down())
            if model.state is State.CRASHED:
                self.workers.end_backoff(model)
            elif model.state is State.LOADING:
                effects += self.workers.abort_load(model, now)
            elif model.state is State.READY:
                effects += self.workers.drain(model, DrainCause.SHUTDOWN, now)
            elif model.state is State.DRAINING:
                model.current.drain_cause = DrainCause.SHUTDOWN
        return [*effects, *self.planner.settle(now)]
