"""Who gets what memory next, and who gives it up: one pure decision over a snapshot.

Two kinds of demand stand in one queue, by age: models that want to be loaded (`Demand`), in the
order in which they began to wait, so that a model with a hundred waiters has one turn like a model
with one; and live requests that can't go on without more KV cache (`Need`). For each load:

1. it fits into what is free            → start it.
2. it fits once those have gone who are
   on their way out, and once what was
   called back is there                 → wait, and keep that room from whoever comes later;
   idle loans make up for the rest      → call those back, the least valuable first, and keep it.
3. enough idle models can go            → unload them, and keep the room.
4. its patience with busy ones is over,
   and with them there is enough        → drain those too, and keep the room.
5. its patience is over, nobody may be
   taken yet (loads, minimum residency) → no load behind it takes room.
6. otherwise                            → wait; whoever fits beside may overtake.

What a demand keeps is only spoken for: a smaller one behind it may be served at once when it fits
into what is free and the room that was kept is still there afterwards.

Rule 5 does not hold for what pins rule out: a model that has to wait for a person must not hold up
the others. Nor does it hold up needs, which come back with the drain of their worker; but those of
pinned workers, which are not drained, leave the load its room.

For each need, which no busy model is ever evicted for:

a. what is free suffices                → lend, as much as is of use.
b. what will be back in a moment does   → wait, and keep it. A drain may take minutes, and counts
                                          for nothing here.
c. idle loans of other workers do       → call them back, and keep them.
d. enough idle models can go            → unload them, and keep the room.
e. it is the oldest that is not served,
   and can be served at all             → all of c and d, and the youngest live request of any
                                          worker is parked, if it is younger than this one. Nothing
                                          goes to anybody behind it: what it waits for piece by
                                          piece would be gone again.
f. otherwise                            → wait; whoever fits beside may overtake.

A need of a worker that drains takes what is free whatever is kept: that room comes back with it.

Last come those who could go on as they are, and will need more soon (`least` is 0): what is free,
and kept for nobody, is lent ahead of their need.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from supervisor.scheduler.eviction import Candidate, choose, make_room, order
from supervisor.scheduler.ledger import Key
from supervisor.scheduler.model import Rules


class Means(enum.Enum):
    """What a demand may do to get its room."""

    WAIT = enum.auto()
    """Nothing: its last worker is still on its way out."""
    FREE_ROOM = enum.auto()
    """Take what is free: a preload."""
    EVICTION = enum.auto()
    """Make room: a request or a person waits."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A model that wants to be loaded."""

    model: str
    bytes: int
    since: float
    """When it began to want that, monotonic seconds."""
    load_seconds: float
    means: Means


@dataclass(frozen=True, slots=True)
class Need:
    """A live worker in which a request can't go on without `least` bytes more; up to `most` would
    be of use. With a `least` of 0 all requests can go on for now."""

    worker: Key
    least: int
    most: int
    since: float
    """When that request came, monotonic seconds."""
    drains: bool = False
    pinned: bool = False


@dataclass(slots=True)
class Loan:
    """What may be had of a live worker's loan, in bytes."""

    worker: Key
    idle: int = 0
    """Given back when asked for."""
    awaited: int = 0
    """Asked for already, and still expected."""
    in_use: int = 0
    drains: bool = False
    stands: bool = False
    """Whether it waits for memory itself, or can't be asked: nothing of it comes by itself."""
    youngest: float = 0.0
    """When the request of its youngest live sequence came, monotonic seconds."""
    parkable: int = 0
    """What parking that one would free; 0 = there is none."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A loaded model that is not pinned. The candidate's bytes are what its unload gives back
    beyond what can be called back, or has been."""

    candidate: Candidate
    busy: bool
    safe_until: float
    """End of its minimum residency, monotonic seconds."""


