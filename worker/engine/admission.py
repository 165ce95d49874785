"""Who goes on in the memory that there is: pure decisions over a `Scene`, made when it changes.

What counts is what MLX will hold: each batch's rows times its room, which grows by 256 tokens at a
time, and what the next change or step takes besides and gives back. `Demand` reckons it for the
batches that there are, or for those that there will be once the prompts have joined and everybody
has gone on for a stretch of 256 tokens. The first must fit, or somebody is parked, the youngest
first; only where the second fits does anybody begin or come back. What lies between keeps those
who come back from being parked again at once.

In whose turn: of the requests with the fewest sequences under way the oldest, so that the choices
of one do not keep others waiting. The oldest sequence of all always moves.
"""

from __future__ import annotations

import heapq
from bisect import bisect
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from worker.engine.demand import Demand
from worker.engine.kv_cost import STEP
from worker.engine.loan import Usage
from worker.engine.scene import Member, Scene, oldest, youngest


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, by key and in this order: `park` sequences under way, `drop` the caches
    of waiting ones (also of those that this plan parks), let waiting ones `go`. `usage` is what
    there is then, for the `Loan`."""

    park: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    go: tuple[int, ...] = ()
    usage: Usage = field(default_factory=Usage)

    @property
    def acts(self) -> bool:
        """Whether there is anything to be done."""
        return bool(self.park or self.drop or self.go)


def plan(scene: Scene, demand: Demand, budget: int, *, final: bool = False) -> Plan:
    """What to do in `scene` so that all that is held is at most `budget` bytes. `final`: it can
    never be more, so that the oldest goes on by itself whatever it takes."""
    changes = _Changes(scene, demand, budget, final)
    changes.leave_places()
    changes.make_fit()
    changes.let_go()
    changes.make_way()
    return changes.plan()


def free(scene: Scene, demand: Demand, budget: int, *, park: bool) -> Plan:
    """The same where `budget` is what a recall leaves: caches that are kept go as far as that
    takes, and live sequences if `park`; nobody begins."""
    changes = _Changes(scene, demand, budget)
    if park:
        changes.make_fit()
    else:
        changes.drop_to_fit()
    return changes.plan()


class _Changes:
    """A scene as it becomes while a plan is made."""

    def __init__(self, scene: Scene, demand: Demand, budget: int, final: bool = False) -> None:
        self.scene = scene
        self._demand = demand
        self._budget = budget
        self._final = final
        self._park: list[int] = []
        self._drop: list[int] = []
        self._go: list[int] = []
        self._wants: Member | None = None
        """The first of those waiting that there was no room for."""

    def plan(self) -> Plan:
        return Plan(tuple(self._park), tuple(self._drop), tuple(self._go), self._usage())

    @property
    def _kept(self) -> int:
        return sum(member.kept for member in self.scene.waiting)

    # ── making room ──────────────────────────────────────────────────────────────────────────────

    def leave_places(self) -> None:
        """Park the youngest of those beyond the places."""
        for _ in range(len(self.scene.live) - self.scene.places):
            self._park_one(youngest(self.scene.live))

    def make_fit(self) -> None:
        """Until all fits, drop kept caches and park, each time the youngest."""
        while not self.drop_to_fit() and len(self.scene.live) > int(self._final):
            self._park_one(youngest(self.scene.live))

    def drop_to_fit(self) -> bool:
        """Drop caches that are kept, the youngest's first, until all fits. Whether it does."""
        live = self._demand.now(self.scene)
        while live + self._kept > self._budget:
            keeping = [member for member in self.scene.waiting if member.kept]
            if not keeping:
                return False
            self._drop_one(youngest(keeping))
        return True

    def _park_one(self, member: Member) -> None:
        self._park.append(member.key)
        kept = replace(member, kept=0 if member.apart else self._demand.kept(member.tokens))
        self.scene = self.scene.without(member)
        self.scene = replace(self.scene, waiting=(*self.scene.waiting, kept))

    def _drop_one(self, member: Member) -> None:
        self._drop.append(member.key)
        self.scene = replace(
            self.scene,
            waiting=tuple(replace(m, kept=0) if m is member else m for m in self.scene.waiting),
        )

    # ── going on ─────────────────────────────────────────────────────────────────────────────────

    def let_go(self) -> None:
        """Let waiting ones go as long as there are places and each one's next stretch fits with
        everybody else's. Caches of those behind it are kept no longer for it."""
        if not self.scene.waiting:
            return
        parked = set(self._park)
        turns = _Turns(self.scene, [m for m in self.scene.waiting if m.key not in parked])
        places = max(0, self.scene.places - len(self.scene.live))
        going = list(islice(iter(turns.take, None), places))
        fit = len(going)
        if not self._fits(going):
            # The more go the more they take.
            fit = bisect(range(1, fit), self._budget, key=lambda n: self._live(going[:n]))
        self._wants = going[fit] if fit < len(going) else turns.take()
        del going[fit:]
        self._keep_what_fits(going)
        self._let(going)

    def _fits(self, going: Sequence[Member]) -> bool:
        """Whether they can go on, if need be without what others keep."""
        return not going or self._live(going) <= self._budget

    def _live(self, going: Sequence[Member]) -> int:
        """What all under way take with them."""
        live = self._demand.next(self.scene, going)
        if len(going) == 1 and not self.scene.live and live > self._budget:
            return 0 if self._final else self._demand.alone(going[0])
        return live

    def _keep_what_fits(self, going: Sequence[Member]) -> None:
        """Drop what others keep as far as those who are going need it."""
        if not going:
            return
        # A kept cache is the beginning of what its sequence takes when it goes on.
        keys = {member.key for member in going}
        left = self._budget - self._live(going)
        left -= sum(member.kept for member in self.scene.waiting if member.key not in keys)
        keeping = sorted(
            (m for m in self.scene.waiting if m.kept and m.key not in keys),
            key=lambda member: member.age,
        )
        while left < 0 and keeping:
            member = keeping.pop()
            self._drop_one(member)
            left += member.kept

    def _let(self, going: Sequence[Member]) -> None:
        keys = {member.key for member in going}
        self._go += [member.key for member in going]
        self.scene = replace(
            self.scene,
            prompts=(*self.scene.prompts, *(replace(member, kept=0) for member in going)),
            waiting=tuple(m for m in self.scene.waiting if m.key not in keys),
        )

    def make_way(self) -> None:
        """Park for who would otherwise wait too long: the oldest of all, or a request that has
        nothing under way while another one has several choices."""
        wants, live = self._wants, self.scene.live
        if wants is None or self._go or not live:
            return
        # `_Turns` has it first.
        is_oldest = wants.age < oldest(live).age
        under_way = Counter(member.request for member in live)
        parting: list[Member] = []
        rest = self.scene
        while True:
            if is_oldest:
                yields = youngest(rest.live) if rest.live else None
            else:
                most = max(under_way.values(), default=0)
                several = [m for m in rest.live if under_way[m.request] == most > 1]
                yields = youngest(several) if several and not under_way[wants.request] else None
            if yields is None:
                return
            parting.append(yields)
            under_way[yields.request] -= 1
            rest = rest.without(yields)
            if len(rest.live) < rest.places and self._would_fit(rest, wants):
                break
        for member in parting:
            self._park_one(member)
        if self._fits([wants]):
            self._keep_what_fits([wants])
            self._let([wants])
            self._wants = None

    def _would_fit(self, scene: Scene, member: Member) -> bool:
        if not scene.live and (self._final or self._demand.alone(member) <= self._budget):
            return True
        return self._demand.next(scene, [member]) <= self._budget

    # ── for the loan ─────────────────────────────────────────────────────────────────────────────

    def _usage(self) -> Usage:
        scene, live = self.scene, self.scene.live
        now = self._demand.now(scene)
        following = self._demand.next(scene)
        waits = sorted(scene.waiting, key=lambda each: each.age)
        free = max(0, scene.places - len(live))
        least, since, ahead = now, 0.0, max(now, following)
        if live and following > self._budget:
            since = oldest(live).age[0]
        if waits and free:
            wants = self._wants or waits[0]
            least = self._demand.next(scene, [wants]) if live else self._demand.alone(wants)
            since = wants.age[0]
            ahead = self._demand.next(scene, waits[:free])
        elif _is_near(scene):
            least = following
        last = youngest(live) if live else None
        parkable = 0
        if last is not None:
            parkable = max(0, now - self._demand.now(scene.without(last)))
        return Usage(
            held=now + self._kept,
            live=now if live else 0,
            least=max(least, now) if live or (waits and free) else 0,
            ahead=ahead if live or (waits and free) else 0,
            since=since,
            youngest=0.0 if last is None else last.age[0],
            parkable=parkable,
        )


