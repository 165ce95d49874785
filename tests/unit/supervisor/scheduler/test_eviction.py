"""supervisor.scheduler.eviction: the order of each policy, and who is chosen from it."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.scheduler.eviction import (
    HALF_LIFE,
    POLICIES,
    Candidate,
    aged,
    choose,
    make_room,
    order,
)

GB = 10**9

# From a user's account: three models, and how often each was used.
CODER = Candidate("qwen2.5-coder-32b", 20 * GB, 50, 300.0, 3.0, 25.3)
PHI = Candidate("phi3.5-mini-4k", 3 * GB, 5, 200.0, 1.0, 8.2)
DEEPSEEK = Candidate("deepseek-r1-70b", 42 * GB, 2, 400.0, 1.0, 90.0)
USED = [CODER, PHI, DEEPSEEK]


def names(candidates: list[Candidate]) -> list[str]:
    return [candidate.model for candidate in candidates]


@pytest.mark.parametrize(
    ("policy", "first_to_last"),
    [
        ("lru", ["phi3.5-mini-4k", "qwen2.5-coder-32b", "deepseek-r1-70b"]),
        ("use_count", ["deepseek-r1-70b", "phi3.5-mini-4k", "qwen2.5-coder-32b"]),
        # 1 × 90 / 42, 1 × 8.2 / 3, 3 × 25.3 / 20 seconds of waiting saved per GB
        ("gdsf", ["deepseek-r1-70b", "phi3.5-mini-4k", "qwen2.5-coder-32b"]),
    ],
)
def test_each_policy_has_its_order(policy: str, first_to_last: list[str]) -> None:
    assert names(order(USED, policy)) == first_to_last


def test_equal_use_counts_go_by_the_last_use() -> None:
    old, new = Candidate("a", GB, 3, 5.0), Candidate("b", GB, 3, 4.0)
    assert names(order([old, new], "use_count")) == ["b", "a"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Candidate("x", GB, frequency=2.0), Candidate("y", GB, frequency=1.0)),
        (Candidate("x", GB, frequency=1.0, load_seconds=9.0), Candidate("y", GB, frequency=1.0)),
        (Candidate("x", GB, frequency=1.0), Candidate("y", 2 * GB, frequency=1.0)),
    ],
    ids=["frequency", "reload time", "size"],
)
def test_gdsf_weighs(better: Candidate, worse: Candidate) -> None:
    assert names(order([better, worse], "gdsf")) == ["y", "x"]


def test_yesterdays_favourite_ages() -> None:
    assert aged(8.0, 0) == 8.0
    assert aged(8.0, HALF_LIFE) == 4.0
    assert aged(8.0, 4 * HALF_LIFE) < 1.0


@pytest.mark.parametrize("policy", POLICIES)
def test_the_order_does_not_depend_on_how_they_come(policy: str) -> None:
    same = [Candidate(name, GB) for name in "cab"]
    assert names(order(same, policy)) == ["a", "b", "c"]
    assert order(USED, policy) == order(USED[::-1], policy)


def sized(*sizes: int) -> list[Candidate]:
    return [Candidate(f"m{i}", size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "need", "slots", "chosen"),
    [
        ((5, 5, 5), 5, 0, ["m0"]),
        ((5, 5, 5), 6, 0, ["m0", "m1"]),
        ((5, 5, 5), 16, 0, []),
        ((2, 20), 10, 0, ["m1"]),  # the large one makes the small one's end useless
        ((2, 3, 20), 21, 0, ["m0", "m2"]),
        ((5, 5), 0, 1, ["m0"]),
        ((5, 5), 0, 0, []),
        ((5, 5), -3, 2, ["m0", "m1"]),
        ((5,), 1, 2, []),
        ((), 1, 0, []),
    ],
)
def test_the_fewest_of_the_first_are_chosen(
    sizes: tuple[int, ...], need: int, slots: int, chosen: list[str]
) -> None:
    assert names(choose(sized(*sizes), need, slots)) == chosen


def test_gdsf_leaves_the_choice_between_equals_to_the_order() -> None:
    equals = [Candidate(name, GB, frequency=1.0) for name in "abc"]
    assert names(make_room(equals, "gdsf", GB)) == ["a"]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(-3, 40), st.integers(0, 3))
def test_nobody_goes_in_vain(sizes: list[int], need: int, slots: int) -> None:
    chosen = choose(sized(*sizes), need, slots)
    enough = sum(sizes) >= need and len(sizes) >= slots
    assert bool(chosen) == (enough and (need > 0 or slots > 0))
    if chosen:
        assert sum(one.bytes for one in chosen) >= need
        assert len(chosen) >= slots
    for fewer in combinations(chosen, max(0, len(chosen) - 1)):
        assert not chosen or sum(one.bytes for one in fewer) < need or len(fewer) < slots


def test_gdsf_finds_the_cheapest_set_and_the_others_keep_their_order() -> None:
    """An agent's loop: the reviewer's 2 GB would cost 90 s by density, 25 s by loss."""
    plan = Candidate("plan", 42 * GB, 9, 1.0, 1.0, 90.0)
    code = Candidate("code", 20 * GB, 25, 2.0, 2.5, 25.0)
    assert order([plan, code], "gdsf") == [plan, code]
    assert make_room([plan, code], "gdsf", 2 * GB) == [code]
    assert make_room([plan, code], "gdsf", 21 * GB) == [plan]
    assert make_room([plan, code], "gdsf", 50 * GB) == [plan, code]
    assert make_room([plan, code], "gdsf", 63 * GB) == []
    assert make_room([plan, code], "lru", 2 * GB) == [plan]
    assert make_room([plan, code], "use_count", 2 * GB) == [plan]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(1, 9)), max_size=6),
    st.integers(1, 30),
    st.integers(0, 2),
)
def test_no_set_is_cheaper(models: list[tuple[int, int, int]], need: int, slots: int) -> None:
    candidates = [
        Candidate(f"m{i}", size, frequency=uses, load_seconds=load)
        for i, (size, uses, load) in enumerate(models)
    ]

    def loss(chosen: tuple[Candidate, ...]) -> float:
        return sum(one.frequency * one.load_seconds for one in chosen)

    enough = [
        chosen
        for count in range(slots, len(candidates) + 1)
        for chosen in combinations(candidates, count)
        if sum(one.bytes for one in chosen) >= need
    ]
    chosen = tuple(make_room(candidates, "gdsf", need, slots))
    assert bool(chosen) == bool(enough)
    if chosen:
        assert loss(chosen) == min(map(loss, enough))
        assert sum(one.bytes for one in chosen) >= need
        assert len(chosen) >= slots
