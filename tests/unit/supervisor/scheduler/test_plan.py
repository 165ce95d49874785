"""supervisor.scheduler.plan: the numbered decisions, one snapshot at a time."""

from __future__ import annotations

import pytest

from supervisor.scheduler.eviction import Candidate
from supervisor.scheduler.model import Rules
from supervisor.scheduler.plan import (
    Capacity,
    Demand,
    Loan,
    Means,
    Need,
    Tenant,
    Unload,
    make_plan,
)

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


# ── needs ────────────────────────────────────────────────────────────────────────────────────────

W, V = ("w", 1), ("v", 1)


def need(
    least: int, most: int = 0, since: float = 99.0, *, drains: bool = False, pinned: bool = False
) -> Need:
    return Need(W, least, most or least, since, drains, pinned)


def test_a_what_is_free_is_lent_as_much_as_is_of_use() -> None:
    assert make_plan([], [], capacity(5), RULES, NOW, [need(2, 4)]).lend == {W: 4}
    assert make_plan([], [], capacity(3), RULES, NOW, [need(2, 4)]).lend == {W: 3}
    assert make_plan([], [], capacity(1), RULES, NOW, [need(2, 4)]).lend == {}


@pytest.mark.parametrize(("since", "start"), [(98.0, []), (99.5, ["b"])])
def test_loads_and_needs_stand_in_one_queue(since: float, start: list[str]) -> None:
    decided = make_plan([demand("b", 3)], [], capacity(4), RULES, NOW, [need(2, since=since)])
    assert decided.start == start
    assert decided.lend == ({} if start else {W: 2})


def test_what_is_asked_for_ahead_of_need_is_lent_last_and_takes_from_nobody() -> None:
    ahead = Need(V, 0, 4, since=1.0)
    assert make_plan([], [], capacity(3), RULES, NOW, [ahead]).lend == {V: 3}
    assert make_plan([], [], capacity(5), RULES, NOW, [ahead, need(2)]).lend == {W: 2, V: 3}
    assert make_plan([demand("b", 4)], [], capacity(5), RULES, NOW, [ahead]).lend == {V: 1}
    idle = [Loan(W, idle=9, in_use=1, youngest=99.0, parkable=1)]
    for free in (0, -1):
        decided = make_plan([], [tenant("t", 5)], capacity(free), RULES, NOW, [ahead], idle)
        assert (decided.lend, decided.recall, decided.unload) == ({}, {}, [])


def test_b_what_is_back_in_a_moment_is_kept_and_a_drain_does_not_count() -> None:
    soon, drains = capacity(0, coming=9), capacity(0, coming=9)
    soon.soon, drains.soon = 3, 0
    needs = [need(3), Need(V, 1, 1, 99.5)]
    idle = [tenant("x", 5)]
    assert make_plan([], idle, soon, RULES, NOW, needs[:1]).unload == []
    assert make_plan([], idle, soon, RULES, NOW, needs[1:]).lend == {}  # it is spoken for
    assert make_plan([], idle, drains, RULES, NOW, needs[:1]).unload == [Unload("x", "w")]


def test_c_idle_loans_the_least_valuable_first_and_not_its_own() -> None:
    loans = [Loan(W, idle=9), Loan(("old", 1), idle=1), Loan(("new", 1), idle=5)]
    decided = make_plan([], [tenant("x", 9)], capacity(1), RULES, NOW, [need(2, 4)], loans)
    assert decided.recall == {("old", 1): 1, ("new", 1): 2}
    assert decided.unload == []


def test_d_an_idle_model_goes_once_it_may() -> None:
    decided = make_plan([], [tenant("x", 9, safe=130.0)], capacity(1), RULES, NOW, [need(2)])
    assert (decided.unload, decided.wake) == ([], 130.0)
    busy = [tenant("x", 9, busy=True)]
    assert make_plan([], busy, capacity(1), RULES, NOW, [need(2, since=0.0)]).unload == []


def test_e_the_youngest_gives_what_idle_ones_do_not_and_nobody_behind_gets_anything() -> None:
    loans = [Loan(V, idle=1, in_use=4, youngest=99.5, parkable=4)]
    others = [need(3, since=98.0), Need(("u", 1), 1, 1, 99.9)]
    decided = make_plan([demand("b", 1, 99.8)], [], capacity(1), RULES, NOW, others, loans)
    assert decided.recall == {V: 1}
    assert decided.park == (V, 1)
    assert (decided.start, decided.lend) == ([], {})


