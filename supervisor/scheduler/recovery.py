"""What becomes of requests whose worker has died or had to stop.

Those who were in it are *returning* until their gateways have said how far they had come. What the
death means is decided once all of them have, or have left, and the cause is known:

1. Nearly every death is nobody's fault: all come back together, as many as have a place, and go on.
2. Unless something points at one, which is a *suspect* then: a minority had hardly begun while the
   others had tokens; it has died where it had died before; its digest has a death on record.
   Suspects get their place after the others, one at a time and once all before them are past the
   places of their deaths (*probation*). Nobody who is back stands still for them.
3. A death counts against a request if it was the only one in the worker that had not passed
   (`blame`). Then it is tried before the others, alone; the second time convicts it. If it passes,
   there were too many at once.
4. A crowd that has come back and dies again may be too large, whatever is said of the cause: half
   as many from then on, until one of them is found guilty.
"""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.errors import BulkheadError
from supervisor.scheduler import refusals
from supervisor.scheduler.blame import DEATHS_MAX, PROBATION_TOKENS, BlameRecords
from supervisor.scheduler.concurrency_limit import at_most, lowered, raised
from supervisor.scheduler.death import Death, Fault
from supervisor.scheduler.effects import (
    Effect,
    EndLease,
    Interrupt,
    LogLine,
    QuarantineRequest,
    RememberLimit,
    warning,
)
from supervisor.scheduler.lease import Lease, Suspicion, UndecidedDeath
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import QUIET_SECONDS, LearnedLimit, Model, Presumption
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.requests import Requests
from supervisor.scheduler.state import PoolState

RETURN_SECONDS = 5.0
"""How long a gateway may take to say where an interrupted request stands."""
_INTERRUPTIONS_MAX = 20
"""Of one request in all, whatever its progress."""
_STUCK = 2
"""Deaths without getting past the place of the one before that make a suspect."""


