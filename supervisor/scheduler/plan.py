"""Which model loads next and who makes room for it: one pure decision over a snapshot.

Demands are served in the order in which their models began to wait, so a model with a hundred
waiters has one turn like a model with one. For each demand:

1. it fits into what is free            → start it.
2. it fits once those have gone who are
   on their way out                     → wait, and keep that room from whoever comes later.
3. enough idle models can go            → unload them, and keep the room.
4. its patience with busy ones is over,
   and with them there is enough        → drain those too, and keep the room.
5. its patience is over, nobody may be
   taken yet (loads, minimum residency) → nobody behind it takes room.
6. otherwise                            → wait; whoever fits beside may overtake.

What a demand keeps is only spoken for: a smaller model behind it may start at once when it fits
into what is free and the room that was kept is still there afterwards.

Rule 5 does not hold for what pins rule out: a model that has to wait for a person must not hold up
the others.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from supervisor.scheduler.eviction import Candidate, choose, make_room, order
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
class Tenant:
    """A loaded model that is not pinned."""

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

    def fits_now(self, size: int) -> bool:
        # Both: what is free may be spoken for.
        return size <= self.free and self.free_slots >= 1 and self.fits_later(size)

    def fits_later(self, size: int) -> bool:
        return size <= self.coming and self.coming_slots >= 1

    def fits_ever(self, size: int) -> bool:
        return size <= self.most and self.most_slots >= 1

    def take(self, size: int) -> None:
        self.free -= size
        self.free_slots -= 1
        self.keep(size)

    def keep(self, size: int) -> None:
        self.coming -= size
        self.coming_slots -= 1


@dataclass(frozen=True, slots=True)
class Unload:
    """`victim` makes room for `model`."""

    victim: str
    model: str


@dataclass(slots=True)
class Plan:
    start: list[str] = field(default_factory=list)
    unload: list[Unload] = field(default_factory=list)
    wake: float | None = None
    """When the same question will have another answer though nothing happens, monotonic seconds."""


def make_plan(
    demands: Iterable[Demand],
    tenants: Sequence[Tenant],
    capacity: Capacity,
    rules: Rules,
    now: float,
) -> Plan:
    """Decide. `capacity` is used up in the process."""
    decided = Plan()
    left, wakes = list(tenants), list[float]()
    for demand in sorted(demands, key=lambda demand: demand.since):
        if demand.means is Means.WAIT:
            if capacity.fits_later(demand.bytes):
                capacity.keep(demand.bytes)
        elif capacity.fits_now(demand.bytes):  # (1)
            capacity.take(demand.bytes)
            decided.start.append(demand.model)
        elif capacity.fits_later(demand.bytes):  # (2)
            capacity.keep(demand.bytes)
        elif demand.means is Means.EVICTION and capacity.fits_ever(demand.bytes):
            victims = _victims(demand, left, capacity, rules, now)  # (3), (4)
            for victim in victims:
                left.remove(victim)
                capacity.coming += victim.candidate.bytes
                capacity.coming_slots += 1
                decided.unload.append(Unload(victim.candidate.model, demand.model))
            if victims:
                capacity.keep(demand.bytes)
                continue
            wakes += [at for tenant in left if (at := _open_at(demand, tenant, rules)) > now]
            if now >= _impatient_at(demand, left, rules):  # (5)
                break
        # (6)
    decided.wake = min(wakes, default=None)
    return decided


def _victims(
    demand: Demand, tenants: Sequence[Tenant], capacity: Capacity, rules: Rules, now: float
) -> list[Tenant]:
    """Who goes for this demand, idle ones before busy ones; empty when that is not enough."""
    if demand.bytes > capacity.coming + sum(tenant.candidate.bytes for tenant in tenants):
        return []
    open_to = [tenant for tenant in tenants if _open_at(demand, tenant, rules) <= now]
    idle = [tenant.candidate for tenant in open_to if not tenant.busy]
    busy = [tenant.candidate for tenant in open_to if tenant.busy]
    need = demand.bytes - capacity.coming
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
