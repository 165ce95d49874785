"""Who goes on in the memory that there is: pure decisions over a `Scene`, made when it changes.

What counts is what MLX will hold: each batch's rows times its room, which grows by 256 tokens at a
time, and what the next change or step takes besides and gives back. `demand` reckons it for the
batches that there are, or for those that there will be once the prompts have joined and everybody
has gone on for a stretch of 256 tokens. The first must fit, or somebody is parked, the youngest
first; only where the second fits does anybody begin or come back. What lies between keeps those
who come back from being parked again at once.

In whose turn: of the requests with the fewest sequences under way the oldest, so that the choices
of one do not keep others waiting. The oldest sequence of all always moves.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from worker.engine import groups
from worker.engine.kv_cost import LEAST_SLICE, STEP, Corrections, KvCost, StepCost, grown
from worker.engine.loan import Usage


@dataclass(frozen=True, slots=True)
class Member:
    """One sequence. `age` orders all of them, the oldest first: (its request's `now`, the order of
    arrival). `tokens` are in its cache, or will be when it decodes."""

    key: int
    request: str
    age: tuple[float, int]
    tokens: int
    kept: int = 0
    """Bytes of the cache that it keeps while it waits."""
    scored: bool = False
    """Whether its prompt's tokens are scored."""
    apart: bool = False
    """Whether it is in no batch with others, and keeps no cache while it waits."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that decode together, padded to the longest; the arrays have room for `room`
    tokens."""

    members: tuple[Member, ...]
    room: int

    @property
    def span(self) -> groups.Span:
        return groups.span([member.tokens for member in self.members])


@dataclass(frozen=True, slots=True)
class Scene:
    """All sequences: those under way, in `batches` or as `prompts`, and those `waiting`, be it for
    their first turn or parked. `places`: how many may be under way."""

    batches: tuple[Batch, ...] = ()
    prompts: tuple[Member, ...] = ()
    waiting: tuple[Member, ...] = ()
    places: int = 1
    pass_tokens: int = 0
    """Tokens that go through the model beside all these, in steps that need no cache."""

    @property
    def live(self) -> list[Member]:
        return [*(m for batch in self.batches for m in batch.members), *self.prompts]


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


_TOKEN = 4
"""Bytes of a token in the list that mlx-lm keeps of each row's."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What sequences take, in bytes. `chunk`: tokens of the largest prefill step; `freed`: buffers
    that MLX keeps for later steps."""

    cost: KvCost
    step_cost: StepCost
    corrections: Corrections
    chunk: int
    freed: int = 0

    def now(self, scene: Scene) -> int:
        """What those under way may take until some batch has to grow; one that has to grow in the
        next step has."""
        batches = [
            _Shape(len(b.members), b.span, b.room + STEP if b.span[1] >= b.room else b.room)
            for b in scene.batches
        ]
        return self._of(batches, scene.prompts, LEAST_SLICE, 0, scene.pass_tokens)

    def alone(self, member: Member) -> int:
        """What one sequence takes until it has decoded a step, where nobody else is under way."""
        return self._of([], [member], LEAST_SLICE, 1)

    def next(self, scene: Scene, more: Iterable[Member] = ()) -> int:
        """What they and `more` may take until each has gone on for a stretch."""
        batches = [
            _Shape(len(b.members), b.span, b.room + STEP if b.span[1] + STEP > b.room else b.room)
            for b in scene.batches
        ]
        prompts = [*scene.prompts, *more]
        return self._of(batches, prompts, self.chunk, STEP, scene.pass_tokens)

    def _of(
        self,
        batches: list[_Shape],
        prompts: Sequence[Member],
        chunk: int,
        stretch: int = 0,
        pass_tokens: int = 0,
    ) -> int:
        longest = max((member.tokens for member in prompts), default=0)
        held = 0
        for member in prompts:
            room = grown(member.tokens + stretch)
            if member.apart:
                held += self.cost.held(1, room)
                continue
            span = (member.tokens, member.tokens)
            at = groups.join(span, [batch.span for batch in batches])
            own = _Shape(1, span, room)
            if at is None:
                batches.append(own)
            else:
                batches[at] = batches[at].with_(own)
        while pair := groups.merge([batch.span for batch in batches]):
            first, second = pair
            batches[first] = batches[first].with_(batches.pop(second))
        if not batches and not prompts and not pass_tokens:
            return 0
        rows = sum(batch.rows for batch in batches)
        held += self.freed + sum(self.cost.held(batch.rows, batch.room) for batch in batches)
        held += sum(_TOKEN * batch.rows * batch.room for batch in batches)
        held += sum(self._beyond(member.tokens) for member in prompts)
        change = max((self.cost.largest(batch.rows, batch.room) for batch in batches), default=0)
        growth = sum(self.cost.largest(1, grown(member.tokens + stretch)) for member in prompts)
        scored = any(member.scored for member in prompts)
        chunk = max(chunk if prompts else 0, pass_tokens)
        longest = max(longest, pass_tokens)
        return held + self.step(rows, chunk, longest, change, growth, scored=scored)

    def step(
        self,
        rows: int,
        chunk: int,
        context: int,
        change: int,
        growth: int = 0,
        *,
        scored: bool = False,
    ) -> int:
        """What the next step or `change` takes besides: they come one after the other. While a
        prefill step is computed its prompts' arrays may grow, by a copy of a layer: `growth`."""
        tokens = min(chunk, context)
        prefill = int(self.step_cost.prefill(tokens, context) * self.corrections.of("prefill"))
        if scored:
            reckoned = self.step_cost.prefill(tokens, context, scored=True)
            prefill = max(prefill, int(reckoned * self.corrections.of("scored")))
        return max(prefill + growth, change) + self.step_cost.decode(rows)

    def _beyond(self, tokens: int) -> int:
        """What windows hold beyond their size, behind a prompt's largest step."""
        step = min(tokens, self.chunk)
        return self.cost.held(1, tokens, step) - self.cost.held(1, tokens)

    def longest(self, limit: int, own: int) -> int:
        """Tokens, at most `own`, that one sequence can come to have where nobody else is under way
        and all is at most `limit` bytes; 0 = no limit."""

        def fits(tokens: int) -> bool:
            return self.alone(Member(0, "", (0.0, 0), tokens - 1)) <= limit

        if not limit or fits(own):
            return own
        least, most = 0, own  # fits, does not
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        return least

    def kept(self, tokens: int) -> int:
        """Of one sequence's cache outside a batch."""
        return self.cost.held(1, tokens)


