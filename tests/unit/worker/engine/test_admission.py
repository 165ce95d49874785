"""worker.engine.admission: who goes on, who waits and who is parked, in how much memory."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from worker.engine import groups
from worker.engine.admission import Batch, Demand, Member, Plan, Scene, free, plan
from worker.engine.kv_cost import STEP, Corrections, KvCost, Part, StepCost, grown

TOKEN = 1000
"""Bytes of KV of a token, in all layers."""
COST = KvCost(tuple((Part(TOKEN // 4),) for _ in range(4)))
FREE = Demand(COST, StepCost(), Corrections(), 512)
"""Steps that take nothing."""


def member(
    key: int, tokens: int = 1000, *, request: str = "", kept: int = 0, apart: bool = False
) -> Member:
    """The greater the key, the younger."""
    return Member(key, request or f"r{key}", (float(key), key), tokens, kept, apart=apart)


def decoding(*members: Member, room: int = 0) -> Batch:
    return Batch(members, room or grown(max(each.tokens for each in members)))


def needed(*tokens: int) -> int:
    """Bytes with which sequences of so many tokens, alike enough for one batch, can begin."""
    scene = Scene(waiting=tuple(member(i, each) for i, each in enumerate(tokens)))
    return FREE.next(scene, scene.waiting)


# ── demand ───────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_takes_rows_times_room_and_a_layer_more() -> None:
    scene = Scene((decoding(member(1, 100), member(2, 900), room=1024),))
    rows = 2 * 1024
    assert FREE.now(scene) == rows * TOKEN + rows * TOKEN // 4 + rows * 4


def test_a_batch_that_is_full_has_grown_already() -> None:
    full = Scene((decoding(member(1, 1024), room=1024),))
    roomy = Scene((decoding(member(1, 1023), room=1024),))
    assert FREE.now(full) - FREE.now(roomy) == STEP * (TOKEN * 5 // 4 + 4)
    assert FREE.next(roomy) == FREE.next(full) == FREE.now(full)


def test_very_different_lengths_are_not_padded_to_each_other() -> None:
    apart = FREE.next(Scene(), [member(1, 20_000), member(2, 100)])
    assert apart < 2 * FREE.next(Scene(), [member(1, 20_000)]) * 0.6


def test_batches_that_will_be_one_are_reckoned_as_one() -> None:
    """The shorter rows are padded when `groups.merge` joins them."""
    one, other = decoding(member(1, 2000)), decoding(member(2, 3500))
    assert groups.merge([one.span, other.span]) is not None
    rows = 2 * other.room
    assert FREE.now(Scene((one, other))) == rows * (TOKEN * 5 // 4 + 4)


def test_a_prefill_step_and_a_change_come_one_after_the_other() -> None:
    demand = Demand(COST, StepCost(prompt_token=10_000, row=7), Corrections(), 512)
    plain = FREE.next(Scene(), [member(1)])
    # Its own arrays may grow while it is computed, which is as large a change as any here.
    assert demand.next(Scene(), [member(1)]) - plain == 512 * 10_000 + 7
    crowd = Scene((decoding(*(member(n) for n in range(2, 9))),))
    change = COST.largest(8, grown(1000 + STEP)) - COST.largest(1, grown(1000 + STEP))
    several = demand.next(crowd, [member(1)]) - FREE.next(crowd, [member(1)])
    assert several == 512 * 10_000 - change + 8 * 7


def test_one_apart_is_padded_to_nobody_and_nobody_to_it() -> None:
    crowd = Scene((decoding(*(member(n, 2000) for n in range(8))),))
    alone = FREE.next(Scene(), [member(9, 6000, apart=True)])
    together = FREE.next(crowd, [member(9, 6000, apart=True)])
    assert together < FREE.next(crowd) + alone
    assert together > FREE.next(crowd) + COST.held(1, 6000)
    assert FREE.next(crowd, [member(9, 6000)]) > 2 * together


def test_one_apart_keeps_nothing_when_it_is_parked() -> None:
    for apart, dropped in ((True, ()), (False, (1,))):
        made = free(Scene(prompts=(member(1, 3000, apart=apart),)), FREE, 10, park=True)
        assert (made.park, made.drop) == ((1,), dropped)
        assert made.usage.held == 0


def test_a_step_without_a_cache_has_room_beside_everybody() -> None:
    steps = Demand(COST, StepCost(prompt_token=10_000, row=7), Corrections(), 512)
    crowd = Scene((decoding(member(1), room=1024 + STEP),))
    change = COST.largest(1, 1024 + STEP)
    assert steps.now(replace(crowd, pass_tokens=512)) - steps.now(crowd) == 5_120_000 - change
    assert steps.now(Scene(pass_tokens=512)) == 5_120_000
    assert steps.now(Scene()) == 0


def test_what_a_step_was_seen_to_take_counts() -> None:
    corrections = Corrections()
    learned = Demand(COST, StepCost(prompt_token=10_000), corrections, 512)
    before = learned.next(Scene(), [member(1)])
    corrections.observe("prefill", 100, 300)
    assert learned.next(Scene(), [member(1)]) - before == 512 * 23_000


def test_windows_keep_a_prefill_step_until_it_is_decoded_from() -> None:
    sliding = Demand(KvCost(((Part(100, window=200),),)), StepCost(), Corrections(), 512)
    scene = Scene(prompts=(member(1),))
    short = replace(sliding, chunk=0)
    assert sliding.next(scene) - short.next(scene) == 511 * 100


def test_the_longest_context_is_what_fits_by_itself() -> None:
    demand = Demand(COST, StepCost(prompt_token=2000, score=1, row=500), Corrections(), 512)
    limit = demand.alone(member(1, 4999))
    assert demand.longest(limit, 100_000) == 5000
    assert demand.longest(limit - 1, 100_000) == 4999
    assert demand.longest(limit, 300) == 300
    assert demand.longest(0, 100_000) == 100_000
    assert demand.longest(1, 100_000) == 0


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