@dataclass(slots=True)
class Capacity:
    """Bytes and places: what is free, what will be once those who leave have gone, and what could
    be if everything went that is neither pinned nor stranded. Infinite where nothing is limited."""

    free: float
    coming: float
    most: float
    free_slots: float
    coming_slots: float
    most_slots: float
    soon: float = math.inf
    """What will be free in a moment: `coming` without those who still drain."""
    spare: float = math.inf
    """What pinned workers may still be lent: a load behind its patience needs the rest."""

    def fits_now(self, size: int) -> bool:
        # Both: what is free may be spoken for.
        return size <= self.free and self.free_slots >= 1 and self.fits_later(size)

    def fits_later(self, size: int) -> bool:
        return size <= self.coming and self.coming_slots >= 1

    def fits_ever(self, size: int) -> bool:
        return size <= self.most and self.most_slots >= 1

    def take(self, size: int) -> None:
        self.free -= size
        self.soon -= size
        self.free_slots -= 1
        self.keep(size)

    def keep(self, size: int) -> None:
        self.coming -= size
        self.coming_slots -= 1

    def free_for(self, need: Need) -> float:
        """Bytes that it may be lent now."""
        limit = self.spare if need.pinned else math.inf
        return min(self.free, self.soon_for(need), limit)

    def soon_for(self, need: Need) -> float:
        """Bytes that it may count on in a moment."""
        return self.soon if need.drains else min(self.soon, self.coming)

    def lend(self, need: Need, size: float) -> None:
        self.free -= size
        if need.pinned:
            self.most -= size
            self.spare -= size
        self.keep_for(need, size)

    def keep_for(self, need: Need, size: float) -> None:
        self.soon -= size
        if not need.drains:  # else what it is lent is on its way out with the rest of it
            self.coming -= size


@dataclass(frozen=True, slots=True)
class Unload:
    """`victim` makes room for `model`."""

    victim: str
    model: str


@dataclass(slots=True)
class Plan:
    start: list[str] = field(default_factory=list)
    unload: list[Unload] = field(default_factory=list)
    lend: dict[Key, int] = field(default_factory=dict)
    recall: dict[Key, int] = field(default_factory=dict)
    """Bytes of idle loans to call back, by worker."""
    park: tuple[Key, int] | None = None
    """Whose youngest live request gives up its memory, and how many bytes of it are needed."""
    wake: float | None = None
    """When the same question will have another answer though nothing happens, monotonic seconds."""


def make_plan(
    demands: Iterable[Demand],
    tenants: Sequence[Tenant],
    capacity: Capacity,
    rules: Rules,
    now: float,
    needs: Iterable[Need] = (),
    loans: Sequence[Loan] = (),
) -> Plan:
    """Decide. `capacity` and `loans` are used up in the process; of the loans those come first
    whose idle part is worth least."""
    return _Planning(tenants, capacity, loans, rules, now).run(demands, needs)


