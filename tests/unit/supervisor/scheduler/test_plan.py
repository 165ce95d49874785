"""supervisor.scheduler.plan: the numbered decisions, one snapshot at a time."""

from __future__ import annotations

import pytest

from supervisor.scheduler.eviction import Candidate
from supervisor.scheduler.model import Rules
from supervisor.scheduler.plan import Capacity, Demand, Means, Tenant, Unload, make_plan

RULES = Rules(policy="lru", max_wait=10.0, min_residency=0.0)
NOW = 100.0


def demand(
    model: str, size: int, since: float = 99.0, means: Means = Means.EVICTION, load: float = 1.0
) -> Demand:
    return Demand(model, size, since, load, means)


def tenant(
    model: str, size: int, *, busy: bool = False, safe: float = 0.0, used: float = 0.0
) -> Tenant:
    return Tenant(Candidate(model, size, last_used=used), busy, safe)


def capacity(
    free: float, coming: float | None = None, most: float = 100, slots: float = 99
) -> Capacity:
    return Capacity(free, free if coming is None else coming, most, slots, slots, 99)


def test_1_what_fits_starts_in_the_order_of_the_queue() -> None:
    demands = [demand("b", 3, 98.0), demand("a", 3, 97.0), demand("c", 3, 99.0)]
    assert make_plan(demands, [], capacity(6), RULES, NOW).start == ["a", "b"]


def test_2_what_fits_soon_waits_and_keeps_its_room() -> None:
    demands = [demand("a", 8, 97.0), demand("b", 3, 98.0), demand("c", 2, 99.0)]
    decided = make_plan(demands, [tenant("x", 5)], capacity(5, coming=10), RULES, NOW)
    assert decided.start == ["c"]  # 10 - 8 are left beside it
    assert decided.unload == [Unload("x", "b")]


def test_3_idle_models_go_by_policy() -> None:
    tenants = [tenant("new", 5, used=90.0), tenant("old", 5, used=80.0)]
    decided = make_plan([demand("a", 5)], tenants, capacity(0), RULES, NOW)
    assert decided.unload == [Unload("old", "a")]
    assert decided.start == []


def test_3_nobody_goes_when_it_would_not_help() -> None:
    decided = make_plan([demand("a", 8)], [tenant("x", 5)], capacity(2), RULES, NOW)
    assert decided.unload == []


@pytest.mark.parametrize(("since", "unload"), [(90.1, []), (90.0, [Unload("x", "a")])])
def test_4_busy_models_go_when_patience_is_over(since: float, unload: list[Unload]) -> None:
    decided = make_plan(
        [demand("a", 5, since)], [tenant("x", 5, busy=True)], capacity(0), RULES, NOW
    )
    assert decided.unload == unload
    assert decided.wake == (None if unload else pytest.approx(100.1))


def test_4_idle_ones_go_before_busy_ones() -> None:
    tenants = [tenant("busy", 5, busy=True, used=1.0), tenant("idle", 5, used=2.0)]
    assert make_plan([demand("a", 5, 0.0)], tenants, capacity(0), RULES, NOW).unload == [
        Unload("idle", "a")
    ]
    both = make_plan([demand("a", 10, 0.0)], tenants, capacity(0), RULES, NOW).unload
    assert {unload.victim for unload in both} == {"busy", "idle"}


def test_minimum_residency_protects_even_from_the_impatient() -> None:
    decided = make_plan(
        [demand("a", 5, 0.0)], [tenant("x", 5, safe=130.0)], capacity(0), RULES, NOW
    )
    assert (decided.unload, decided.wake) == ([], 130.0)


def test_5_nobody_overtakes_the_impatient() -> None:
    demands = [demand("a", 8, 80.0), demand("b", 1, 95.0)]
    tenants = [tenant("x", 5, safe=130.0)]
    assert make_plan(demands, tenants, capacity(4), RULES, NOW).start == []


def test_6_whoever_fits_overtakes_the_patient() -> None:
    demands = [demand("a", 8, 95.0), demand("b", 1, 96.0)]
    assert make_plan(demands, [tenant("x", 5, busy=True)], capacity(4), RULES, NOW).start == ["b"]


def test_pins_hold_up_whom_they_rule_out_and_nobody_else() -> None:
    demands = [demand("a", 8, 0.0), demand("b", 1, 95.0)]
    assert make_plan(demands, [], capacity(4, most=4), RULES, NOW).start == ["b"]


def test_a_preload_takes_free_room_alone() -> None:
    preload = demand("a", 5, 0.0, Means.FREE_ROOM)
    assert make_plan([preload], [tenant("x", 5)], capacity(4), RULES, NOW).unload == []
    assert make_plan([preload], [tenant("x", 5)], capacity(5), RULES, NOW).start == ["a"]


def test_a_model_on_its_way_out_keeps_its_turn() -> None:
    demands = [demand("a", 5, 90.0, Means.WAIT), demand("b", 5, 95.0)]
    assert make_plan(demands, [], capacity(5), RULES, NOW).start == []
    assert make_plan(demands, [], capacity(10), RULES, NOW).start == ["b"]