def hardly_begun(inside: Sequence[Lease]) -> list[Lease]:
    """Those who had hardly any output of their dead worker, if most of the others had."""
    few = [lease for lease in inside if lease.position - lease.start < PROBATION_TOKENS]
    return few if 2 * len(few) < len(inside) else []


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
        if interrupted and not parked:
            held = sum(lease.held for lease in interrupted.values())
            model.undecided = UndecidedDeath(list(interrupted.values()), held)
        for lease in interrupted.values():
            lease.error, lease.deadline = error, now + RETURN_SECONDS
            if parked and lease.suspicion is Suspicion.ON_PROBATION:
                lease.suspicion = Suspicion.SUSPECT
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
        allowed, in_flight = model.concurrency, model.current.in_flight_at_death
        effects = [] if death is None else self._lower_for_memory(model, death, now)
        undecided = model.undecided
        if undecided is not None and undecided.fault is None:
            undecided.fault = fault
            undecided.lowers = 0 < model.concurrency < (allowed or in_flight)
        # The death of one that is about to be quarantined says nothing about the model.
        if not (undecided is not None and self._will_convict(model, undecided, now)):
            back = (*model.returning.values(), *model.waiting.values())
            crowd = sum(lease.error is not None for lease in back) > 1
            model.current.backoff = model.breaker.died(now, crowd=crowd)
        return [*effects, *self.decide_death(model, now)]

    def _will_convict(self, model: Model, death: UndecidedDeath, now: float) -> bool:
        """Whether it will, as far as is known before those who were inside have returned."""
        if death.sequences > 1 or death.fault in (None, Fault.OUTSIDE) or not model.proven:
            return False
        (lease,) = death.inside
        return lease.awaited and self.blame.deaths(lease.digest, now) + 1 >= DEATHS_MAX

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
        effects = self.decide_death(model, now)
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
        return [self._requests.refuse(model, lease, error), *self.decide_death(model, now)]

    # ── what a death means for those who were inside ─────────────────────────────────────────────

    def decide_death(self, model: Model, now: float) -> list[Effect]:
        """Decide what the last death means, once its cause is known and all who were inside have
        returned or will not."""
        death = model.undecided
        if death is None or death.fault is None:
            return []
        if any(lease.id in model.returning for lease in death.inside):
            return []
        model.undecided = None
        inside, effects = death.inside, []
        for lease in inside:
            if lease.awaited and lease.position >= lease.until:
                effects += self.pass_place(model, lease, now)  # its word crossed that of the death
        on_trial = [lease for lease in inside if lease.awaited]
        may_be_theirs = death.fault is not Fault.OUTSIDE
        again = sum(lease.held for lease in inside if lease.deaths > 0) > 1
        counts, allowed = False, model.concurrency
        if may_be_theirs and len(on_trial) == 1:
            # What is out of memory with several in it is the fault of all of them, and a request
            # with several choices there is a crowd of its own: with one at a time it is judged.
            counts = death.sequences == 1 or (
                len(inside) > 1 and on_trial[0].held == 1 and death.fault is not Fault.MEMORY
            )
            if counts:
                effects += self._count_death(model, on_trial[0], inside, now)
        if may_be_theirs and again and not counts and not death.lowers:
            configured, many = model.spec.concurrency, death.sequences
            limit = lowered(model.learned_limit, configured, many, now)
            crowd = frozenset(lease.id for lease in inside)
            effects += self._presume(
                model, limit, crowd, f"has died again with {many} requests in it"
            )
        fewer = death.lowers or 0 < model.concurrency < (allowed or death.sequences)
        pointed = hardly_begun(inside) if may_be_theirs else []
        for lease in inside:
            lease.awaited = False
            lease.interruptions += 1
            lease.deaths += may_be_theirs
            lease.stuck += may_be_theirs
            if not fewer or not lease.unproductive:
                lease.unproductive += 1  # the next time will not be as this one
        for lease in inside:
            if lease.id in model.waiting:
                effects += self._suspect(model, lease, now, pointed=lease in pointed)
        return effects

    def _suspect(self, model: Model, lease: Lease, now: float, *, pointed: bool) -> list[Effect]:
        """Decide how one goes on that waits, or whether."""
        was_tried = lease.suspicion is Suspicion.ON_PROBATION
        deaths = self.blame.deaths(lease.digest, now)
        suspect = pointed or was_tried or lease.stuck >= _STUCK or (lease.stuck and deaths)
        lease.suspicion = Suspicion.SUSPECT if suspect else Suspicion.CLEAR
        guilty = self.blame.is_guilty(lease.digest, now)
        # Others wait for the verdict on who is accused, or may have to prove the model for it.
        awaits_verdict = deaths > 0 and len(model.waiting) > 1
        useless = lease.unproductive > self._state.rules.max_recoveries and not awaits_verdict
        if not useless and lease.interruptions <= _INTERRUPTIONS_MAX:
            return []
        if guilty:
            self.blame.clear(lease.digest)  # nobody makes a token: it is the model
        assert lease.error is not None
        return [self._requests.refuse(model, lease, lease.error)]

    def _count_death(
        self, model: Model, lease: Lease, inside: Sequence[Lease], now: float
    ) -> list[Effect]:
        """It died as the only one on trial. Where others get their tokens the second such death
        quarantines it and its equals, if it was truly alone."""
        alone = len(inside) == 1
        self.blame.add_death(lease.digest, now, alone=alone)
        if not alone:
            lease.accused_among = frozenset(each.id for each in inside)
        guilty = self.blame.is_guilty(lease.digest, now)
        return self._convict(model, lease) if guilty and model.proven else []

    def _convict(self, model: Model, lease: Lease) -> list[Effect]:
        """Quarantine it. What its deaths have taught of the model is forgotten, and before the next
        one is convicted the model has to make a token again."""
        self.blame.quarantine(lease.digest)
        model.proven = False
        equals = [each for each in model.waiting.values() if each.digest == lease.digest]
        error = refusals.quarantined(model)
        effects: list[Effect] = [QuarantineRequest(model.name, lease.request_id)]
        effects += [self._requests.refuse(model, each, error) for each in equals]
        if model.presumption is not None and lease.id in model.presumption.leases:
            effects += self.forget_presumption(model)
        return effects

    # ── coming back ──────────────────────────────────────────────────────────────────────────────

    def convict_proven(self, model: Model, now: float) -> list[Effect]:
        """READY: one who has died alone, twice, before anybody had a token is guilty if somebody
        has one now."""
        effects: list[Effect] = []
        for lease in model.suspects:
            guilty = model.proven and self.blame.is_guilty(lease.digest, now)
            if guilty and lease.id in model.waiting:
                effects += self._convict(model, lease)
        return effects

    def try_suspects(self, model: Model, now: float) -> list[Effect]:
        """READY, there are suspects, nobody is on probation: grant who comes next.

        Whoever is accused comes first, and alone. Then come the others, together; then, as soon as
        all of these have passed, the suspects one by one, the shortest way to the place of its
        death first.
        """

        def accused(lease: Lease) -> bool:
            guilty = self.blame.is_guilty(lease.digest, now)
            return self.blame.deaths(lease.digest, now) > 0 and not guilty

        def order(lease: Lease) -> tuple[bool, int, int]:
            return (self.blame.is_guilty(lease.digest, now), lease.position, lease.id)

        suspects = model.suspects
        if not model.granted and (first := [each for each in suspects if accused(each)]):
            return [self._try(model, first[0])] if self._requests.free_places(model) else []
        back = [each for each in model.waiting.values() if each.error is not None]
        clear = [each for each in back if each.suspicion is Suspicion.CLEAR]
        effects: list[Effect] = []
        for each in clear:
            if not self._requests.free_places(model):
                break
            effects.append(self._requests.grant(model, each))
        passed = not any(each.awaited for each in model.granted.values())
        if passed and self._requests.free_places(model):
            effects.append(self._try(model, min(suspects, key=order)))
        return effects

    def _try(self, model: Model, lease: Lease) -> Effect:
        lease.suspicion = Suspicion.ON_PROBATION
        return self._requests.grant(model, lease)

    def pass_place(self, model: Model, lease: Lease, now: float) -> list[Effect]:
        """It is awaited, and has got past the place of its death: that was not its fault. If it had
        been accused, more than there were beside it are too many."""
        self.blame.clear(lease.digest)
        lease.awaited, lease.suspicion = False, Suspicion.CLEAR
        lease.position = max(lease.position, lease.until)
        lease.unproductive = lease.stuck = 0
        crowd, lease.accused_among = lease.accused_among, frozenset()
        limit = at_most(model.learned_limit, model.spec.concurrency, len(crowd) - 1, now)
        if not crowd or limit is None:
            return []
        return self._presume(
            model, limit, crowd, f"has died with {len(crowd)} requests in it, and of no single one"
        )

    def forget_presumption(self, model: Model) -> list[Effect]:
        """Crowds were not too large, or somebody wants to try: the limit is what it was before."""
        presumed, model.presumption = model.presumption, None
        if presumed is None:
            return []
        model.learned_limit = presumed.before
        return [RememberLimit(model.name, presumed.before)]

    # ── what deaths teach about the model ────────────────────────────────────────────────────────

    def count_progress(self, model: Model) -> None:
        """The model has made a token for somebody: earlier deaths count no longer against it."""
        model.proven = True
        model.breaker.progressed()

    def _lower_for_memory(self, model: Model, death: Death, now: float) -> list[Effect]:
        """If it ran out of memory with requests in it, fewer at once from now on. A load that did
        is no request's fault. A SIGKILL that nobody explains may be anybody's: it is taken for want
        of memory only where memory is short."""
        in_flight = model.current.in_flight_at_death
        anybodys = death.unexplained and self._state.level is Level.NORMAL
        if not in_flight or death.fault is not Fault.MEMORY or anybodys:
            return []
        model.presumption = None
        limit = lowered(model.learned_limit, model.spec.concurrency, in_flight, now)
        return self._limit(model, limit, f"ran out of memory with {in_flight} requests in it")

    def _presume(
        self, model: Model, limit: LearnedLimit, crowd: frozenset[int], why: str
    ) -> list[Effect]:
        """The crowd was too large, unless one of it is found guilty."""
        known, before = model.presumption, model.learned_limit
        if known is not None:
            crowd, before = crowd | known.leases, known.before
        effects = self._limit(model, limit, why)
        model.presumption = Presumption(before, crowd)
        return effects

    def _limit(self, model: Model, limit: LearnedLimit, why: str) -> list[Effect]:
        model.learned_limit = limit
        return [
            RememberLimit(model.name, limit),
            warning(
                f"{model.name} {why}: at most {limit.concurrency} of model {model.name} run at "
                f"once until it has been quiet for {QUIET_SECONDS / 3600:g} hours"
            ),
        ]

    def raise_limit(self, model: Model, now: float) -> list[Effect]:
        """Twice as many at once, after a quiet while."""
        assert model.learned_limit is not None
        model.presumption = None
        model.learned_limit = raised(model.learned_limit, model.spec.concurrency, now)
        allowed = model.concurrency or "any number"
        return [
            RememberLimit(model.name, model.learned_limit),
            LogLine(f"{model.name} has not died of too many again: {allowed} may run at once"),
        ]