class _Planning:
    """One decision in the making."""

    def __init__(
        self,
        tenants: Iterable[Tenant],
        capacity: Capacity,
        loans: Sequence[Loan],
        rules: Rules,
        now: float,
    ) -> None:
        self._left = list(tenants)
        self._capacity = capacity
        self._loans = loans
        self._rules = rules
        self._now = now
        self._wakes: list[float] = []
        self._plan = Plan()

    def run(self, demands: Iterable[Demand], needs: Iterable[Need]) -> Plan:
        queue: list[Demand | Need] = [*demands, *needs]
        # Those ahead of need come last: `_serve` lends them what is left, or nothing.
        loads_wait = needs_wait = False
        for each in sorted(queue, key=lambda one: (_is_ahead(one), one.since)):
            if needs_wait:
                self._let_end(each)
            elif isinstance(each, Need):
                needs_wait = self._serve(each)
            elif not loads_wait:
                loads_wait = self._place(each)
        self._plan.wake = min(self._wakes, default=None)
        return self._plan

    # ── loads ────────────────────────────────────────────────────────────────────────────────────

    def _place(self, demand: Demand) -> bool:
        """Decide about a load. Whether no other load may take room before it."""
        capacity, rules, now = self._capacity, self._rules, self._now
        if demand.means is Means.WAIT:
            if capacity.fits_later(demand.bytes):
                capacity.keep(demand.bytes)
        elif capacity.fits_now(demand.bytes):  # (1)
            capacity.take(demand.bytes)
            self._plan.start.append(demand.model)
        elif capacity.fits_later(demand.bytes):  # (2)
            capacity.keep(demand.bytes)
        elif demand.means is Means.EVICTION and capacity.fits_ever(demand.bytes):
            idle = self._idle_loans(lambda loan: not loan.drains)
            need = demand.bytes - capacity.coming
            victims = []
            if capacity.coming_slots < 1 or need > idle:
                victims = _victims(demand, self._left, capacity, idle, rules, now)  # (3), (4)
            if victims or (capacity.coming_slots >= 1 and need <= idle):
                for victim in victims:
                    self._unload(victim, demand.model)
                    capacity.coming_slots += 1
                self._call_back(demand.bytes - capacity.coming, lambda loan: not loan.drains)
                capacity.keep(demand.bytes)
                return False
            self._wakes += [
                at for each in self._left if (at := _open_at(demand, each, rules)) > now
            ]
            if now >= _impatient_at(demand, self._left, rules):  # (5)
                capacity.spare = capacity.most - demand.bytes
                return True
        return False  # (6)

    # ── needs ────────────────────────────────────────────────────────────────────────────────────

    def _serve(self, need: Need) -> bool:
        """Decide about a need. Whether nobody behind it gets anything."""
        capacity = self._capacity
        free = capacity.free_for(need)
        if need.least <= free:  # (a)
            size = int(min(need.most, free))
            if size > 0:
                capacity.lend(need, size)
                self._plan.lend[need.worker] = size
            return False
        if _is_ahead(need):  # nothing is free
            return False
        limit = capacity.spare if need.pinned else math.inf
        if need.least > limit:
            return False
        soon = capacity.soon_for(need)
        idle = self._idle_loans(lambda loan: loan.worker != need.worker)
        open_ones = self._open_to(need)
        if need.least <= soon:  # (b)
            capacity.keep_for(need, need.least)
            return False
        if need.least <= soon + idle:  # (c)
            self._take_for(need, min(need.most, soon + idle, limit))
            return False
        candidates = [tenant.candidate for tenant in open_ones]
        chosen = make_room(candidates, self._rules.policy, need.least - soon - idle)
        if chosen:  # (d)
            for tenant in open_ones:
                if tenant.candidate in chosen:
                    self._unload(tenant, need.worker[0])
            self._take_for(need, need.least)
            return False
        if need.least > self._reach(need):  # (f)
            return False
        for tenant in open_ones:  # (e)
            self._unload(tenant, need.worker[0])
        self._call_back(math.inf, lambda loan: loan.worker != need.worker)
        self._park_for(need, int(need.least - capacity.soon_for(need)))
        return True

    def _let_end(self, one: Demand | Need) -> None:
        """It stands behind one whom nobody may pass, but for those whose worker drains: what they
        take comes back with the rest of it."""
        if isinstance(one, Need) and one.drains and 0 < one.least <= self._capacity.free_for(one):
            self._capacity.lend(one, one.least)
            self._plan.lend[one.worker] = one.least

    def _open_to(self, need: Need) -> list[Tenant]:
        """Idle models that may go for it. Remembers when more of them may."""
        idle = [t for t in self._left if not t.busy and t.candidate.model != need.worker[0]]
        self._wakes += [tenant.safe_until for tenant in idle if tenant.safe_until > self._now]
        return [tenant for tenant in idle if tenant.safe_until <= self._now]

    def _take_for(self, need: Need, size: float) -> None:
        """Keep so much for it of what is on its way and of idle loans."""
        missing = size - self._capacity.soon_for(need)
        self._call_back(missing, lambda loan: loan.worker != need.worker)
        self._capacity.keep_for(need, size)

    def _reach(self, need: Need) -> float:
        """What it can ever have without the end of a busy model: idle models, idle loans, and what
        is in use by requests that move, or can be parked for it."""
        others = [loan for loan in self._loans if loan.worker != need.worker and not loan.drains]
        idle = [t for t in self._left if not t.busy and t.candidate.model != need.worker[0]]
        names = {tenant.candidate.model for tenant in idle}
        in_use = sum(
            loan.in_use
            for loan in others
            if loan.worker[0] not in names
            and (not loan.stands or (loan.parkable and loan.youngest > need.since))
        )
        held = sum(loan.idle for loan in others) + in_use
        return self._capacity.coming + held + sum(tenant.candidate.bytes for tenant in idle)

    def _park_for(self, need: Need, short: int) -> None:
        live = [loan for loan in self._loans if loan.parkable and loan.youngest > need.since]
        if short > 0 and live:
            loan = max(live, key=lambda each: (each.youngest, each.worker))
            self._plan.park = (loan.worker, min(short, loan.parkable))

    # ── what both do ─────────────────────────────────────────────────────────────────────────────

    def _idle_loans(self, counts: Callable[[Loan], bool]) -> int:
        return sum(loan.idle for loan in self._loans if counts(loan))

    def _call_back(self, size: float, counts: Callable[[Loan], bool]) -> None:
        """Call back so much of the idle loans, or all there is."""
        for loan in self._loans:
            if size <= 0 or not loan.idle or not counts(loan):
                continue
            part = int(min(loan.idle, size))
            loan.idle -= part
            size -= part
            self._plan.recall[loan.worker] = self._plan.recall.get(loan.worker, 0) + part
            self._capacity.soon += part
            if not loan.drains:  # else it is on its way out already
                self._capacity.coming += part

    def _unload(self, tenant: Tenant, model: str) -> None:
        """The tenant makes room, and takes its idle loan with it."""
        self._left.remove(tenant)
        size = tenant.candidate.bytes
        for loan in self._loans:
            if loan.worker[0] == tenant.candidate.model:
                size += loan.idle
                loan.idle = loan.parkable = 0
        self._capacity.coming += size
        if not tenant.busy:
            self._capacity.soon += size
        self._plan.unload.append(Unload(tenant.candidate.model, model))


