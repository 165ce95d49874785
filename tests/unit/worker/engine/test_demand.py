"""worker.engine.demand: what sequences take, reckoned beforehand."""

from __future__ import annotations

from dataclasses import replace

from tests.helpers.scenes import COST, FREE, TOKEN, decoding, member
from worker.engine import groups
from worker.engine.demand import Demand
from worker.engine.kv_cost import STEP, Corrections, KvCost, Part, StepCost, grown
from worker.engine.scene import Scene


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
