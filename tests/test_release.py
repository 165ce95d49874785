from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.release import (
    Reading,
    Release,
    follow,
    observe,
    on_linux,
    on_macos,
    quiet_baseline,
    rest,
    share,
    unattributed,
)

GB = 10**9
MB = 10**6
# Unattributed wired memory after the reap of a 40 GB worker, sampled at 10 Hz, on a machine whose
# system alone wires 3 GB.
CLEAN = [43.0, 41.2, 36.5, 29.8, 22.1, 14.0, 7.9, 4.1, 3.1, 3.0]
"""Back within a second."""
NOISY = [43.0, 44.5, 38.0, 33.0, 35.5, 28.0, 26.0, 21.0, 24.0, 12.0, 9.0, 11.5, 5.0, 3.2]
"""The same while another program wires and unwires some gigabytes."""
STUCK = [43.0, 40.0, 38.5, 38.5, 38.5]
"""A hard kill: 35.5 GB stay."""


def test_on_linux_it_is_back_at_the_reap() -> None:
    assert on_linux(40 * GB, reaped_at=5.0).done


def test_everything_is_charged_until_the_first_reading() -> None:
    release = on_macos(40 * GB, 3 * GB, reaped_at=5.0)
    assert (release.charge, release.done, release.stranded) == (40 * GB, False, False)


def test_a_clean_exit() -> None:
    charges = [release.charge for release in steps(start(), series(CLEAN))]
    assert charges[:3] == [40 * GB, 38_200 * MB, 33_500 * MB]
    # 4.1 - 3.0 GB is above 2 % of 40 GB; 3.1 - 3.0 GB is not.
    assert charges[-3:] == [1_100 * MB, 0, 0]


def test_the_charge_never_rises_with_a_neighbours_noise() -> None:
    charges = [release.charge for release in steps(start(), series(NOISY))]
    assert charges == sorted(charges, reverse=True)
    assert charges[1] == 40 * GB  # 41.5 GB are seen: never above F
    assert charges[4] == 30 * GB  # 32.5 GB are seen after 30
    assert charges[-1] == 0


def test_a_neighbour_that_wires_for_good_delays_but_is_charged_at_most_once() -> None:
    # 5 GB of somebody else's stay: they look like ours, which is safe, and end up stranded.
    release = follow(start(), series([43.0, 20.0, 8.0] + [8.0] * 100))
    assert (release.charge, release.stranded) == (5 * GB, True)


def test_a_neighbour_that_lets_go_is_no_credit() -> None:
    release = follow(start(), series([30.0, 2.0]))
    assert release.done


def test_what_is_not_back_after_ten_seconds_is_stranded_and_still_charged() -> None:
    before = follow(start(), [Reading(9.9, 38_500 * MB)])
    assert not before.stranded
    assert before.interval == 0.1
    after = follow(start(), series(STUCK) + [Reading(10.0, 38_500 * MB)])
    assert (after.charge, after.stranded, after.done) == (35_500 * MB, True, False)
    assert after.interval == 1.0


def test_stranded_memory_that_comes_back_late_is_seen() -> None:
    stranded = follow(start(), [Reading(10.0, 38_500 * MB)])
    less = observe(stranded, Reading(60.0, 20 * GB))
    assert (less.charge, less.stranded) == (17 * GB, True)
    over = observe(less, Reading(61.0, 3 * GB))
    assert (over.charge, over.stranded, over.done) == (0, False, True)


def test_stranded_memory_is_never_charged_above_the_footprint() -> None:
    release = follow(start(), [Reading(at, 400 * GB) for at in (1.0, 10.0, 100.0)])
    assert (release.charge, release.stranded) == (40 * GB, True)


def test_memory_that_cannot_be_read_is_not_back() -> None:
    release = follow(start(), [Reading(1.0, 20 * GB), Reading(2.0, None), Reading(11.0, None)])
    assert (release.charge, release.stranded) == (17 * GB, True)


def test_a_reading_from_before_the_reap_says_nothing() -> None:
    release = on_macos(40 * GB, 3 * GB, reaped_at=5.0)
    assert observe(release, Reading(4.9, 3 * GB)) == release


def test_what_is_back_stays_back() -> None:
    done = follow(start(), series(CLEAN))
    assert observe(done, Reading(100.0, 43 * GB)) == done