def test_places_are_room_as_well() -> None:
    tenants = [tenant("x", 1)]
    decided = make_plan([demand("a", 1)], tenants, capacity(50, slots=0), RULES, NOW)
    assert (decided.start, decided.unload) == ([], [Unload("x", "a")])
    assert make_plan([demand("a", 1)], tenants, capacity(50, slots=1), RULES, NOW).start == ["a"]


def test_two_demands_never_count_on_the_same_victim() -> None:
    demands = [demand("a", 5, 97.0), demand("b", 5, 98.0)]
    decided = make_plan(demands, [tenant("x", 5), tenant("y", 5)], capacity(0), RULES, NOW)
    assert decided.unload == [Unload("x", "a"), Unload("y", "b")]


@pytest.mark.parametrize(
    ("loads", "seconds"), [((1.0, 2.0), 9.0), ((0.1, 0.1), 1.0), ((90.0, 25.0), 60.0)]
)
def test_patience_is_three_times_both_loads_within_bounds(
    loads: tuple[float, float], seconds: float
) -> None:
    assert Rules().patience(*loads) == seconds


@pytest.mark.parametrize(("load", "seconds"), [(0.0, 0.0), (5.0, 10.0), (31.0, 60.0)])
def test_residency_is_twice_the_load_up_to_a_minute(load: float, seconds: float) -> None:
    assert Rules().residency(load) == seconds


def test_two_that_fit_one_by_one_do_not_start_together() -> None:
    """Neither on the same bytes nor on the same place, though more of both is on its way."""
    demands = [demand("a", 3, 97.0), demand("b", 3, 98.0)]
    assert make_plan(demands, [], Capacity(4, 10, 100, 9, 9, 9), RULES, NOW).start == ["a"]
    assert make_plan(demands, [], Capacity(50, 50, 100, 1, 9, 9), RULES, NOW).start == ["a"]
    assert make_plan(demands, [], Capacity(6, 6, 100, 2, 2, 9), RULES, NOW).start == ["a", "b"]


def test_a_model_on_its_way_out_keeps_a_place_as_well() -> None:
    demands = [demand("a", 1, 90.0, Means.WAIT), demand("b", 1), demand("c", 1)]
    assert make_plan(demands, [], capacity(50, slots=2), RULES, NOW).start == ["b"]


def test_places_are_made_for_each_demand() -> None:
    demands = [demand("a", 1, 97.0), demand("b", 1, 98.0)]
    tenants = [tenant("x", 1), tenant("y", 1)]
    decided = make_plan(demands, tenants, capacity(50, slots=0), RULES, NOW)
    assert decided.unload == [Unload("x", "a"), Unload("y", "b")]


def test_what_a_victim_leaves_over_is_for_whoever_comes_next() -> None:
    demands = [demand("a", 7, 97.0), demand("b", 2, 98.0)]
    decided = make_plan(demands, [tenant("x", 5)], capacity(4), RULES, NOW)
    assert (decided.unload, decided.start) == ([Unload("x", "a")], ["b"])


def test_the_cheapest_idle_ones_go_whoever_is_busy() -> None:
    """By density `large` would go first; `small` loses less waiting."""
    large = Candidate("large", 42, frequency=1.0, load_seconds=90.0)
    small = Candidate("small", 20, frequency=2.5, load_seconds=25.0)
    tenants = [Tenant(large, False, 0.0), Tenant(small, False, 0.0), tenant("x", 50, busy=True)]
    rules = Rules(policy="gdsf", max_wait=0.0)
    decided = make_plan([demand("a", 2)], tenants, capacity(0), rules, NOW)
    assert decided.unload == [Unload("small", "a")]


def test_the_next_change_is_the_earliest_of_any_demand_and_never_now() -> None:
    demands = [demand("a", 8, 95.0), demand("b", 8, 97.0)]
    decided = make_plan(demands, [tenant("x", 9, busy=True)], capacity(0), RULES, NOW)
    assert decided.wake == 105.0
    tenants = [tenant("x", 5, safe=NOW), tenant("y", 5, safe=130.0)]
    assert make_plan([demand("a", 8)], tenants, capacity(0), RULES, NOW).wake == 130.0


@pytest.mark.parametrize(("since", "overtaken"), [(90.1, True), (90.0, False)])
def test_5_patience_ends_to_the_second(since: float, overtaken: bool) -> None:
    demands = [demand("a", 8, since), demand("b", 1, 95.0)]
    decided = make_plan(demands, [tenant("x", 5, safe=130.0)], capacity(4), RULES, NOW)
    assert decided.start == (["b"] if overtaken else [])


def test_5_patience_with_nobody_is_that_of_the_own_load() -> None:
    demands = [demand("a", 8, 70.0, load=10.0), demand("b", 1, 95.0)]
    assert make_plan(demands, [], capacity(4), Rules(), NOW).start == []
