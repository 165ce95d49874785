"""Requests and their places: who waits, who is granted, who returns after a death.

A step does one thing to one entry and returns its effects. After a death those who were in the
worker are *returning* until their gateways have said how far they had come; then they wait like
others, but first, and as suspects one by one (`blame`).
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Mapping

from supervisor.crashes.diagnosis import Cause, Diagnosis
from supervisor.errors import BulkheadError
from supervisor.scheduler import refusals
from supervisor.scheduler.blame import PROBATION, STRIKES, BlameRecords, Fault
from supervisor.scheduler.breaker import Breaker
from supervisor.scheduler.concurrency_limit import QUIET_SECONDS, climbed, stepped_down
from supervisor.scheduler.effects import (
    Effect,
    EndLease,
    Grant,
    Interrupt,
    Loaded,
    LogLine,
    QuarantineRequest,
    Refuse,
    RememberLimit,
    Unpause,
)
from supervisor.scheduler.ledger import Ledger
from supervisor.scheduler.lifecycle import Event, State, transition
from supervisor.scheduler.model import Entry, Lease, Limits, Purpose, Rules, Spec, Suspicion
from supervisor.scheduler.pressure import Level

DEFAULT_MODEL = "default_model"
"""The name by which mlx_lm.server's clients ask for whatever is served."""
RETURN_SECONDS = 5.0
"""How long a gateway may take to say where an interrupted request stands."""
_INTERRUPTIONS_MAX = 20
"""Of one request in all, whatever its progress."""