@pytest.mark.parametrize(
    ("footprint", "left"), [(100 * MB, 256 * MB), (12_800 * MB, 256 * MB), (40 * GB, 800 * MB)]
)
def test_too_little_to_wait_for(footprint: int, left: int) -> None:
    assert rest(footprint) == left
    release = on_macos(footprint, 3 * GB, reaped_at=0.0)
    assert observe(release, Reading(0.1, 3 * GB + left)).done
    above = observe(release, Reading(0.1, 3 * GB + left + 1))
    assert above.done is (footprint <= left)


def test_two_releases_share_what_is_seen() -> None:
    old, new = on_macos(40 * GB, 3 * GB, 0.0), on_macos(10 * GB, 3 * GB, 1.0)
    # 30 GB are not back: 30 together, not 30 + 10.
    both = share([new, old], Reading(2.0, 33 * GB))
    assert [release.charge for release in both] == [0, 30 * GB]
    both = share([new, old], Reading(2.0, 48 * GB))
    assert [release.charge for release in both] == [5 * GB, 40 * GB]


def test_the_lowest_baseline_counts_when_several_settle() -> None:
    # The second one's was read while the first one's 40 GB were still on their way.
    old, new = on_macos(40 * GB, 3 * GB, 0.0), on_macos(10 * GB, 43 * GB, 1.0)
    both = share([old, new], Reading(2.0, 50 * GB))
    assert [release.charge for release in both] == [40 * GB, 7 * GB]


def test_sharing_leaves_the_rest_alone() -> None:
    done, early = on_linux(GB, 0.0), on_macos(10 * GB, 3 * GB, reaped_at=9.0)
    assert share([done, early], Reading(2.0, 3 * GB)) == [done, early]
    assert share([], Reading(2.0, 3 * GB)) == []
    unread = share([on_macos(10 * GB, 0, 0.0)], Reading(10.0, None))
    assert (unread[0].charge, unread[0].stranded) == (10 * GB, True)


def test_what_living_workers_have_is_not_waited_for() -> None:
    assert unattributed(50 * GB, [20 * GB, None, 7 * GB]) == 23 * GB
    assert unattributed(50 * GB, []) == 50 * GB
    assert unattributed(5 * GB, [20 * GB]) == 0
    assert unattributed(None, [20 * GB]) is None


def test_the_quiet_baseline_is_the_lowest_that_was_read() -> None:
    assert quiet_baseline([Reading(0, 5), Reading(1, None), Reading(2, 3), Reading(3, 9)]) == 3
    assert quiet_baseline([Reading(0, None)]) is None


@given(
    footprint=st.integers(0, 2**40),
    baseline=st.integers(0, 2**40),
    seen=st.lists(st.one_of(st.none(), st.integers(0, 2**42))),
)
def test_the_charge_only_falls_and_covers_what_is_left(
    footprint: int, baseline: int, seen: list[int | None]
) -> None:
    release = on_macos(footprint, baseline, 0.0)
    for i, value in enumerate(seen):
        before, release = release, observe(release, Reading(i / 10, value))
        assert 0 <= release.charge <= before.charge <= footprint
        if not before.done and value is not None:
            left = min(before.charge, max(0, value - baseline))
            assert release.charge == (left if left > rest(footprint) else 0)


@given(
    footprints=st.lists(st.integers(1, 2**36), max_size=4),
    seen=st.integers(0, 2**38),
    at=st.floats(0, 20),
)
def test_together_they_are_charged_what_is_seen_and_no_more(
    footprints: list[int], seen: int, at: float
) -> None:
    pending = [on_macos(footprint, 0, 0.0) for footprint in footprints]
    charges = [release.charge for release in share(pending, Reading(at, seen))]
    owed = min(seen, sum(footprints))
    assert sum(charges) <= owed
    assert owed - sum(charges) <= sum(rest(footprint) for footprint in footprints)


def start() -> Release:
    return on_macos(40 * GB, 3 * GB, reaped_at=0.0)


def series(gigabytes: Sequence[float]) -> list[Reading]:
    """Readings at 10 Hz."""
    return [Reading(i / 10, round(value * 10) * 100 * MB) for i, value in enumerate(gigabytes)]


def steps(release: Release, readings: Iterable[Reading]) -> list[Release]:
    """Every state on the way."""
    states = []
    for reading in readings:
        release = observe(release, reading)
        states.append(release)
    return states
