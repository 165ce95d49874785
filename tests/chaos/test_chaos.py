"""Faults at random moments under load: the short form of `make chaos`."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import (
    AIMS,
    BARREN_MAX,
    BATCH_MIN,
    FAULTS,
    IDLING,
    YOUNG,
    Past,
    plan,
    reached,
)
from tests.chaos.sdk import Targets
from tests.chaos.storm import Tally, misses, storm, told
from tests.helpers.fakes.signs import DECODE, IDLE, IMPORT, PREFILL, Sign


def test_a_small_storm_changes_no_answer(tmp_path: Path) -> None:
    tally = storm(tmp_path, faults=3, seed=5, each=1, tokens=20)
    assert misses(tally) == [], told(tally)
    assert tally.answers >= 32
    assert tally.faults == 3


def test_all_faults_come_in_all_phases_but_no_request_is_alone_after_a_death() -> None:
    dice, past, seen = random.Random(1), Past(), Counter[tuple[str, str]]()
    accuses, barren = False, 0
    for _ in range(20_000):
        wanted = plan(dice, past)
        phase = dice.choice((None, IMPORT, IDLE, PREFILL, DECODE))
        running = dice.randrange(1, 6) if phase in (PREFILL, DECODE) else 0
        sign = None if phase is None else Sign(phase, running, phase == DECODE)
        if not reached(wanted.aim, sign) or not past.allows(sign):
            continue
        alone = 0 < running < BATCH_MIN
        assert not (accuses and alone)
        accuses |= running > 0
        barren = 1 if phase == DECODE else barren + 1
        assert barren <= BARREN_MAX + 1
        past.died(sign)
        seen[wanted.fault, wanted.aim] += 1
    unseen = {(fault, aim) for fault in FAULTS for aim in AIMS} - set(seen)
    assert unseen <= {("torn", YOUNG), ("torn", IDLING)}


def test_half_a_frame_is_not_ordered_where_it_could_come_too_late() -> None:
    past = Past(accuses=True)
    plans = [plan(random.Random(seed), past) for seed in range(200)]
    planned = {(each.fault, each.aim) for each in plans}
    assert not planned & {("torn", YOUNG), ("torn", IDLING)}


@pytest.mark.parametrize(
    ("miss", "said"),
    [
        ({"wrong": ["x"]}, "wrong: x"),
        ({"lost": ["x"], "asked": Counter(plain=2)}, "lost: x"),
        ({"unhealthy": ["500"]}, "/health: 500"),
        ({"ineffective": ["x"]}, "x"),
        ({"asked": Counter(plain=2)}, "2 requests, 1 answers"),
        ({"gateways": 2}, "the gateway was started again"),
        ({"refused": Counter(queue_full=1)}, "refused: {'queue_full': 1}"),
        ({"quarantined": 1}, "1 harmless requests were quarantined"),
        ({"recovered": Counter()}, "no answer was ever recovered: the storm missed them all"),
    ],
)
def test_a_miss_is_told(miss: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {
        "asked": Counter(plain=1),
        "answered": Counter(plain=1),
        "recovered": Counter(plain=1),
    }
    assert misses(Tally(**good)) == []
    assert misses(Tally(**{**good, **miss})) == [said]


def test_applications_see_no_model_killed_three_times_before_it_has_answered() -> None:
    targets, now = Targets(), time.monotonic()
    for _ in range(2):
        assert targets.allow("m")
        targets.killed("m")
    targets.served("m", now)  # asked before the deaths: perhaps said before them
    assert not targets.allow("m")
    assert targets.allow("other")
    targets.served("m", time.monotonic())
    assert targets.allow("m")
