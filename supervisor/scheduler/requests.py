"""Requests and their places: who may come, who waits, who is granted, who is refused.

A lease is one request's place: it waits, is granted, or returns after its worker has died
(`recovery`), and ends exactly once.
"""

from __future__ import annotations

import itertools

from supervisor.errors import BulkheadError
from supervisor.scheduler import places, refusals
from supervisor.scheduler.blame import PROBATION_TOKENS
from supervisor.scheduler.effects import Effect, Grant, Loaded, Refuse, SetPlaces, warning
from supervisor.scheduler.lease import Lease, Purpose, Suspicion
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Model
from supervisor.scheduler.state import PoolState


class Requests:
    """Queues, places and refusals of all models."""

    def __init__(self, state: PoolState) -> None:
        self._state = state
        self._ids = itertools.count(1)

    # ── coming ───────────────────────────────────────────────────────────────────────────────────

    def new_lease(
        self,
        request_id: str,
        hold: float,
        now: float,
        purpose: Purpose,
        digest: bytes = b"",
        keep_alive: float | None = None,
        places: int = 1,
        at_once: int = 0,
    ) -> Lease:
        """A lease that is in no queue yet. A request without a digest is equal to no other."""
        number = next(self._ids)
        return Lease(
            number,
            request_id,
            now + hold,
            purpose,
            hold,
            digest or b"%d" % number,
            keep_alive=keep_alive,
            places=max(1, places),
            at_once=max(0, at_once),
        )

    def check_servable(self, model: Model, now: float) -> None:
        """Raises what a request is refused with that comes now, whoever waits already."""
        if self._state.shutting_down:
            raise refusals.shutting_down()
        if model.state is State.FAILED:
            raise refusals.failed(model)
        if model.state is State.CRASHED:
            raise refusals.unavailable(model, now)
        on_its_way = model.state in (State.READY, State.LOADING)
        ledger = self._state.ledger
        if not on_its_way and not ledger.can_ever_fit(model.size):
            assert ledger.budget is not None
            raise refusals.too_large(model, ledger.budget)

    def make_place(self, model: Model, now: float) -> list[Effect]:
        """See that there is room for one more in the queues. Raises QueueFull.

        When all places together are taken, a model with fewer requests displaces the last one that
        waits for the model with the most: one busy model must not shut out all the others.
        """
        if model.requests >= model.spec.capacity:
            raise refusals.queue_full(model, now)
        limit = self._state.rules.max_requests
        if not limit or sum(other.requests for other in self._state.models.values()) < limit:
            return []

        queues = [other for other in self._state.models.values() if other.waiting]
        longest = max(queues, key=lambda other: other.requests, default=model)
        error = refusals.server_full(model, limit, now)
        if longest.requests <= model.requests + 1:
            raise error
        # A load by hand has no place to give, and who has been interrupted keeps its own.
        waiting = (each for each in longest.waiting.values() if each.purpose is Purpose.REQUEST)
        newcomers = [each for each in waiting if each.error is None]
        if not newcomers:
            raise error
        return [self.refuse(longest, newcomers[-1], error)]

    def enqueue(self, model: Model, lease: Lease) -> None:
        """The lease waits for this model, before those that came after it."""
        self._state.leases[lease.id] = model
        last = next(reversed(model.waiting), 0)
        model.waiting[lease.id] = lease
        if lease.id < last:
            model.waiting = dict(sorted(model.waiting.items()))

    # ── granting ─────────────────────────────────────────────────────────────────────────────────

    def answer_loads(self, model: Model, now: float) -> list[Effect]:
        """READY: whoever wanted it loaded, and no place in it, is told. Its time to live begins
        anew."""
        loads = [lease for lease in model.waiting.values() if lease.purpose is Purpose.LOAD]
        for lease in loads:
            self.forget(model, lease.id)
            model.note_keep_alive(lease)
            model.current.idle_since = now
        return [Loaded(lease.id, model.name, model.current.name) for lease in loads]

    @staticmethod
    def free_places(model: Model) -> int:
        """READY: how many more places may be given now to those that wait."""
        limit = _limit(model)
        wanted = sum(lease.wants for lease in model.waiting.values())
        return max(0, limit - model.in_flight) if limit else wanted

    def grant_waiting(self, model: Model) -> list[Effect]:
        """READY: serve in the order of arrival as many as have a place; and see to it that each
        has its share of the places, as those of others become free."""
        limit = _limit(model)
        is_full = not model.waiting or 0 < limit <= model.in_flight
        if is_full and all(lease.held == lease.places == 1 for lease in model.granted.values()):
            return []
        inside = [*model.granted.values(), *model.waiting.values()]
        wanted = places.shares(limit, [lease.wants for lease in inside])
        free = limit - model.in_flight if limit else sum(wanted)
        effects: list[Effect] = []
        for lease, share in zip(list(model.granted.values()), wanted, strict=False):
            allowed = min(max(1, share), lease.held + max(0, free))
            if allowed != lease.allowed:
                free -= max(0, allowed - lease.held)
                lease.allowed, lease.held = allowed, max(lease.held, allowed)
                effects.append(SetPlaces(lease.id, allowed))
        for lease, share in zip(inside, wanted, strict=True):
            if lease.id not in model.waiting:
                continue
            if free < 1:
                break
            given = min(max(1, share), free)
            free -= given
            effects.append(self.grant(model, lease, given))
        return effects

    def grant(self, model: Model, lease: Lease, given: int | None = None) -> Effect:
        """READY: give it a place, or `given` ones; None = as many as are free. Who was in a death
        that may have been its fault is to tell when it is past the place of that."""
        if given is None:
            limit = _limit(model)
            free = limit - model.in_flight if limit else lease.wants
            given = max(1, min(free, lease.wants))
        del model.waiting[lease.id]
        model.granted[lease.id] = lease
        lease.allowed = lease.held = given
        model.note_keep_alive(lease)
        lease.start, lease.awaited, until = lease.position, lease.stuck > 0, 0
        if lease.awaited:
            until = lease.until = lease.position + PROBATION_TOKENS
        elif not model.proven or model.breaker.doubts:
            # As long as it is news that the model makes tokens, everybody is to tell of the first.
            until = lease.position + 1
        worker = model.current
        return Grant(
            lease.id, model.name, worker.name, worker.generation, until, lease.asked, given
        )

    # ── refusing ─────────────────────────────────────────────────────────────────────────────────

    def forget(self, model: Model, lease_id: int) -> None:
        """The lease has ended."""
        del self._state.leases[lease_id]
        for leases in (model.waiting, model.granted, model.returning):
            leases.pop(lease_id, None)

    def refuse(self, model: Model, lease: Lease, error: BulkheadError) -> Effect:
        """End a lease that waits or returns."""
        self.forget(model, lease.id)
        return Refuse(lease.id, error)

    def refuse_waiting(self, model: Model, error: BulkheadError) -> list[Effect]:
        """End all leases that wait for the model."""
        return [self.refuse(model, lease, error) for lease in list(model.waiting.values())]

    def refuse_failed_load(self, model: Model, error: BulkheadError) -> list[Effect]:
        """A load has failed: refuse those who came for it. Two kinds wait for the next load: those
        who came while the last worker was on its way out, and those who were interrupted or parked
        before, whose answers are under way."""
        if model.state is not State.LOADING:
            return []
        came = [lease for lease in model.waiting.values() if lease.error is None]
        refused = [self.refuse(model, lease, error) for lease in came]
        return [*self.drop_preload(model, error.message), *refused]

    def refuse_dead_load(self, model: Model, error: BulkheadError) -> list[Effect]:
        """A process has died while it loaded. With recovery its requests wait for the next one, and
        only those who wanted the load itself are refused."""
        if self._state.rules.recovery == "off" or model.state is not State.LOADING:
            return self.refuse_failed_load(model, error)
        waiting = list(model.waiting.values())
        by_hand = [lease for lease in waiting if lease.purpose is Purpose.LOAD]
        return [self.refuse(model, lease, error) for lease in by_hand]

    def drop_preload(self, model: Model, why: str) -> list[Effect]:
        """The model is not preloaded after all. Nobody waits for that; the log says so."""
        if model.preload is None:
            return []
        model.preload = None
        return [warning(f"{model.name} is not preloaded: {why}")]

    # ── fallbacks ────────────────────────────────────────────────────────────────────────────────

    def fallback(self, model: Model) -> Model | None:
        """The model that serves in place of an unavailable one, if it has one that can. Only one
        step far: who is sent on and on never learns who answers."""
        if not model.spec.fallback:
            return None
        other = self._state.resolve(model.spec.fallback)
        usable = other.state not in (State.FAILED, State.CRASHED)
        fits = self._state.ledger.can_ever_fit(other.size)
        return other if usable and fits and other.requests < other.spec.capacity else None

    def send_on(self, model: Model, lease: Lease, other: Model, error: BulkheadError) -> Effect:
        """`other` is to serve the lease, because `model` is unavailable. Returns the line for the
        log."""
        lease.asked = model.name
        return warning(
            f"{lease.request_id} asked for {model.name} and is served by its fallback "
            f"{other.name}: {error.message}"
        )

    def turn_away(self, model: Model, error: BulkheadError) -> list[Effect]:
        """The model is unavailable: who waits goes to its fallback, if it has one, and is refused
        otherwise. Who has tokens of this model's can't go on elsewhere."""
        effects: list[Effect] = []
        for lease in list(model.waiting.values()):
            other = self.fallback(model)
            if other is None or lease.position or lease.asked or lease.purpose is Purpose.LOAD:
                effects.append(self.refuse(model, lease, error))
                continue
            effects.append(self.send_on(model, lease, other, error))
            del model.waiting[lease.id]
            lease.suspicion, lease.stuck = Suspicion.CLEAR, 0
            self.enqueue(other, lease)
        return effects


def _limit(model: Model) -> int:
    """Places that may be taken at once, 0 = any number."""
    # The probe alone: the others come when it has a token.
    return 1 if model.breaker.trips else model.concurrency
