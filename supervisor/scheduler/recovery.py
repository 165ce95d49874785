"""What becomes of requests whose worker has died or had to stop.

Those who were in it are *returning* until their gateways have said how far they had come; then they
wait like others, but first, and as suspects one by one, on probation (`blame`). What a death means
for a request is decided once it has returned, or has left, and the cause is known.
"""

from __future__ import annotations

from supervisor.errors import BulkheadError
from supervisor.scheduler import refusals
from supervisor.scheduler.blame import DEATHS_ALONE_MAX, PROBATION_TOKENS, BlameRecords
from supervisor.scheduler.concurrency_limit import lowered, raised
from supervisor.scheduler.death import Death, Fault
from supervisor.scheduler.effects import (
    Effect,
    EndLease,
    Interrupt,
    LogLine,
    QuarantineRequest,
    RememberLimit,
    Unpause,
    warning,
)
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import QUIET_SECONDS, Lease, Model, Suspicion
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.state import PoolState

RETURN_SECONDS = 5.0
"""How long a gateway may take to say where an interrupted request stands."""
_INTERRUPTIONS_MAX = 20
"""Of one request in all, whatever its progress."""


class Recovery:
    """Interruptions, returns, probation and quarantine, the breaker, and the learned limits."""

    def __init__(self, state: PoolState, requests: Requests) -> None:
        self.blame = BlameRecords()
        self._state = state
        self._requests = requests

    # ── a worker is gone, or has to go ───────────────────────────────────────────────────────────

    def interrupt(
        self, model: Model, error: BulkheadError, now: float, *, parked: bool = False
    ) -> list[Effect]:
        """The worker has died, or stops where its requests are `parked`: have them return. Without
        recovery they end."""
        worker = model.current
        worker.in_flight_at_death = model.in_flight or worker.in_flight_at_death
        if self._state.rules.recovery == "off" or self._state.shutting_down:
            return self.end_granted(model, error)
        interrupted, model.granted = model.granted, {}
        for lease in interrupted.values():
            lease.error, lease.death_undecided, lease.fault = error, not parked, None
            lease.deadline = now + RETURN_SECONDS
            if parked:
                on_probation = lease.suspicion is Suspicion.ON_PROBATION
                lease.suspicion = Suspicion.SUSPECT if on_probation else Suspicion.CLEAR
            model.returning[lease.id] = lease
        return [Interrupt(lease, error) for lease in interrupted]

    def end_granted(self, model: Model, error: BulkheadError) -> list[Effect]:
        """End the leases of those who have a place."""
        ended, model.granted = model.granted, {}
        for lease in ended:
            del self._state.leases[lease]
        return [EndLease(lease, error) for lease in ended]

    def record_death(self, model: Model, death: Death | None, now: float) -> list[Effect]:
        """A worker's unasked end, whose cause is known now as far as it ever will be."""
        fault = Fault.REQUEST if death is None else death.fault
        model.deaths += 1
        inside = [*model.returning.values(), *model.waiting.values()]
        if model.left_on_probation is not None:
            inside.append(model.left_on_probation)
        concerned = [lease for lease in inside if lease.death_undecided and lease.fault is None]
        for lease in concerned:
            lease.fault = fault
        # The death of one that is about to be quarantined says nothing about the model.
        quarantines = any(
            lease.suspicion is Suspicion.ON_PROBATION
            and self.blame.deaths_alone(lease.digest, now) + 1 >= DEATHS_ALONE_MAX
            for lease in concerned
        )
        if not (quarantines and model.proven and fault is not Fault.OUTSIDE):
            model.current.backoff = model.breaker.died(now)
        effects = self.decide_deaths(model, now)
        return effects if death is None else [*effects, *self._lower_limit(model, death, now)]

    # ── returning ────────────────────────────────────────────────────────────────────────────────

    def take_back(
        self, model: Model, lease: Lease, position: int, now: float, hold: float = 0
    ) -> list[Effect]:
        """A request has returned with so many tokens of output: it waits, before those who came
        later; from now on at most `hold` seconds, 0 = as long as before."""
        if position > lease.position:
            lease.position, lease.unproductive = position, 0
            self.count_progress(model)
        lease.hold = hold or lease.hold
        lease.deadline = now + lease.hold
        self._requests.enqueue(model, lease)
        effects = self.decide_deaths(model, now)
        if lease.id not in model.waiting:
            return effects
        assert lease.error is not None
        if self._state.rules.recovery == "replay" and position:
            return [*effects, self._requests.refuse(model, lease, lease.error)]
        if model.state is State.FAILED:
            return [*effects, *self._requests.turn_away(model, refusals.failed(model))]
        if model.state is State.CRASHED:
            return [*effects, *self._requests.turn_away(model, refusals.unavailable(model, now))]
        return effects

    def give_up(self, model: Model, lease: Lease, now: float) -> list[Effect]:
        """Wait no longer for an interrupted request to return."""
        error = refusals.shutting_down() if self._state.shutting_down else lease.error
        assert error is not None
        return [self._requests.refuse(model, lease, error), *self.decide_deaths(model, now)]

    # ── what a death means for those who were inside ─────────────────────────────────────────────

    def decide_deaths(self, model: Model, now: float) -> list[Effect]:
        """Decide what their last death means for those who have returned from it, or will not, once
        its cause is known."""
        effects: list[Effect] = []
        left = model.left_on_probation
        if left is not None and left.fault is not None:
            model.left_on_probation = None
            effects += self._count_death_alone(model, left, left.fault, now)
        for lease in list(model.waiting.values()):
            if lease.death_undecided and lease.fault is not None and lease.id in model.waiting:
                lease.death_undecided = False
                effects += self._decide_death(model, lease, lease.fault, now)
        return effects

    def _decide_death(self, model: Model, lease: Lease, fault: Fault, now: float) -> list[Effect]:
        before, lease.suspicion = lease.suspicion, Suspicion.CLEAR
        if before is Suspicion.PAUSED:
            return []  # it was not running
        lease.unproductive += 1
        lease.interruptions += 1
        alone = before is Suspicion.ON_PROBATION
        if alone or fault is not Fault.OUTSIDE:
            lease.suspicion = Suspicion.SUSPECT
        effects = self._count_death_alone(model, lease, fault, now) if alone else []
        useless = lease.unproductive > self._state.rules.max_recoveries
        if lease.id in model.waiting and (useless or lease.interruptions > _INTERRUPTIONS_MAX):
            assert lease.error is not None
            effects.append(self._requests.refuse(model, lease, lease.error))
        return effects

    def _count_death_alone(
        self, model: Model, lease: Lease, fault: Fault, now: float
    ) -> list[Effect]:
        """It died on probation, which counts against it unless it got past where it had been. Where
        others get their tokens the second such death quarantines it and its equals."""
        if lease.position >= lease.until:
            self.blame.clear(lease.digest)
        if lease.position >= lease.until or fault is Fault.OUTSIDE:
            return []
        deaths = self.blame.add_death_alone(lease.digest, now)
        if deaths < DEATHS_ALONE_MAX or not model.proven:
            return []
        self.blame.quarantine(lease.digest)
        equals = [each for each in model.waiting.values() if each.digest == lease.digest]
        error = refusals.quarantined(model)
        refused = [self._requests.refuse(model, each, error) for each in equals]
        return [QuarantineRequest(model.name, lease.request_id), *refused]

    # ── probation ────────────────────────────────────────────────────────────────────────────────

    def try_suspects(self, model: Model, now: float, *, gate_closed: bool) -> list[Effect]:
        """READY, nobody on probation: grant one of the suspects alone, if it is their turn.

        Those who have passed pause in the worker until the last one has. They keep their places, of
        which there may be too few: each may pass alone, and all at once run out of memory again.
        Then those who have one go on, and the next are tried once these have ended.
        """
        suspects, granted, limit = model.suspects, model.granted, model.concurrency
        if any(lease.suspicion is not Suspicion.PAUSED for lease in granted.values()):
            return self.unpause(model)
        # The gate is open to them while others are paused: a load would wait for those.
        if gate_closed and not granted:
            return []

        def order(lease: Lease) -> tuple[int, int, int]:
            # The shortest way to the place of its death, and who died alone after who did not.
            return (self.blame.deaths_alone(lease.digest, now), lease.position, lease.id)

        lease = min(suspects, key=order)
        lease.suspicion = Suspicion.ON_PROBATION
        lease.until = lease.position + PROBATION_TOKENS
        last = len(suspects) == 1 or len(granted) + 1 == limit
        lease.pauses = not last
        return [self._requests.grant(model, lease, lease.until, lease.pauses)]

    def pass_probation(self, lease: Lease) -> None:
        """It has got past the place of its death. Nothing where it is not on probation."""
        if lease.suspicion is not Suspicion.ON_PROBATION:
            return
        self.blame.clear(lease.digest)
        lease.suspicion = Suspicion.PAUSED if lease.pauses else Suspicion.CLEAR
        lease.position = max(lease.position, lease.until)
        lease.unproductive = 0

    def unpause(self, model: Model) -> list[Effect]:
        """Those who have passed their probation and pause go on."""
        paused = [each for each in model.granted.values() if each.suspicion is Suspicion.PAUSED]
        for lease in paused:
            lease.suspicion = Suspicion.CLEAR
        return [Unpause(lease.id) for lease in paused]

    # ── what deaths teach about the model ────────────────────────────────────────────────────────

    def count_progress(self, model: Model) -> None:
        """The model has made a token for somebody: earlier deaths count no longer against it."""
        model.proven = True
        model.breaker.progressed()

    def _lower_limit(self, model: Model, death: Death, now: float) -> list[Effect]:
        """If it ran out of memory with requests in it, fewer at once from now on. A load that did
        is no request's fault. A SIGKILL that nobody explains may be anybody's: it is taken for want
        of memory only where memory is short."""
        worker = model.current
        in_flight = worker.in_flight_at_death
        anybodys = death.unexplained and self._state.level is Level.NORMAL
        if not in_flight or death.fault is not Fault.MEMORY or anybodys:
            return []
        configured = model.spec.concurrency
        limit = model.learned_limit = lowered(model.learned_limit, configured, in_flight, now)
        return [
            RememberLimit(model.name, limit),
            warning(
                f"{worker.name} ran out of memory with {in_flight} requests in it: at most "
                f"{limit.concurrency} of model {model.name} run at once until it has been "
                f"quiet for {QUIET_SECONDS / 3600:g} hours"
            ),
        ]

    def raise_limit(self, model: Model, now: float) -> list[Effect]:
        """Twice as many at once, after a quiet while."""
        assert model.learned_limit is not None
        model.learned_limit = raised(model.learned_limit, model.spec.concurrency, now)
        allowed = model.concurrency or "any number"
        return [
            RememberLimit(model.name, model.learned_limit),
            LogLine(f"{model.name} has not run out of memory again: {allowed} may run at once"),
        ]