def _is_ahead(one: Demand | Need) -> bool:
    """Whether it can go on without what it asks for."""
    return isinstance(one, Need) and not one.least


def _victims(
    demand: Demand,
    tenants: Sequence[Tenant],
    capacity: Capacity,
    idle_loans: float,
    rules: Rules,
    now: float,
) -> list[Tenant]:
    """Who goes for this demand, idle ones before busy ones; empty when that is not enough, with
    the idle loans."""
    coming = capacity.coming + idle_loans
    if demand.bytes > coming + sum(tenant.candidate.bytes for tenant in tenants):
        return []
    open_to = [tenant for tenant in tenants if _open_at(demand, tenant, rules) <= now]
    idle = [tenant.candidate for tenant in open_to if not tenant.busy]
    busy = [tenant.candidate for tenant in open_to if tenant.busy]
    need = demand.bytes - coming
    slots = int(max(0, 1 - capacity.coming_slots))
    chosen = make_room(idle, rules.policy, need, slots)  # (3)
    if not chosen and busy:  # (4)
        both = [*order(idle, rules.policy), *order(busy, rules.policy)]
        chosen = choose(both, need, slots)
    return [tenant for tenant in open_to if tenant.candidate in chosen]


def _open_at(demand: Demand, tenant: Tenant, rules: Rules) -> float:
    """From when on this tenant may be taken for the demand."""
    if not tenant.busy:
        return tenant.safe_until
    patience = rules.patience(demand.load_seconds, tenant.candidate.load_seconds)
    return max(tenant.safe_until, demand.since + patience)


def _impatient_at(demand: Demand, tenants: Iterable[Tenant], rules: Rules) -> float:
    """When the demand has waited as long as it must for anybody."""
    slowest = max((tenant.candidate.load_seconds for tenant in tenants), default=0.0)
    return demand.since + rules.patience(demand.load_seconds, slowest)
