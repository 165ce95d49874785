"""supervisor.scheduler.ledger: charges before spawns, and memory that comes back late or never."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.scheduler.ledger import (
    STRANDED_SECONDS,
    Ledger,
    OverBudget,
    Phase,
    Reserved,
    auto_budget,
)

GB = 10**9
A, B = ("a", 1), ("b", 1)


def test_a_charge_is_taken_while_it_fits_and_not_a_byte_more() -> None:
    ledger = Ledger(10 * GB)
    ledger.charge(A, 6 * GB)
    assert ledger.free == 4 * GB
    with pytest.raises(OverBudget):
        ledger.charge(B, 4 * GB + 1)
    ledger.charge(B, 4 * GB)
    assert (ledger.charged, ledger.free) == (10 * GB, 0)


def test_an_incarnation_is_charged_once() -> None:
    ledger = Ledger(10 * GB)
    ledger.charge(A, GB)
    with pytest.raises(OverBudget):
        ledger.charge(A, GB)


def test_without_a_budget_everything_fits() -> None:
    ledger = Ledger()
    ledger.charge(A, 10**15)
    assert ledger.fits(10**18)
    assert ledger.can_ever_fit(10**18)


@pytest.mark.parametrize(("size", "possible"), [(10 * GB, True), (10 * GB + 1, False)])
def test_what_can_never_fit_is_told_from_what_does_not_fit_now(size: int, possible: bool) -> None:
    ledger = Ledger(10 * GB)
    ledger.charge(A, 9 * GB)
    assert not ledger.fits(size)
    assert ledger.can_ever_fit(size) is possible


def test_a_measurement_replaces_the_estimate_and_may_break_the_budget() -> None:
    ledger = Ledger(10 * GB)
    ledger.charge(A, 4 * GB)
    ledger.measure(A, 3 * GB)
    assert (ledger.of(A), ledger.charged, ledger.charges[A].phase) == (3 * GB, 3 * GB, "measured")
    ledger.measure(A, 11 * GB)
    assert ledger.free == -1 * GB


def test_a_release_gives_back_what_was_measured() -> None:
    ledger = Ledger(10 * GB)
    ledger.charge(A, 4 * GB)
    ledger.measure(A, 5 * GB)
    ledger.release(A)
    assert (ledger.charged, ledger.of(A)) == (0, 0)


# ── macOS: memory comes back when it is seen to ──────────────────────────────────────────────────


def dead(footprint: int | None = 40 * GB, charge: int = 44 * GB) -> Ledger:
    """A ledger in which `a` was reaped at 100 s."""
    ledger = Ledger(100 * GB)
    ledger.charge(A, charge)
    if footprint is not None:
        ledger.footprint(A, footprint)
    ledger.exited(A, 100.0)
    return ledger


def test_the_charge_stays_until_the_first_reading() -> None:
    ledger = dead()
    assert (ledger.of(A), ledger.charges[A].phase) == (44 * GB, Phase.RELEASING)


# Unattributed wired memory after the reap of a 40 GB worker, GB, read at 10 Hz, on a machine whose
# system alone wires 3 GB.
CLEAN = [43.0, 41.2, 36.5, 29.8, 22.1, 14.0, 7.9, 4.1, 3.1, 3.0]
"""Back within a second."""
NOISY = [43.0, 44.5, 38.0, 33.0, 35.5, 28.0, 26.0, 21.0, 24.0, 12.0, 9.0, 11.5, 5.0, 3.2]
"""The same while another program wires and unwires some gigabytes."""
STUCK = [43.0, 40.0, 38.5, 38.5, 38.5]
"""A hard kill: 35.5 GB stay."""


def follow(ledger: Ledger, wired: list[float], seconds: float = 0.1) -> list[float]:
    """What `a` is charged after each of the recorded readings, GB."""
    charges = []
    for i, value in enumerate(wired):
        ledger.observe(int((value - 3) * GB), 100.0 + (i + 1) * seconds)
        charges.append(round(ledger.of(A) / GB, 2))
    return charges


def test_a_clean_end_as_recorded() -> None:
    charges = follow(dead(), CLEAN)
    assert charges[:3] == [40, 38.2, 33.5]
    # 4.1 - 3.0 GB is above 2 % of 40 GB; 3.1 - 3.0 GB is not.
    assert charges[-3:] == [1.1, 0, 0]


def test_the_charge_never_rises_with_a_neighbours_noise() -> None:
    charges = follow(dead(), NOISY)
    assert charges == sorted(charges, reverse=True)
    assert charges[1] == 40  # 41.5 GB are seen: never above the footprint
    assert charges[4] == 30  # 32.5 GB are seen after 30
    assert charges[-1] == 0


def test_a_hard_kill_as_recorded() -> None:
    ledger = dead()
    assert follow(ledger, STUCK)[-1] == 35.5
    assert ledger.stranded == 0
    assert ledger.observe(int(35.5 * GB), 100.0 + STRANDED_SECONDS) == [A]
    assert (ledger.stranded, ledger.charged) == (int(35.5 * GB), int(35.5 * GB))


def test_a_neighbour_that_wires_for_good_delays_but_is_charged_at_most_once() -> None:
    # 5 GB of somebody else's stay: they look like ours, which is safe, and end up stranded.
    ledger = dead()
    follow(ledger, [43.0, 20.0, 8.0] + [8.0] * 100)
    assert ledger.stranded == 5 * GB


def test_stranded_memory_is_never_charged_above_the_footprint() -> None:
    ledger = dead()
    follow(ledger, [400.0, 400.0, 400.0], seconds=10.0)
    assert ledger.stranded == 40 * GB


@pytest.mark.parametrize(
    ("series", "charges", "over_at"),
    [
        # Recorded shape of an orderly end: gone within a second.
        ([40.0, 31.0, 9.0, 0.2], [40, 31, 9, 0], 3),
        # Never above the footprint, though others wire memory meanwhile.
        ([55.0, 48.0, 12.0, 0.0], [40, 40, 12, 0], 3),
        # A neighbour's burst after the worst was over: a dead process takes nothing back.
        ([20.0, 60.0, 60.0, 0.1], [20, 20, 20, 0], 3),
        # 2 % of the footprint is noise, 3 % is not.
        ([1.2, 1.2, 0.79, 0.0], [1.2, 1.2, 0, 0], 2),
        # Below the baseline: a neighbour left. Nothing negative is charged.
        ([-3.0, 0.0, 0.0, 0.0], [0, 0, 0, 0], 0),
    ],
)
def test_the_charge_follows_recorded_series(
    series: list[float], charges: list[float], over_at: int
) -> None:
    ledger = dead()
    for i, (reading, charge) in enumerate(zip(series, charges, strict=True)):
        over = ledger.observe(int(reading * GB), 100.1 + i)
        assert ledger.of(A) == int(charge * GB)
        assert over == ([A] if i == over_at else [])


def test_a_small_model_ends_at_256_megabytes() -> None:
    ledger = dead(footprint=GB, charge=GB)
    assert ledger.observe(257 * 10**6, 100.1) == []
    assert ledger.observe(256 * 10**6, 100.2) == [A]
    assert ledger.charged == 0


def test_a_footprint_that_comes_late_is_of_nobody() -> None:
    ledger = dead()
    ledger.footprint(A, GB)  # its pid may be another's by now
    ledger.observe(30 * GB, 100.1)
    assert ledger.of(A) == 30 * GB


def test_without_a_footprint_the_charge_is_the_bound() -> None:
    ledger = dead(footprint=None)
    ledger.observe(60 * GB, 100.1)
    assert ledger.of(A) == 44 * GB


def test_what_is_not_back_after_ten_seconds_is_stranded_and_stays_charged() -> None:
    ledger = dead()
    assert ledger.observe(30 * GB, 109.9) == []
    assert ledger.observe(30 * GB, 100.0 + STRANDED_SECONDS) == [A]
    assert (ledger.stranded, ledger.charged) == (30 * GB, 30 * GB)
    assert ledger.observe(30 * GB, 200.0) == []
    assert not ledger.fits(71 * GB)


def test_stranded_memory_that_comes_back_after_all_is_released() -> None:
    ledger = dead()
    ledger.observe(30 * GB, 111.0)
    assert ledger.observe(5 * GB, 500.0) == []
    assert ledger.stranded == 5 * GB
    assert ledger.observe(0, 501.0) == [A]
    assert (ledger.stranded, ledger.charged) == (0, 0)


def test_without_a_reading_everything_is_assumed_stranded() -> None:
    ledger = dead()
    ledger.strand(A)
    assert ledger.stranded == 44 * GB


def test_two_dead_are_never_charged_more_than_is_there() -> None:
    ledger = Ledger(100 * GB)
    for key in (A, B):
        ledger.charge(key, 20 * GB)
        ledger.exited(key, 100.0)
    ledger.observe(25 * GB, 100.1)
    assert (ledger.of(A), ledger.of(B)) == (20 * GB, 5 * GB)
    assert ledger.observe(10 * GB, 100.2) == [B]
    assert ledger.charged == 10 * GB


def test_the_living_are_not_touched_by_readings() -> None:
    ledger = Ledger(100 * GB)
    ledger.charge(B, 9 * GB)
    ledger.footprint(B, 5 * GB)
    assert ledger.observe(0, 1.0) == []
    assert ledger.of(B) == 9 * GB


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=4),
    st.lists(st.integers(-5, 80), max_size=20),
)
def test_charges_of_the_dead_only_fall(sizes: list[tuple[int, int]], readings: list[int]) -> None:
    ledger = Ledger()
    for i, (charge, footprint) in enumerate(sizes):
        ledger.charge(("m", i), charge * GB)
        ledger.footprint(("m", i), footprint * GB)
        ledger.exited(("m", i), 0.0)
    before = ledger.charged
    for i, reading in enumerate(readings):
        ledger.observe(reading * GB, float(i))
        assert ledger.charged <= before
        assert ledger.charged <= max(0, reading * GB)
        assert ledger.charged == sum(charge.bytes for charge in ledger.charges.values())
        before = ledger.charged


@pytest.mark.parametrize(
    ("physical", "working_set", "budget"),
    [
        (128, 96, 96),  # macOS: the working set is the smaller
        (128, 125, 115.2),  # raised by hand beyond RAM less 10 %
        (16, 14, 12),  # a reserve of 4 GB
        (6, 5, 3),  # a small machine keeps half
        (64, None, 48),  # Linux
    ],
)
def test_the_automatic_budget(physical: float, working_set: float | None, budget: float) -> None:
    bytes_ = None if working_set is None else int(working_set * GB)
    assert auto_budget(int(physical * GB), bytes_) == int(budget * GB)


def test_what_is_reserved_is_no_part_of_the_budget() -> None:
    ledger = Ledger(10)
    assert ledger.reserved == 0
    ledger.reserve(Reserved.GATEWAY, 2)
    ledger.reserve(Reserved.SPARE, 3)
    assert (ledger.reserved, ledger.budget, ledger.free) == (5, 5, 5)
    unlimited = Ledger()
    unlimited.reserve(Reserved.SPARE, 2)
    assert (unlimited.reserved, unlimited.budget) == (2, None)
