"""Who gets which worker and whose memory, decided in one place and without I/O.

`Pool` owns every model's state. Each method is one event: it takes the time, changes the state by
the table in `lifecycle`, and returns the effects that the caller must carry out in order. Nothing
here blocks, sleeps, reads a clock or touches a process, so a test drives it step by step.

What an event does to a request:

1. acquire: shutting down → refuse; unknown name → refuse; FAILED → refuse with the reason; larger
   than the budget → refuse with the figures; as many requests as a queue bound → refuse.
2. acquire, READY → grant, unless all places are taken or the load gate is closed.
3. acquire otherwise → wait. Everyone who comes meanwhile waits for the one load.
4. every event ends in `_settle`: who can be granted is granted, then `admission.plan` says which
   model is loaded next and who must make room for it.
5. ready → grant all who wait. A death or a failed load refuses them.
6. exited with leases → each is interrupted exactly once, and returns or ends; suspects are granted
   one by one. Without recovery it ends.
7. A waiter that leaves cancels nothing: the load goes on for those who come next.
8. the hold is over → refuse, with what it was that kept the request waiting.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from supervisor.crashes.diagnosis import Crash
from supervisor.errors import BulkheadError, ModelLoadFailed, ModelUnavailable
from supervisor.scheduler import refusals
from supervisor.scheduler.blame import Fault
from supervisor.scheduler.concurrency_limit import LearnedLimit
from supervisor.scheduler.effects import (
    Effect,
    LogLine,
    Refuse,
    Shrink,
)
from supervisor.scheduler.lifecycle import Event, State
from supervisor.scheduler.model import (
    DrainCause,
    Entry,
    Lease,
    PreloadRequest,
    Purpose,
    Suspicion,
)
from supervisor.scheduler.planner import Scheduler
from supervisor.scheduler.pressure import Level


class Pool(Scheduler):
    """All models' entries and the decisions about them."""

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def acquire(
        self, request_id: str, model: str, hold: float, now: float, digest: bytes = b""
    ) -> tuple[int, list[Effect]]:
        """A request wants a place and waits at most `hold` seconds. Returns its lease's id."""
        number = next(self._ids)
        equals = digest or b"%d" % number  # without a digest it is told from none
        lease = Lease(number, request_id, now + hold, hold=hold, digest=equals)
        effects: list[Effect] = []
        try:
            if self.shutting_down:
                raise refusals.shutting_down()
            entry = self.resolve(model)
            if self.docket.guilty(lease.digest, now):
                raise refusals.guilty(entry)
            try:
                entry = self._admit(model, now)
            except (ModelLoadFailed, ModelUnavailable) as error:
                other = self._fallback(entry)
                if other is None:
                    raise
                effects.append(self._send_on(entry, lease, other, error))
                entry = other
            effects += self._find_place(entry, now)
        except BulkheadError as error:
            return lease.id, [Refuse(lease.id, error)]
        self.uses += 1
        entry.used(now, self.uses)
        self._leases[lease.id] = entry
        entry.waiting[lease.id] = lease
        return lease.id, [*effects, *self._settle(now)]

    def release(self, lease_id: int, now: float) -> list[Effect]:
        """The lease's connection closed. Unknown leases ended earlier and need nothing."""
        entry = self._leases.get(lease_id)
        if entry is None:
            return []
        if lease_id in entry.granted:
            entry.last_used = now
            entry.place_freed(now)
        self._forget(entry, lease_id)
        effects = self._judge(entry, now)
        return [*effects, *self._stop_if_drained(entry, now), *self._settle(now)]

    def returned(self, lease_id: int, position: int, now: float) -> list[Effect]:
        """An interrupted request stands at `position`, in tokens of its output, and wants to go on."""
        entry = self._leases.get(lease_id)
        lease = None if entry is None else entry.returning.pop(lease_id, None)
        if entry is None or lease is None:
            return []
        return [*self._take_back(entry, lease, position, now), *self._settle(now)]

    def passed(self, lease_id: int, now: float) -> list[Effect]:
        """A request has as many tokens as its grant asked for, or has ended."""
        entry = self._leases.get(lease_id)
        lease = None if entry is None else entry.granted.get(lease_id)
        if entry is None or lease is None:
            return []
        self._progressed(entry)
        if lease.standing is Suspicion.ON_TRIAL:
            self._acquit(lease)
        return self._settle(now)

    def fault(self, lease_id: int, reason: str, now: float) -> list[Effect]:
        """The gateway caught this lease's worker breaking the protocol: it must go."""
        entry = self._leases.get(lease_id)
        if entry is None or lease_id not in entry.granted:
            return []
        return [*self._kill(entry, reason, now), *self._settle(now)]

    # ── by hand ──────────────────────────────────────────────────────────────────────────────────

    def preload(self, model: str, now: float) -> list[Effect]:
        """Load without a request once it fits, evicting nobody; nothing where the model is on its
        way already."""
        entry = self.entries[model]
        if entry.state is not State.COLD or self.shutting_down:
            return []
        entry.wish = PreloadRequest(now, now + self.limits.preload)
        return self._settle(now)

    def load(
        self, request_id: str, model: str, hold: float, now: float
    ) -> tuple[int, list[Effect]]:
        """A person wants the model loaded: queues and makes room like a request, but is no use of
        the model and takes no place on the worker. Ends in Loaded or Refuse."""
        lease = Lease(next(self._ids), request_id, now + hold, Purpose.LOAD, hold)
        try:
            entry = self.resolve(model)
            self.changed(entry.spec.name)  # asked by hand: a failed load may be tried again
            self._admit(model, now)
            effects = [] if self._serves(entry) else self._find_place(entry, now)
        except BulkheadError as error:
            return lease.id, [Refuse(lease.id, error)]
        entry.unload_asked = False  # the later wish counts
        self._leases[lease.id] = entry
        entry.waiting[lease.id] = lease
        return lease.id, [*effects, *self._settle(now)]

    def unload(self, model: str, now: float) -> list[Effect]:
        """A person wants the model gone, pinned or not: once those who have a place, or wait for
        its running load, are served."""
        entry = self.entries[model]
        entry.wish = None
        effects: list[Effect] = []
        if entry.state is State.LOADING:
            entry.unload_asked = True
        elif entry.state is State.READY:
            effects = self._drain(entry, DrainCause.BY_HAND, self.limits.drain, now)
        elif entry.state is State.DRAINING and entry.drain_cause is DrainCause.EVICTION:
            entry.drain_cause = DrainCause.BY_HAND  # what is left at its end ends with it
        return [*effects, *self._settle(now)]

    def pin(self, model: str, now: float) -> list[Effect]:
        """Only an emergency or a person unloads this model from now on. One that drains already
        goes all the same."""
        self.entries[model].pinned = True
        return self._settle(now)

    def unpin(self, model: str, now: float) -> list[Effect]:
        """The opposite of `pin`, also of a configured one."""
        self.entries[model].pinned = False
        return self._settle(now)

    def changed(self, model: str) -> None:
        """The files of a model that can't be loaded, or keeps dying, are not what they were, or a
        person asks for it: it may be tried again."""
        entry = self.entries[model]
        if entry.state is State.FAILED:
            self._move(entry, Event.CHANGED)
            entry.reason = ""
        elif entry.state is State.CRASHED:
            self._move(entry, Event.BACKOFF_OVER)
            entry.deadline = None
        entry.backoff = None
        self._breakers[model].progressed()

    def estimated(
        self, model: str, estimate_bytes: int, headroom_bytes: int, now: float
    ) -> list[Effect]:
        """The model's files need so much from its next load on; of it, a load leaves so much
        untouched. What was learned of other files counts no longer."""
        entry = self.entries[model]
        if estimate_bytes != entry.spec.estimate_bytes:
            entry.learned_bytes = None
        entry.spec = replace(
            entry.spec, estimate_bytes=estimate_bytes, headroom_bytes=headroom_bytes
        )
        return self._settle(now)

    def recall(
        self,
        model: str,
        use_count: int,
        load_seconds: float | None,
        memory_bytes: int | None,
        limit: LearnedLimit | None = None,
    ) -> None:
        """What earlier runs of the supervisor have seen of the model; None = nothing of its files."""
        entry = self.entries[model]
        entry.learned_limit = limit
        entry.use_count, entry.load_seconds = use_count, load_seconds
        if memory_bytes is not None:
            self._learn(entry, memory_bytes)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    def started(self, model: str, generation: int, pid: int) -> None:
        """The process exists."""
        entry = self._current(model, generation)
        if entry is not None:
            entry.pid = pid

    def loading(self, model: str, generation: int, now: float) -> None:
        """The load made progress: its deadline starts anew."""
        entry = self._current(model, generation)
        if entry is not None and entry.state is State.LOADING:
            entry.deadline = now + self.limits.load_stall

    def ready(
        self, model: str, generation: int, memory_bytes: int, context: int, now: float
    ) -> list[Effect]:
        """The worker serves. `memory_bytes` is measured, `context` is in tokens."""
        entry = self._current(model, generation)
        if entry is None or entry.state is not State.LOADING:
            return []
        self._move(entry, Event.READY)
        entry.memory_bytes, entry.context = memory_bytes, context
        entry.load_seconds, entry.loaded_at = now - entry.load_started, now
        entry.idle_since, entry.deadline, entry.place_freed_at = now, None, None
        self._learn(entry, memory_bytes)
        self.ledger.measure(entry.key, entry.size)
        effects = self._make_good(entry, now)
        if self._serves(entry):
            entry.wish = entry.queued_since = None
        effects += self._settle(now)
        return [*effects, *self.unload(model, now)] if entry.unload_asked else effects

    def load_failed(self, model: str, generation: int, reason: str, now: float) -> list[Effect]:
        """These files can never be served: FAILED once the process is gone."""
        entry = self._current(model, generation)
        if entry is None or entry.state is not State.LOADING:
            return []
        entry.reason, entry.after_exit = reason, Event.RELEASED_FAILED
        error = refusals.failed(entry)
        refused = [*self._drop_wish(entry, error.message), *self._turn_away(entry, error)]
        self._move(entry, Event.LOAD_FAILED)
        return [*refused, *self._stop(entry, now), *self._settle(now)]

    def broken(self, model: str, generation: int, reason: str, now: float) -> list[Effect]:
        """The process runs but can't be worked with any more: it must go."""
        entry = self._current(model, generation)
        return [] if entry is None else [*self._kill(entry, reason, now), *self._settle(now)]

    def progress(self, model: str, generation: int) -> None:
        """The worker has made a token for somebody."""
        entry = self._current(model, generation)
        if entry is not None:
            self._progressed(entry)

    def stalled(
        self, model: str, generation: int, how: str, now: float, crash: Crash | None = None
    ) -> list[Effect]:
        """The process lives and does not move: it must go, and those who are in it learn it now."""
        entry = self._current(model, generation)
        if entry is None or entry.state not in (State.READY, State.DRAINING):
            return []
        effects = self._interrupt(entry, refusals.hung(entry, how, crash), now)
        self._move(entry, Event.KILL)
        entry.reason = f"it stalled: {how}"
        return [*effects, *self._stop(entry, now, kill=True, stacks=True), *self._settle(now)]

    def dying(
        self, model: str, generation: int, how: str, now: float, crash: Crash | None = None
    ) -> list[Effect]:
        """A fatal signal has come. Nothing can save the process, and its end takes its time: those
        who are in it learn it now, with the `crash` as far as it is understood."""
        entry = self._current(model, generation)
        if entry is None or entry.state is State.STOPPING:
            return []
        error = refusals.crashed(entry, how, crash)
        effects = [*self._interrupt(entry, error, now), *self._fail_load(entry, error)]
        self._move(entry, Event.KILL)
        entry.reason, entry.deadline = how, now + self._grace(entry)
        return [*effects, *self._settle(now)]

    def exited(
        self, model: str, generation: int, how: str, now: float, crash: Crash | None = None
    ) -> list[Effect]:
        """The process is reaped. `how` describes its end, such as "SIGABRT"; `crash` is what is
        known of it if nobody had asked for it."""
        entry = self._current(model, generation)
        if entry is None:
            return []
        error = refusals.crashed(entry, how, crash)
        effects = [*self._interrupt(entry, error, now), *self._fail_load(entry, error)]
        if entry.state is not State.STOPPING or entry.after_exit is Event.RELEASED_CRASHED:
            effects += self._died(entry, crash.diagnosis.fault if crash else Fault.REQUEST, now)
            effects += self._step_down(entry, crash.diagnosis, self.level, now) if crash else []
            if crash is not None and crash.diagnosis.permanent:
                entry.after_exit, entry.backoff = Event.RELEASED_FAILED, None
                entry.reason = f"{crash.diagnosis.summary}. {crash.diagnosis.advice}"
        return [*effects, *self._reaped(entry, now), *self._settle(now)]

    # ── memory ───────────────────────────────────────────────────────────────────────────────────

    def footprint(self, model: str, generation: int, size: int) -> None:
        """The living worker was seen to hold `size` bytes; needed where `release` is WHEN_SEEN."""
        self.ledger.footprint((model, generation), size)

    def memory_seen(self, unattributed: int, now: float) -> list[Effect]:
        """Bytes that are wired by no living process of ours, above the quiet baseline; read after
        the last exit that was reported, or they would speak of a process that lived then."""
        effects: list[Effect] = []
        for model, generation in self.ledger.observe(unattributed, now):
            entry = self.entries[model]
            if entry.state is State.RELEASING and entry.generation == generation:
                effects += self._released(entry, now)
        return [*effects, *self._settle(now)]

    def pressure(self, level: Level, figures: str, now: float) -> list[Effect]:
        """A reading's level, the same one or another; `figures` explains it in the log."""
        before, self.level, self._figures = self.level, level, figures
        effects: list[Effect] = []
        if level is not before:
            serious = logging.WARNING if level >= Level.HIGH else logging.INFO
            effects.append(LogLine(f"memory pressure is {level.name.lower()}: {figures}", serious))
        if level is Level.CRITICAL:
            effects += self._emergency(now)
        elif level >= Level.WARN:
            effects += self._clean_up(level, now)
        if before < Level.HIGH <= level:
            effects += [
                Shrink(entry.spec.name, entry.generation)
                for entry in self.entries.values()
                if entry.state is State.READY
            ]
        return [*effects, *self._settle(now)]

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def next_deadline(self) -> float | None:
        """When `tick` must be called next, monotonic seconds."""
        gate = None if self._gate is None else self._gate.since + self.rules.load_gate_timeout
        deadlines = [self._wake, self._cleanup_at, gate]
        for entry in self.entries.values():
            deadlines += (entry.deadline, entry.idle_at)
            if entry.learned_limit is not None and not self.shutting_down:
                deadlines.append(entry.learned_limit.ends)
            if entry.wish is not None:
                deadlines.append(entry.wish.deadline)
            for leases in (entry.waiting, entry.returning):
                if leases:
                    deadlines.append(min([lease.deadline for lease in leases.values()]))
        return min([at for at in deadlines if at is not None], default=None)

    def tick(self, now: float) -> list[Effect]:
        """Do what has fallen due."""
        effects: list[Effect] = []
        for entry in self.entries.values():
            for lease in [lease for lease in entry.waiting.values() if lease.deadline <= now]:
                error = lease.error or self._hold_over(entry, now)
                effects.append(self._refuse(entry, lease, error))
            for lease in [each for each in entry.returning.values() if each.deadline <= now]:
                effects += self._abandon(entry, lease, now)
            if entry.wish is not None and entry.wish.deadline <= now:
                effects += self._drop_wish(entry, "there was no room")
            if entry.deadline is not None and entry.deadline <= now:
                effects += self._overdue(entry, now)
            if entry.idle_at is not None and entry.idle_at <= now:
                effects.append(
                    LogLine(f"{entry.worker} was idle for {entry.spec.ttl:g} s: unloaded")
                )
                effects += self._drain(entry, DrainCause.EVICTION, self.limits.drain, now)
            if entry.learned_limit is not None and entry.learned_limit.ends <= now:
                effects += self._climb(entry, now)
        if self._cleanup_at is not None and self._cleanup_at <= now:
            self._cleanup_at = None
            effects += self._trim(now)
        return [*effects, *self._settle(now)]

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def shutdown(self, now: float) -> list[Effect]:
        """Admit nobody, let what runs finish until the drain deadline. Again: stop at once."""
        effects: list[Effect] = []
        if self.shutting_down:
            for entry in self.entries.values():
                if entry.state is State.DRAINING:
                    effects += self._cut(entry, now)
                elif entry.state is State.STOPPING:
                    effects += self._stop(entry, now, kill=True)
            return effects
        self.shutting_down = True
        for entry in self.entries.values():
            entry.wish = None
            for lease in list(entry.returning.values()):
                effects += self._abandon(entry, lease, now)
            effects += self._refuse_waiting(entry, refusals.shutting_down())
            if entry.state is State.CRASHED:
                self._move(entry, Event.BACKOFF_OVER)
                entry.deadline = None
            elif entry.state is State.LOADING:
                effects += self._abort_load(entry, now)
            elif entry.state is State.READY:
                effects += self._drain(entry, DrainCause.SHUTDOWN, self.limits.drain, now)
            elif entry.state is State.DRAINING:
                entry.drain_cause = DrainCause.SHUTDOWN
        return [*effects, *self._settle(now)]

    # ── places ───────────────────────────────────────────────────────────────────────────────────

    def _admit(self, model: str, now: float) -> Entry:
        if self.shutting_down:
            raise refusals.shutting_down()
        entry = self.resolve(model)
        if entry.state is State.FAILED:
            raise refusals.failed(entry)
        if entry.state is State.CRASHED:
            raise refusals.unavailable(entry, now)
        on_its_way = entry.state in (State.READY, State.LOADING)
        if not on_its_way and not self.ledger.can_ever_fit(entry.size):
            assert self.ledger.budget is not None
            raise refusals.too_large(entry, self.ledger.budget)
        return entry

    def _find_place(self, entry: Entry, now: float) -> list[Effect]:
        """Room for one more in the queues. Raises QueueFull.

        When all places together are taken, a model with fewer requests displaces the last one that
        waits for the model with the most: one busy model must not shut out all the others.
        """
        if entry.requests >= entry.spec.capacity:
            raise refusals.queue_full(entry, now)
        limit = self.rules.max_requests
        if not limit or len(self._leases) < limit:
            return []

        queues = [other for other in self.entries.values() if other.waiting]
        longest = max(queues, key=lambda other: other.requests, default=entry)
        error = refusals.server_full(entry, limit, now)
        if longest.requests <= entry.requests + 1:
            raise error
        # A load by hand has no place to give, and who has been interrupted keeps its own.
        waiting = (each for each in longest.waiting.values() if each.purpose is Purpose.REQUEST)
        newcomers = [each for each in waiting if each.error is None]
        if not newcomers:
            raise error
        return [self._refuse(longest, newcomers[-1], error)]