def test_e_but_who_drains_ends_with_what_is_free() -> None:
    loans = [Loan(V, idle=1, in_use=4, youngest=99.5, parkable=4)]
    drains, ahead = Need(("u", 1), 1, 3, 99.9, drains=True), Need(("t", 1), 0, 1, 99.9, drains=True)
    behind = [need(5, since=98.0), ahead, drains, Need(("s", 1), 1, 1, 99.9)]
    decided = make_plan([], [], capacity(2), RULES, NOW, behind, loans)
    assert decided.lend == {("u", 1): 1}


def test_f_who_cannot_be_served_holds_nobody_up() -> None:
    loans = [Loan(V, in_use=4, youngest=98.5, parkable=4, stands=True)]
    needs = [need(9, since=98.0), Need(("u", 1), 1, 1, 99.9)]
    decided = make_plan([], [], capacity(1), RULES, NOW, needs, loans)
    assert (decided.lend, decided.park, decided.recall) == ({("u", 1): 1}, None, {})


def test_what_stands_by_itself_and_is_older_is_out_of_reach() -> None:
    for stands, parks in ((True, False), (False, True)):
        older = Loan(("u", 1), in_use=4, stands=stands)
        younger = Loan(V, in_use=1, youngest=99.5, parkable=1)
        decided = make_plan([], [], capacity(0), RULES, NOW, [need(3)], [older, younger])
        assert (decided.park is not None) is parks


def test_a_need_of_a_draining_worker_takes_what_is_kept_for_whoever_it_drains_for() -> None:
    for drains, lend in ((True, {W: 2}), (False, {})):
        room = capacity(3, coming=8)
        room.soon = 3
        decided = make_plan([demand("a", 8, 90.0)], [], room, RULES, NOW, [need(2, drains=drains)])
        assert decided.lend == lend


def test_behind_an_impatient_load_pinned_workers_leave_it_its_room() -> None:
    tenants = [tenant("x", 5, safe=130.0)]
    for pinned, most, lend in ((False, 10, {W: 3}), (True, 10, {}), (True, 11, {W: 3})):
        decided = make_plan(
            [demand("a", 8, 80.0)],
            tenants,
            capacity(4, most=most),
            RULES,
            NOW,
            [need(3, pinned=pinned)],
        )
        assert decided.lend == lend


def test_2_idle_loans_make_up_for_a_load_before_a_model_goes() -> None:
    loans = [Loan(V, idle=3), Loan(W, idle=3, drains=True)]
    tenants = [tenant("x", 5)]
    decided = make_plan([demand("a", 5)], tenants, capacity(2), RULES, NOW, (), loans)
    assert (decided.recall, decided.unload) == ({V: 3}, [])
    loans = [Loan(V, idle=3)]
    decided = make_plan([demand("a", 8)], tenants, capacity(2), RULES, NOW, (), loans)
    assert (decided.recall, decided.unload) == ({V: 1}, [Unload("x", "a")])


def test_who_is_unloaded_takes_its_idle_loan_with_it() -> None:
    loans = [Loan(("x", 1), idle=3), Loan(V, idle=2)]
    decided = make_plan([demand("a", 9)], [tenant("x", 5)], capacity(0), RULES, NOW, (), loans)
    assert decided.unload == [Unload("x", "a")]
    assert decided.recall == {V: 1}


def test_2_what_drains_is_on_its_way_already_with_its_idle_loan() -> None:
    loans = [Loan(V, idle=3, drains=True)]
    decided = make_plan([demand("a", 5)], [tenant("x", 5)], capacity(2), RULES, NOW, (), loans)
    assert (decided.recall, decided.unload) == ({}, [Unload("x", "a")])


def test_e_of_all_the_youngest_is_parked() -> None:
    loans = [
        Loan(("u", 1), in_use=2, youngest=99.4, parkable=2),
        Loan(V, in_use=2, youngest=99.5, parkable=2),
    ]
    assert make_plan([], [], capacity(0), RULES, NOW, [need(2)], loans).park == (V, 2)