class Leases:
    """Entries by name; every lease that is open; one ledger for all."""

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
        """`jitter` gives numbers from 0 to 1."""
        self.entries: dict[str, Entry] = {spec.name: Entry(spec, pinned=spec.pin) for spec in specs}
        self.limits = limits or Limits()
        self.rules = rules or Rules()
        self.ledger = Ledger(budget)
        self.uses = 0
        """Requests over all models, the clock by which frequencies age."""
        self.shutting_down = False
        self._names: Mapping[str, str] = {
            alias: entry.spec.name
            for entry in self.entries.values()
            for alias in (*entry.spec.aliases, entry.spec.name)
        }
        self._default = default_model
        self.docket = BlameRecords()
        rules = self.rules
        self._breakers = {
            name: Breaker(rules.max_restarts, rules.restart_window, rules.backoff_max, jitter)
            for name in self.entries
        }
        self._leases: dict[int, Entry] = {}
        self._ids = itertools.count(1)

    def resolve(self, requested: str) -> Entry:
        """The entry that a request's `model` means. Raises ModelNotFound.

        An exact name or alias wins; then Ollama's `:latest` is dropped; an empty name and
        "default_model" mean the configured default.
        """
        if requested in ("", DEFAULT_MODEL) and requested not in self._names:
            requested = self._default
        name = self._names.get(requested) or self._names.get(requested.removesuffix(":latest"))
        if name is None:
            raise refusals.unknown(requested) if requested else refusals.unnamed()
        return self.entries[name]

    def _move(self, entry: Entry, event: Event) -> None:
        entry.state = transition(entry.state, event)

    # ── granting ─────────────────────────────────────────────────────────────────────────────────

    def _grant_waiting(self, entry: Entry, now: float, *, gate_closed: bool) -> list[Effect]:
        """READY: serve in the order of arrival as many as have a place; suspects before them, one
        at a time."""
        effects: list[Effect] = []
        for lease in [lease for lease in entry.waiting.values() if lease.purpose is Purpose.LOAD]:
            self._forget(entry, lease.id)
            effects.append(Loaded(lease.id, entry.spec.name, entry.worker))
        if entry.returning or entry.on_trial:
            return effects
        if suspects := entry.suspects:
            # The gate is open to them while others are paused: a load would wait for those.
            if entry.granted or not gate_closed:
                effects.append(self._try(entry, suspects, now))
            return effects
        effects += self._proceed(entry)
        if gate_closed or not entry.waiting:
            return effects
        breaker = self._breakers[entry.spec.name]
        limit = entry.concurrency or len(entry.granted) + len(entry.waiting)
        if breaker.trips:
            limit = 1  # the probe: the others come when it has a token
        places = max(0, limit - len(entry.granted))
        doubted = not entry.proven or breaker.doubts
        for lease in list(itertools.islice(entry.waiting.values(), places)):
            effects.append(self._grant(entry, lease, lease.position + 1 if doubted else 0))
        return effects

    def _proceed(self, entry: Entry) -> list[Effect]:
        """All trials are over: those who have passed go on."""
        paused = [each for each in entry.granted.values() if each.standing is Suspicion.PAUSED]
        for lease in paused:
            lease.standing = Suspicion.CLEAR
        return [Unpause(lease.id) for lease in paused]

    def _try(self, entry: Entry, suspects: list[Lease], now: float) -> Effect:
        """Grant one of them alone: the one with the shortest way to the place of its death, and one
        that has died alone already behind those that have not."""
        strikes = self.docket.strikes
        lease = min(suspects, key=lambda each: (strikes(each.digest, now), each.position, each.id))
        lease.standing = Suspicion.ON_TRIAL
        lease.until = lease.position + PROBATION
        lease.pauses = len(suspects) > 1
        return self._grant(entry, lease, lease.until, lease.pauses)

    def _grant(
        self, entry: Entry, lease: Lease, until: int = 0, then_pause: bool = False
    ) -> Effect:
        del entry.waiting[lease.id]
        entry.granted[lease.id] = lease
        name, generation = entry.spec.name, entry.generation
        return Grant(lease.id, name, entry.worker, generation, until, then_pause, lease.asked)

    # ── refusing ─────────────────────────────────────────────────────────────────────────────────

    def _forget(self, entry: Entry, lease_id: int) -> None:
        """A lease has ended."""
        del self._leases[lease_id]
        for leases in (entry.waiting, entry.granted, entry.returning):
            lease = leases.pop(lease_id, None)
            if lease is not None and lease.unjudged and lease.standing is Suspicion.ON_TRIAL:
                entry.absent = lease  # its equals may come

    def _refuse(self, entry: Entry, lease: Lease, error: BulkheadError) -> Effect:
        self._forget(entry, lease.id)
        return Refuse(lease.id, error)

    def _refuse_waiting(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        return [self._refuse(entry, lease, error) for lease in list(entry.waiting.values())]

    def _fallback(self, entry: Entry) -> Entry | None:
        """The model that serves in place of an unavailable one, if it has one that can. Only one
        step far: who is sent on and on never learns who answers."""
        if not entry.spec.fallback:
            return None
        other = self.resolve(entry.spec.fallback)
        usable = other.state not in (State.FAILED, State.CRASHED)
        fits = self.ledger.can_ever_fit(other.size)
        return other if usable and fits and other.requests < other.spec.capacity else None

    def _send_on(self, entry: Entry, lease: Lease, other: Entry, error: BulkheadError) -> Effect:
        """`other` is the fallback of a model that is unavailable."""
        lease.asked = entry.spec.name
        return LogLine(
            f"{lease.request_id} asked for {entry.spec.name} and is served by its fallback "
            f"{other.spec.name}: {error.message}",
            logging.WARNING,
        )

    def _turn_away(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        """The model is unavailable: who waits goes to its fallback, if it has one. Who has tokens of
        this model's can't."""
        effects: list[Effect] = []
        for lease in list(entry.waiting.values()):
            other = self._fallback(entry)
            if other is None or lease.position or lease.asked or lease.purpose is Purpose.LOAD:
                effects.append(self._refuse(entry, lease, error))
                continue
            effects.append(self._send_on(entry, lease, other, error))
            del entry.waiting[lease.id]
            lease.standing = Suspicion.CLEAR
            self._leases[lease.id] = other
            other.waiting = dict(sorted({**other.waiting, lease.id: lease}.items()))
        return effects

    def _refuse_load(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        """A load has failed: who came for it was part of its end. Who waits while a worker is on
        its way out was not, and waits for the next; and who was interrupted or parked before has an
        answer under way, and does as well."""
        if entry.state is not State.LOADING:
            return []
        came = [lease for lease in entry.waiting.values() if lease.error is None]
        refused = [self._refuse(entry, lease, error) for lease in came]
        return [*self._drop_wish(entry, error.message), *refused]

    def _drop_wish(self, entry: Entry, why: str) -> list[Effect]:
        """A preload has failed, which stops nobody and is told."""
        if entry.wish is None:
            return []
        entry.wish = None
        return self._warn(f"{entry.spec.name} is not preloaded: {why}")

    def _fail_load(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        """A process has died while it loaded. With recovery its requests wait for the next one."""
        if self.rules.recovery == "off" or entry.state is not State.LOADING:
            return self._refuse_load(entry, error)
        waiting = list(entry.waiting.values())
        by_hand = [lease for lease in waiting if lease.purpose is Purpose.LOAD]
        return [self._refuse(entry, lease, error) for lease in by_hand]

    # ── after a death ────────────────────────────────────────────────────────────────────────────

    def _interrupt(
        self, entry: Entry, error: BulkheadError, now: float, *, parked: bool = False
    ) -> list[Effect]:
        """The worker is gone, or stops where the requests are `parked`: have them return."""
        entry.crowd = len(entry.granted) or entry.crowd
        if self.rules.recovery == "off" or self.shutting_down:
            return self._bury(entry, error)
        interrupted, entry.granted = entry.granted, {}
        for lease in interrupted.values():
            lease.error, lease.unjudged, lease.fault = error, not parked, None
            lease.deadline = now + RETURN_SECONDS
            if parked:
                on_trial = lease.standing is Suspicion.ON_TRIAL
                lease.standing = Suspicion.SUSPECT if on_trial else Suspicion.CLEAR
            entry.returning[lease.id] = lease
        return [Interrupt(lease, error) for lease in interrupted]

    def _bury(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        """End those who have a place."""
        buried, entry.granted = entry.granted, {}
        for lease in buried:
            del self._leases[lease]
        return [EndLease(lease, error) for lease in buried]

    def _take_back(self, entry: Entry, lease: Lease, position: int, now: float) -> list[Effect]:
        """A request has returned with so many tokens: it waits, before those who came later."""
        if position > lease.position:
            lease.position, lease.unproductive = position, 0
            self._progressed(entry)
        lease.deadline = now + lease.hold
        entry.waiting = dict(sorted({**entry.waiting, lease.id: lease}.items()))
        effects = self._judge(entry, now)
        if lease.id not in entry.waiting:
            return effects
        assert lease.error is not None
        if self.rules.recovery == "replay" and position:
            return [*effects, self._refuse(entry, lease, lease.error)]
        if entry.state is State.FAILED:
            return [*effects, *self._turn_away(entry, refusals.failed(entry))]
        if entry.state is State.CRASHED:
            return [*effects, *self._turn_away(entry, refusals.unavailable(entry, now))]
        return effects

    def _judge(self, entry: Entry, now: float) -> list[Effect]:
        """What their last death means for those who have returned from it, or will not, once its
        cause is known."""
        effects: list[Effect] = []
        absent = entry.absent
        if absent is not None and absent.fault is not None:
            entry.absent = None
            effects += self._weigh(entry, absent, absent.fault, now)
        for lease in list(entry.waiting.values()):
            if lease.unjudged and lease.fault is not None and lease.id in entry.waiting:
                lease.unjudged = False
                effects += self._judge_one(entry, lease, lease.fault, now)
        return effects

    def _judge_one(self, entry: Entry, lease: Lease, fault: Fault, now: float) -> list[Effect]:
        was, lease.standing = lease.standing, Suspicion.CLEAR
        if was is Suspicion.PAUSED:
            return []  # it was not running
        lease.unproductive += 1
        lease.interruptions += 1
        tried = was is Suspicion.ON_TRIAL
        if tried or fault is not Fault.OUTSIDE:
            lease.standing = Suspicion.SUSPECT
        effects = self._weigh(entry, lease, fault, now) if tried else []
        useless = lease.unproductive > self.rules.max_recoveries
        if lease.id in entry.waiting and (useless or lease.interruptions > _INTERRUPTIONS_MAX):
            assert lease.error is not None
            effects.append(self._refuse(entry, lease, lease.error))
        return effects

    def _weigh(self, entry: Entry, lease: Lease, fault: Fault, now: float) -> list[Effect]:
        """It died alone: a strike, unless it got past where it had been. Where others get their
        tokens the second one is a verdict, on its equals as well."""
        if lease.position >= lease.until:
            self.docket.clear(lease.digest)
        if lease.position >= lease.until or fault is Fault.OUTSIDE:
            return []
        if self.docket.strike(lease.digest, now) < STRIKES or not entry.proven:
            return []
        self.docket.convict(lease.digest)
        equals = [each for each in entry.waiting.values() if each.digest == lease.digest]
        refused = [self._refuse(entry, each, refusals.guilty(entry)) for each in equals]
        return [QuarantineRequest(entry.spec.name, lease.request_id), *refused]

    def _abandon(self, entry: Entry, lease: Lease, now: float) -> list[Effect]:
        """Give up waiting for an interrupted request."""
        error = refusals.shutting_down() if self.shutting_down else lease.error
        assert error is not None
        return [self._refuse(entry, lease, error), *self._judge(entry, now)]

    def _acquit(self, lease: Lease) -> None:
        """A suspect has got past the place of its death."""
        self.docket.clear(lease.digest)
        lease.standing = Suspicion.PAUSED if lease.pauses else Suspicion.CLEAR
        lease.position = max(lease.position, lease.until)
        lease.unproductive = 0

    def _progressed(self, entry: Entry) -> None:
        """The model has made a token for somebody."""
        entry.proven = True
        self._breakers[entry.spec.name].progressed()

    def _died(self, entry: Entry, fault: Fault, now: float) -> list[Effect]:
        """An unasked death, whose cause is known now."""
        entry.deaths += 1
        everyone = [*entry.returning.values(), *entry.waiting.values()]
        if entry.absent is not None:
            everyone.append(entry.absent)
        concerned = [lease for lease in everyone if lease.unjudged and lease.fault is None]
        for lease in concerned:
            lease.fault = fault
        # The death of one that is about to be found guilty says nothing about the model.
        convicts = any(
            lease.standing is Suspicion.ON_TRIAL
            and self.docket.strikes(lease.digest, now) + 1 >= STRIKES
            for lease in concerned
        )
        if not (convicts and entry.proven and fault is not Fault.OUTSIDE):
            entry.backoff = self._breakers[entry.spec.name].died(now)
        return self._judge(entry, now)

    def _step_down(
        self, entry: Entry, diagnosis: Diagnosis, level: Level, now: float
    ) -> list[Effect]:
        """If it ran out of memory with a crowd in it, fewer at once from now on. A load that did is
        no crowd's fault. A SIGKILL that nobody explains may be anybody's: it is taken for want of
        memory only where there is some."""
        crowd = entry.crowd
        unexplained = diagnosis.cause is Cause.KILLED and level is Level.NORMAL
        if not crowd or not diagnosis.memory or unexplained:
            return []
        configured = entry.spec.concurrency
        limit = entry.learned_limit = stepped_down(entry.learned_limit, configured, crowd, now)
        return [
            RememberLimit(entry.spec.name, limit),
            *self._warn(
                f"{entry.worker} ran out of memory with {crowd} requests in it: at most "
                f"{limit.concurrency} of model {entry.spec.name} run at once until it has been "
                f"quiet for {QUIET_SECONDS / 3600:g} hours"
            ),
        ]

    def _climb(self, entry: Entry, now: float) -> list[Effect]:
        """Twice as many at once, after a quiet while."""
        assert entry.learned_limit is not None
        entry.learned_limit = climbed(entry.learned_limit, entry.spec.concurrency, now)
        allowed = entry.concurrency or "any number"
        return [
            RememberLimit(entry.spec.name, entry.learned_limit),
            LogLine(
                f"{entry.spec.name} has not run out of memory again: {allowed} may run at once"
            ),
        ]

    def _warn(self, text: str) -> list[Effect]:
        return [LogLine(text, logging.WARNING)]
