"""worker.engine.slices: whose prompt goes on, and by how much."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from worker.engine import slices
from worker.engine.slices import PREFILL_BATCH, PREFILL_STEP, Pace, Prompt, Room, Speeds


def bound(tokens: int) -> Callable[[Prompt], Room]:
    """The same for everybody."""
    return lambda prompt: Room(tokens, tokens)


unbound = bound(10**9)


def play(
    prompts: list[Prompt],
    fits: Callable[[Prompt], Room],
    arrivals: dict[int, Prompt] | None = None,
) -> list[dict[Any, int]]:
    """The parts of every slice until all are done; `arrivals` come before the slice of a number."""
    left = list(prompts)
    done: list[dict[Any, int]] = []
    after_oldest = False
    arrivals = dict(arrivals or {})
    while left or arrivals:
        if len(done) in arrivals:
            left.append(arrivals.pop(len(done)))
        chosen = slices.choose(left, fits, after_oldest=after_oldest)
        after_oldest = chosen.of_oldest
        assert 1 <= len(chosen.parts) <= PREFILL_BATCH
        done.append(chosen.parts)
        rest = []
        for each in left:
            size = chosen.parts.get(each.key)
            if size is None:
                rest.append(each)
            elif size < each.left:
                rest.append(Prompt(each.key, each.left - size, each.done + size, True, each.scored))
        assert rest != left
        left = rest
    return done


# ── whose turn it is ─────────────────────────────────────────────────────────────────────────────


def test_alone_a_prompt_goes_in_whole_steps() -> None:
    assert play([Prompt("a", 1100)], unbound) == [{"a": 512}, {"a": 512}, {"a": 76}]


def test_a_burst_of_short_prompts_goes_through_together() -> None:
    burst = [Prompt(i, 100 + i) for i in range(10)]
    found = play(burst, unbound)
    assert [sorted(parts) for parts in found] == [list(range(8)), [8, 9]]


def test_a_burst_goes_through_in_as_many_slices_as_its_tokens_need_beside_others() -> None:
    burst = [Prompt(i, 100) for i in range(8)]
    assert [len(parts) for parts in play(burst, bound(304))] == [3, 3, 2]
    assert [len(parts) for parts in play(burst, bound(96))] == [1] * 8  # the tail goes along


def test_a_slice_of_several_may_be_shorter_than_one_of_one_prompt() -> None:
    burst = [Prompt(i, 100) for i in range(5)]
    assert [len(parts) for parts in play(burst, lambda prompt: Room(512, 200))] == [2, 2, 1]
    long = [Prompt("long", 700), Prompt("short", 20)]
    found = play(long, lambda prompt: Room(512, 64))
    assert found == [{"long": 512}, {"short": 20}, {"long": 188}]


@pytest.mark.parametrize("arrival", [1, 2, 3, 4])
def test_a_short_prompt_behind_a_long_one_starts_within_two_slices(arrival: int) -> None:
    found = play([Prompt("long", 30_000)], bound(256), {arrival: Prompt("short", 90)})
    assert any("short" in parts for parts in found[arrival : arrival + 2])


def test_a_long_prompt_goes_on_however_many_short_ones_come() -> None:
    arrivals = {at: Prompt(f"short {at}", 200) for at in range(1, 60)}
    found = play([Prompt("long", 256 * 25)], bound(256), arrivals)
    turns = [at for at, parts in enumerate(found) if "long" in parts]
    assert all(after - before <= 2 for before, after in itertools.pairwise(turns))


def test_equal_prompts_finish_one_after_another() -> None:
    found = play([Prompt(i, 2000) for i in range(4)], unbound)
    order = [next(iter(parts)) for parts in found]
    assert order == sorted(order)


def test_one_that_has_begun_keeps_its_batch_to_itself() -> None:
    prompts = [Prompt("a", 40, 512, begun=True), Prompt("b", 40)]
    assert slices.choose(prompts, unbound, after_oldest=False).parts == {"a": 40}


def test_those_that_only_have_to_start_do_so_together_and_apart_from_the_rest() -> None:
    """To caches with a window a token beside none would be a decode step."""
    prompts = [Prompt("a", 0), Prompt("b", 1), Prompt("c", 0, 300)]
    assert slices.choose(prompts, unbound, after_oldest=False).parts == {"a": 0, "c": 0}
    assert slices.choose(prompts[1:2], unbound, after_oldest=False).parts == {"b": 1}


def test_caches_of_very_different_length_are_not_padded_to_each_other() -> None:
    prompts = [Prompt("a", 0, 20_000), Prompt("b", 0, 300), Prompt("c", 0, 9000)]
    assert slices.choose(prompts, unbound, after_oldest=False).parts == {"a": 0, "c": 0}


def test_very_different_prompts_are_not_padded_to_each_other() -> None:
    prompts = [Prompt("a", 500), Prompt("b", 100), Prompt("c", 130), Prompt("d", 64)]
    assert slices.choose(prompts, unbound, after_oldest=False).parts == {"a": 500, "c": 130}
    assert slices.choose(prompts[3:], unbound, after_oldest=False).parts == {"d": 64}


def test_scored_prompts_share_what_is_else_one_s() -> None:
    scored = [Prompt(i, 200, scored=True) for i in range(4)]
    found = play([*scored, Prompt("plain", 200)], unbound)
    assert [list(parts) for parts in found] == [[0, 1], [2, 3], ["plain"]]


def test_no_slice_is_padded_beyond_what_fits() -> None:
    prompts = [Prompt(i, 1 + 37 * i % 600) for i in range(30)]
    for most in (8, 64, 200, 1000):
        for parts in play(prompts, bound(most)):
            assert len(parts) * max(parts.values()) <= most * 9 / 8
            assert max(parts.values()) <= PREFILL_STEP


def test_a_small_rest_goes_with_its_slice() -> None:
    assert play([Prompt("a", 70)], bound(64)) == [{"a": 70}]
    assert play([Prompt("a", 80)], bound(64)) == [{"a": 64}, {"a": 16}]


# ── how much fits ────────────────────────────────────────────────────────────────────────────────


def test_before_anything_is_known_slices_are_small() -> None:
    assert Speeds().tokens(0.1, 0, scored=False) == slices.FIRST_TOKENS


def test_a_slice_has_the_tokens_that_its_time_allows() -> None:
    speeds = Speeds()
    speeds.learn(500, 0, 0.5, scored=False)
    assert speeds.tokens(0.1, 0, scored=False) == 96  # a multiple of 8
    assert speeds.tokens(0.0001, 0, scored=False) == slices.LEAST_TOKENS


def test_what_is_slower_is_learned_faster() -> None:
    up, down = Speeds(), Speeds()
    for speeds, seconds in ((up, 0.25), (down, 1.0)):
        speeds.learn(500, 0, 0.5, scored=False)
        speeds.learn(500, 0, seconds, scored=False)
    gained = up.tokens(1.0, 0, scored=False) - 1000
    lost = 1000 - down.tokens(1.0, 0, scored=False)
    assert 150 < gained < 250
    assert 200 < lost < 300


def test_further_places_are_guessed_slower_until_they_are_known() -> None:
    speeds = Speeds()
    speeds.learn(1000, 0, 1.0, scored=False)
    near, far, farther = (speeds.tokens(1.0, at, scored=False) for at in (500, 1500, 30_000))
    assert (near, far, farther) == (1000, 496, 120)
    speeds.learn(800, 3000, 1.0, scored=False)
    assert speeds.tokens(1.0, 1500, scored=False) == 800  # not faster than what follows
    assert speeds.tokens(1.0, 500, scored=False) == 1000


def test_scored_prompts_have_a_speed_of_their_own() -> None:
    speeds = Speeds()
    speeds.learn(1000, 0, 1.0, scored=False)
    assert speeds.tokens(1.0, 0, scored=True) == slices.FIRST_TOKENS


def test_a_handful_of_tokens_teaches_nothing() -> None:
    speeds = Speeds()
    speeds.learn(3, 0, 1.0, scored=False)
    speeds.learn(300, 0, 0.0, scored=False)
    assert speeds.tokens(1.0, 0, scored=False) == slices.FIRST_TOKENS


@pytest.mark.parametrize(
    ("step", "seconds"), [(0.0, 0.1), (0.0005, 0.02), (0.002, 0.05), (0.03, 0.1), (0.4, 0.8)]
)
def test_a_slice_takes_a_tenth_of_a_second_or_two_decode_steps_at_most(
    step: float, seconds: float
) -> None:
    pace = Pace()
    for _ in range(40 if step else 0):
        pace.learn(step)
    assert pace.of_one(2, 2) == pytest.approx(seconds, rel=0.01)


def test_where_more_wait_than_decode_a_slice_has_its_whole_time() -> None:
    pace = Pace()
    pace.learn(0.001)
    assert pace.of_one(3, 2) == slices.SLICE_SECONDS > pace.of_one(2, 2)


@pytest.mark.parametrize(
    ("prompts", "decoding", "seconds"),
    [(8, 0, 0.2), (60, 4, 0.09375), (16, 16, 0.05), (8, 56, 0.02), (1, 7, 0.02)],
)
def test_prompts_share_a_slice_for_as_long_as_is_their_share_of_all_who_wait(
    prompts: int, decoding: int, seconds: float
) -> None:
    pace = Pace()
    pace.learn(0.018)
    assert pace.of_several(prompts, decoding) == pytest.approx(seconds)


def test_a_shared_slice_may_take_as_long_as_a_decode_step() -> None:
    pace = Pace()
    assert pace.of_several(1, 100) == slices.SLICE_SECONDS  # nothing is known yet
    pace.learn(0.06)
    assert pace.of_several(1, 100) == pytest.approx(0.06)
    for _ in range(40):
        pace.learn(0.4)
    assert pace.of_several(9, 1) == pytest.approx(0.72, rel=0.01)


def test_where_nobody_decodes_a_slice_is_what_a_recall_waits_for() -> None:
    pace = Pace()
    for step in (0.001, 0.5):
        assert pace.of_one(1, 0) == pace.of_several(1, 0) == slices.ALONE_SECONDS
        pace.learn(step)


def test_one_step_of_a_machine_that_stood_still_hardly_counts() -> None:
    pace = Pace()
    pace.learn(30.0)
    assert pace.step == slices.LONGEST_FIRST
    pace.learn(30.0)
    assert pace.step == pytest.approx(1.2 * slices.LONGEST_FIRST)


def test_the_pace_follows_the_steps() -> None:
    pace = Pace()
    pace.learn(0.002)
    for _ in range(30):
        pace.learn(0.006)
    assert pace.step == pytest.approx(0.006, rel=0.01)
