"""worker.engine.groups: which sequences share a batch."""

from __future__ import annotations

import random

import pytest

from worker.engine import groups


def ratio(lengths: list[int]) -> float:
    return groups.size(max(lengths)) / groups.size(min(lengths))


@pytest.mark.parametrize(
    ("length", "size"), [(0, 1024), (1, 1024), (1024, 1024), (1025, 1280), (1280, 1280)]
)
def test_lengths_count_in_steps_of_the_cache_and_short_ones_alike(length: int, size: int) -> None:
    assert groups.size(length) == size


def test_ordinary_chats_share_one_batch() -> None:
    assert groups.join((900, 900), [(5, 1000)]) == 0
    assert groups.join((5, 5), [(1500, 3000)]) == 0
    assert groups.together([3, 800, 1024, 40]) == [[0, 1, 2, 3]]


def test_a_long_one_begins_a_batch_of_its_own() -> None:
    assert groups.join((16000, 16000), [(100, 1000)]) is None
    assert groups.join((16000, 16000), []) is None


def test_of_several_batches_the_nearest_is_joined() -> None:
    assert groups.join((4000, 4000), [(1300, 2000), (4500, 5000), (9000, 12000)]) == 1


def test_who_joins_is_not_parted_at_the_next_step() -> None:
    """By whatever grows: all rows do, a token a step."""
    chance = random.Random(1)
    for _ in range(2000):
        batch = [chance.randrange(1, 40_000)]
        for _ in range(chance.randrange(1, 6)):
            new = chance.randrange(1, 40_000)
            if groups.join((new, new), [groups.span(batch)]) == 0:
                batch.append(new)
        assert ratio(batch) <= groups.JOIN
        for steps in range(0, groups.UNIT + 1, 32):
            assert not groups.part([length + steps for length in batch]), batch


def test_the_short_ones_leave_when_the_longest_has_outgrown_them() -> None:
    assert groups.part([100, 4096]) == []
    assert groups.part([100, 4097]) == [0]
    assert groups.part([4097, 100, 1100, 1400]) == [1, 2]


def test_parted_rows_are_not_merged_at_once_and_both_parts_fit() -> None:
    chance = random.Random(2)
    parted = 0
    for _ in range(3000):
        batch = [chance.randrange(1, 20_000) for _ in range(chance.randrange(2, 9))]
        leaving = groups.part(batch)
        if not leaving:
            assert ratio(batch) <= groups.MOST
            continue
        stay = [length for i, length in enumerate(batch) if i not in leaving]
        gone = [batch[i] for i in leaving]
        assert ratio(stay) <= groups.JOIN
        assert groups.merge([groups.span(stay), groups.span(gone)]) is None
        assert groups.join(groups.span(gone), [groups.span(stay)]) is None
        parted += 1
    assert parted > 100


def test_batches_merge_when_they_have_come_to_be_of_about_one_length() -> None:
    assert groups.merge([(1000, 1100), (5000, 9000)]) is None
    assert groups.merge([(1000, 1100), (9000, 9900), (5000, 7000)]) == (1, 2)
    assert groups.merge([(3000, 3000)]) is None


def test_together_makes_few_batches_that_fit() -> None:
    lengths = [20_000, 10, 9_000, 500, 8_000, 2_000]
    found = groups.together(lengths)
    assert sorted(i for batch in found for i in batch) == list(range(6))
    assert all(ratio([lengths[i] for i in batch]) <= groups.JOIN for batch in found)
    assert found == [[1, 3, 5], [0, 2, 4]]