@dataclass(frozen=True, slots=True)
class _Shape:
    rows: int
    span: groups.Span
    room: int

    def with_(self, other: _Shape) -> _Shape:
        span = min(self.span[0], other.span[0]), max(self.span[1], other.span[1])
        return _Shape(self.rows + other.rows, span, max(self.room, other.room))


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
            self._park_one(_youngest(self.scene.live))

    def make_fit(self) -> None:
        """Until all fits, drop kept caches and park, each time the youngest."""
        while not self.drop_to_fit() and len(self.scene.live) > int(self._final):
            self._park_one(_youngest(self.scene.live))

    def drop_to_fit(self) -> bool:
        """Drop caches that are kept, the youngest's first, until all fits. Whether it does."""
        live = self._demand.now(self.scene)
        while live + self._kept > self._budget:
            keeping = [member for member in self.scene.waiting if member.kept]
            if not keeping:
                return False
            self._drop_one(_youngest(keeping))
        return True

    def _park_one(self, member: Member) -> None:
        self._park.append(member.key)
        kept = replace(member, kept=0 if member.apart else self._demand.kept(member.tokens))
        self._take_out(member)
        self.scene = replace(self.scene, waiting=(*self.scene.waiting, kept))

    def _take_out(self, member: Member) -> None:
        self.scene = _without(self.scene, member)

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
        places = self.scene.places - len(self.scene.live)
        if not self.scene.waiting:
            return
        parked = set(self._park)
        turns = _Turns(
            self.scene,
            [m for m in self.scene.waiting if m.key not in parked],
        )
        going: list[Member] = []
        while member := turns.first():
            if places <= len(going) or not self._fits_with([*going, member]):
                self._wants = member
                break
            going.append(turns.take())
        self._let(going)

    def _fits_with(self, going: Sequence[Member]) -> bool:
        """Dropping what others keep if need be."""
        live = self._demand.next(self.scene, going)
        keys = {member.key for member in going}
        if len(going) == 1 and not self.scene.live and live > self._budget:
            live = 0 if self._final else self._demand.alone(going[0])
        # A kept cache is the beginning of what its sequence takes when it goes on.
        while live + sum(m.kept for m in self.scene.waiting if m.key not in keys) > self._budget:
            keeping = [m for m in self.scene.waiting if m.kept and m.key not in keys]
            if not keeping or live > self._budget:
                return False
            self._drop_one(_youngest(keeping))
        return True

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
        oldest = wants.age < _oldest(live).age
        under_way = Counter(member.request for member in live)
        parting: list[Member] = []
        rest = self.scene
        while True:
            if oldest:
                yields = _youngest(rest.live) if rest.live else None
            else:
                most = max(under_way.values(), default=0)
                several = [m for m in rest.live if under_way[m.request] == most > 1]
                yields = _youngest(several) if several and not under_way[wants.request] else None
            if yields is None:
                return
            parting.append(yields)
            under_way[yields.request] -= 1
            rest = _without(rest, yields)
            if len(rest.live) < rest.places and self._would_fit(rest, wants):
                break
        for member in parting:
            self._park_one(member)
        if self._fits_with([wants]):
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
            since = _oldest(live).age[0]
        if waits and free:
            wants = self._wants or waits[0]
            least = self._demand.next(scene, [wants]) if live else self._demand.alone(wants)
            since = wants.age[0]
            ahead = self._demand.next(scene, waits[:free])
        elif _is_near(scene):
            least = following
        youngest = _youngest(live) if live else None
        parkable = 0
        if youngest is not None:
            parkable = max(0, now - self._demand.now(_without(scene, youngest)))
        return Usage(
            held=now + self._kept,
            live=now if live else 0,
            least=max(least, now) if live or (waits and free) else 0,
            ahead=ahead if live or (waits and free) else 0,
            since=since,
            youngest=0.0 if youngest is None else youngest.age[0],
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


def _youngest(members: Iterable[Member]) -> Member:
    return max(members, key=lambda member: member.age)


def _oldest(members: Iterable[Member]) -> Member:
    return min(members, key=lambda member: member.age)


def _without(scene: Scene, member: Member) -> Scene:
    """The scene without one who is under way."""
    batches = []
    for batch in scene.batches:
        left = tuple(each for each in batch.members if each.key != member.key)
        if len(left) == len(batch.members):
            batches.append(batch)
        elif left:
            # Rows are shifted when the longest leaves.
            shift = batch.span[1] - max(each.tokens for each in left)
            batches.append(Batch(left, batch.room - shift))
    prompts = tuple(each for each in scene.prompts if each.key != member.key)
    return replace(scene, batches=tuple(batches), prompts=prompts)


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

    def first(self) -> Member | None:
        return self._heap[0][2][0] if self._heap else None

    def take(self) -> Member:
        queue = self._heap[0][2]
        member = queue.popleft()
        self._under_way[member.request] += 1
        if queue:
            heapq.heapreplace(self._heap, self._entry(queue))
        else:
            heapq.heappop(self._heap)
        return member
