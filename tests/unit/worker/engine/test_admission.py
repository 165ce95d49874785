"""worker.engine.admission: who goes on, who waits and who is parked, in how much memory."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from tests.helpers.scenes import COST, FREE, decoding, member
from worker.engine import groups
from worker.engine.admission import Plan, free, plan
from worker.engine.demand import Demand
from worker.engine.kv_cost import STEP, Corrections, StepCost, grown
from worker.engine.scene import Batch, Member, Scene


def needed(*tokens: int) -> int:
    """Bytes with which sequences of so many tokens, alike enough for one batch, can begin."""
    scene = Scene(waiting=tuple(member(i, each) for i, each in enumerate(tokens)))
    return FREE.next(scene, scene.waiting)


# ── going ────────────────────────────────────────────────────────────────────────────────────────


def test_as_many_go_as_fit_in_order() -> None:
    waiting = tuple(member(i) for i in range(5))
    made = plan(Scene(waiting=waiting, places=8), FREE, needed(1000, 1000, 1000))
    assert made.go == (0, 1, 2)
    assert not made.park


def test_nobody_goes_by_one_that_does_not_fit() -> None:
    waiting = (member(0, 500), member(1, 9000), member(2, 500))
    assert plan(Scene(waiting=waiting, places=8), FREE, needed(500, 500)).go == (0,)


def test_no_more_go_than_there_are_places() -> None:
    waiting = tuple(member(i) for i in range(5))
    assert plan(Scene(waiting=waiting, places=2), FREE, 10**9).go == (0, 1)


def test_choices_of_one_request_take_turns_with_their_neighbours() -> None:
    crowd = [member(i, request="many") for i in range(6)]
    single, pair = [member(7)], [member(8, request="two"), member(9, request="two")]
    made = plan(Scene(waiting=(*crowd, *single, *pair), places=5), FREE, 10**9)
    assert made.go == (0, 7, 8, 1, 9)


def test_a_first_sequence_goes_with_the_least_that_carries_it() -> None:
    least = FREE.alone(member(0))
    assert least < needed(1000)
    scene = Scene(waiting=(member(0),), places=1)
    assert plan(scene, FREE, least).go == (0,)
    assert plan(scene, FREE, least - 1).go == ()
    assert plan(scene, FREE, least - 1, final=True).go == (0,)


def test_who_goes_takes_what_others_only_keep() -> None:
    kept = member(5, kept=COST.held(1, 1000))
    scene = Scene(waiting=(member(0), kept), places=1)
    made = plan(scene, FREE, needed(1000))
    assert (made.go, made.drop) == ((0,), (5,))
    roomy = plan(scene, FREE, needed(1000) + kept.kept)
    assert (roomy.go, roomy.drop) == ((0,), ())


@dataclass(frozen=True, slots=True)
class _Counted(Demand):
    """Notes how many go together each time that is reckoned."""

    asked: list[int] = field(default_factory=list)

    def next(self, scene: Scene, more: Iterable[Member] = ()) -> int:
        going = list(more)
        self.asked.append(len(going))
        return super(_Counted, self).next(scene, going)


@pytest.mark.parametrize("fit", [0, 1, 2, 63, 64, 199, 200])
def test_a_crowd_is_not_reckoned_once_for_each(fit: int) -> None:
    waiting = tuple(member(i) for i in range(200))
    counted = _Counted(COST, StepCost(), Corrections(), 512)
    made = plan(Scene(waiting=waiting, places=200), counted, needed(*[1000] * fit))
    assert made.go == tuple(range(fit))
    assert len(counted.asked) <= 14


def test_what_one_keeps_who_goes_as_well_is_not_dropped_for_those_before_it() -> None:
    kept = member(1, kept=COST.held(1, 1000))
    scene = Scene(waiting=(member(0), kept), places=2)
    made = plan(scene, FREE, needed(1000, 1000))
    assert (made.go, made.drop) == ((0, 1), ())


# ── parking ──────────────────────────────────────────────────────────────────────────────────────


def test_the_youngest_is_parked_when_a_batch_can_not_grow() -> None:
    members = [member(i, 1024) for i in range(3)]
    scene = Scene((decoding(*members, room=1024),), places=8)
    made = plan(scene, FREE, FREE.now(scene) - 1)
    assert (made.park, made.drop) == ((2,), ())
    without = Scene((decoding(*members[:2], room=1024),), places=8)
    made = plan(scene, FREE, FREE.now(without))
    assert (made.park, made.drop) == ((2,), (2,))
    assert plan(scene, FREE, FREE.now(scene)).park == ()


def test_a_cache_is_kept_where_there_is_room_for_it() -> None:
    members = [member(i, 1024) for i in range(3)]
    scene = Scene((decoding(*members, room=1024),), places=2)
    made = plan(scene, FREE, FREE.now(scene))
    assert (made.park, made.drop) == ((2,), ())


def test_one_apart_keeps_nothing_when_it_is_parked() -> None:
    for apart, dropped in ((True, ()), (False, (1,))):
        made = free(Scene(prompts=(member(1, 3000, apart=apart),)), FREE, 10, park=True)
        assert (made.park, made.drop) == ((1,), dropped)
        assert made.usage.held == 0


def test_kept_caches_go_before_anybody_is_parked() -> None:
    live = Scene((decoding(member(0)), decoding(member(9, 9000))), places=8)
    scene = replace(live, waiting=tuple(member(i, 5000, kept=5_000_000) for i in (3, 4, 5)))
    made = plan(scene, FREE, FREE.now(live) + 10_000_000)
    assert (made.park, made.drop, made.go) == ((), (5,), ())


def test_the_last_one_goes_on_where_there_will_never_be_more() -> None:
    scene = Scene((decoding(member(1, 1024), room=1024),), places=8)
    stalled = plan(scene, FREE, FREE.now(scene) - 1)
    assert (stalled.park, stalled.drop, stalled.go) == ((1,), (), ())
    assert stalled.usage.least > FREE.now(scene) - 1
    assert plan(scene, FREE, FREE.now(scene) - 1, final=True).park == ()


def test_fewer_places_park_the_youngest() -> None:
    members = [member(i) for i in range(4)]
    made = plan(Scene((decoding(*members),), places=1), FREE, 10**9)
    assert (made.park, made.drop, made.go) == ((3, 2, 1), (), ())


def test_who_was_parked_does_not_come_back_before_a_whole_stretch_fits() -> None:
    live = decoding(member(0, 1024), member(1, 1024), room=1280)
    scene = Scene((live,), waiting=(member(2, 1024),), places=8)
    enough = FREE.next(scene, scene.waiting)
    assert plan(scene, FREE, enough - 1).go == ()
    assert plan(scene, FREE, enough).go == (2,)


def test_the_oldest_of_all_takes_its_place_from_the_youngest() -> None:
    """As one does that was interrupted elsewhere, and comes back among younger ones."""
    scene = Scene((decoding(member(2), member(3)),), waiting=(member(1),), places=2)
    made = plan(scene, FREE, 10**9)
    assert (made.park, made.go) == ((3,), (1,))
    younger = Scene((decoding(member(2), member(3)),), waiting=(member(4),), places=2)
    assert plan(younger, FREE, 10**9) == replace(
        plan(younger, FREE, 10**9), park=(), drop=(), go=()
    )


def test_a_request_with_nothing_under_way_takes_a_place_from_one_with_several() -> None:
    crowd = [member(i, request="many") for i in range(4)]
    scene = Scene((decoding(*crowd),), waiting=(member(7),), places=4)
    made = plan(scene, FREE, 10**9)
    assert (made.park, made.go) == ((3,), (7,))
    # And the choice that has made way does not take it back.
    after = Scene(
        (decoding(*crowd[:3], member(7)),), waiting=(member(3, request="many"),), places=4
    )
    assert (plan(after, FREE, 10**9).park, plan(after, FREE, 10**9).go) == ((), ())


# ── recalls ──────────────────────────────────────────────────────────────────────────────────────


def test_a_recall_gets_what_is_only_kept() -> None:
    live = Scene((decoding(member(0)),), places=8)
    scene = replace(live, waiting=(member(1, kept=1_000_000), member(2, kept=1_000_000)))
    budget = FREE.now(live) + 1_000_000
    assert free(scene, FREE, budget, park=False) == replace(
        free(scene, FREE, budget, park=False), park=(), drop=(2,), go=()
    )
    hard = free(scene, FREE, FREE.now(live) - 1, park=False)
    assert (hard.drop, hard.park) == ((2, 1), ())


def test_a_recall_that_parks_takes_the_youngest_s() -> None:
    scene = Scene((decoding(member(0), member(1), member(2)),), places=8)
    made = free(scene, FREE, FREE.now(scene) // 2, park=True)
    assert (made.park, made.drop) == ((2, 1), (2, 1))


# ── what the loan is told ────────────────────────────────────────────────────────────────────────


def test_what_waits_is_asked_for() -> None:
    scene = Scene((decoding(member(0)),), waiting=(member(1), member(2)), places=8)
    usage = plan(scene, FREE, FREE.next(scene)).usage
    assert usage.least == FREE.next(scene, [member(1)])
    assert usage.ahead == FREE.next(scene, [member(1), member(2)])
    assert usage.since == 1.0
    assert (usage.youngest, usage.parkable) == (0.0, FREE.now(scene))


def test_who_waits_for_a_place_needs_no_memory() -> None:
    scene = Scene((decoding(member(0)),), waiting=(member(1),), places=1)
    usage = plan(scene, FREE, FREE.next(scene)).usage
    assert usage.least == FREE.now(scene)


@pytest.mark.parametrize(("tokens", "urgent"), [(1024 - 65, False), (1024 - 64, True)])
def test_growth_is_asked_for_ahead_and_urgent_when_it_is_near(tokens: int, urgent: bool) -> None:
    scene = Scene((decoding(member(0, tokens), room=1024),), places=1)
    now, following = FREE.now(scene), FREE.next(scene)
    assert now < following
    usage = plan(scene, FREE, now).usage
    assert usage.ahead == following
    assert usage.least == (following if urgent else now)


def test_nothing_under_way_uses_nothing() -> None:
    usage = plan(Scene(places=8), FREE, 10**6).usage
    assert usage == type(usage)()


# ── a whole life ─────────────────────────────────────────────────────────────────────────────────


class _Played:
    """An engine of numbers: sequences of known lengths in so much memory, to their end."""

    def __init__(self, wanted: dict[int, tuple[str, int, int]], budget: int, places: int) -> None:
        """`wanted`: by key the request, the prompt's tokens and the answer's."""
        self.budget, self.places = budget, places
        self.waiting = {
            key: member(key, prompt, request=request)
            for key, (request, prompt, _) in wanted.items()
        }
        self.prompts: list[Member] = []
        self.batches: list[Batch] = []
        self.ends = {key: prompt + answer for key, (_, prompt, answer) in wanted.items()}
        self.parked = 0
        self.finished: list[int] = []

    @property
    def scene(self) -> Scene:
        return Scene(
            tuple(self.batches), tuple(self.prompts), tuple(self.waiting.values()), self.places
        )

    def step(self) -> Plan:
        made = plan(self.scene, FREE, self.budget)
        for key in made.park:
            gone = next(each for each in self.scene.live if each.key == key)
            self.waiting[key] = replace(gone, kept=COST.held(1, gone.tokens))
            self._take_out(key)
        self.parked += len(made.park)
        for key in made.drop:
            self.waiting[key] = replace(self.waiting[key], kept=0)
        for key in made.go:
            self.prompts.append(replace(self.waiting.pop(key), kept=0))
        kept = sum(each.kept for each in self.waiting.values())
        assert FREE.now(self.scene) + kept <= self.budget
        if self.prompts:
            self._start(self.prompts.pop(0))
        for batch in list(self.batches):
            self._decode(batch)
        return made

    def _start(self, one: Member) -> None:
        span, room = (one.tokens, one.tokens), grown(one.tokens)
        at = groups.join(span, [batch.span for batch in self.batches])
        if at is None:
            self.batches.append(Batch((one,), room))
        else:
            joined = self.batches[at]
            self.batches[at] = Batch((*joined.members, one), max(joined.room, room))

    def _take_out(self, key: int) -> None:
        self.prompts = [each for each in self.prompts if each.key != key]
        left = [
            Batch(tuple(m for m in batch.members if m.key != key), batch.room)
            for batch in self.batches
        ]
        self.batches = [batch for batch in left if batch.members]

    def _decode(self, batch: Batch) -> None:
        on = tuple(replace(each, tokens=each.tokens + 1) for each in batch.members)
        at = self.batches.index(batch)
        room = batch.room + STEP if max(each.tokens for each in on) > batch.room else batch.room
        self.batches[at] = Batch(on, room)
        for each in on:
            if each.tokens >= self.ends[each.key]:
                self.finished.append(each.key)
                self._take_out(each.key)


def _mixed(seed: int, count: int) -> dict[int, tuple[str, int, int]]:
    dice = random.Random(seed)
    return {
        key: (
            dice.choice(["many", f"r{key}", f"r{key}"]),
            int(10 ** dice.uniform(1, 3.5)),
            int(10 ** dice.uniform(0.5, 3)),
        )
        for key in range(count)
    }


@pytest.mark.parametrize("seed", range(8))
def test_everybody_ends_within_the_budget_whatever_they_are(seed: int) -> None:
    wanted = _mixed(seed, 20)
    longest = max(prompt + answer for _, prompt, answer in wanted.values())
    # As much as the longest takes by itself: everything else has to make do with it.
    played = _Played(wanted, FREE.alone(member(0, longest - 1)), places=12)
    steps = 0
    while len(played.finished) < len(wanted):
        before = _progress(played.batches)
        made = played.step()
        steps += 1
        assert _progress(played.batches) != before or made.go
        assert steps < 60_000
    # Parked again and again for nothing, it would be far more.
    assert played.parked < 6 * len(wanted)


def _progress(batches: Iterable[Batch]) -> list[tuple[int, int]]:
    return [(each.key, each.tokens) for batch in batches for each in batch.members]