NEAR = 64
"""Tokens before a batch has to grow at which a loan that is lacking becomes urgent."""


def _is_near(scene: Scene) -> bool:
    """Whether somebody will soon not be able to go on without what the next stretch takes."""
    return bool(scene.prompts) or any(b.room - b.span[1] <= NEAR for b in scene.batches)


def steps(scene: Scene) -> int:
    """Decode steps for which a plan of `scene` holds, if nobody comes or goes: until a batch has to
    grow, or is near it. At least 1."""
    least = 2**31
    for batch in scene.batches:
        left = batch.room - batch.span[1]
        least = min(least, left - NEAR if left > NEAR else left if left > 0 else STEP - NEAR)
    return max(1, least)


class _Turns:
    """Waiting sequences in the order of their turns, which changes with each that is taken."""

    def __init__(self, scene: Scene, waiting: Iterable[Member]) -> None:
        self._under_way = Counter(member.request for member in scene.live)
        self._oldest = min(
            (each.age for each in (*scene.live, *scene.waiting)),
            default=(0.0, 0),
        )
        queues: dict[str, deque[Member]] = defaultdict(deque)
        for member in sorted(waiting, key=lambda member: member.age):
            queues[member.request].append(member)
        self._heap = [self._entry(queue) for queue in queues.values()]
        heapq.heapify(self._heap)

    def _entry(self, queue: deque[Member]) -> tuple[int, tuple[float, int], deque[Member]]:
        first = queue[0]
        if first.age == self._oldest:
            return 0, first.age, queue
        return 1 + self._under_way[first.request], first.age, queue

    def take(self) -> Member | None:
        """Whose turn it is, or None."""
        if not self._heap:
            return None
        queue = self._heap[0][2]
        member = queue.popleft()
        self._under_way[member.request] += 1
        if queue:
            heapq.heapreplace(self._heap, self._entry(queue))
        else:
            heapq.heappop(self._heap)
        return member
