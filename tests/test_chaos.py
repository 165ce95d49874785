"""Faults at random moments under load: the short form of `make chaos`."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

from tests.chaos.faults import FAULTS, plan
from tests.chaos.sdk import Targets
from tests.chaos.storm import KINDS, storm, told, verdict


def test_a_small_storm_changes_no_answer(tmp_path: Path) -> None:
    tally = storm(tmp_path, faults=3, seed=5, each=1, tokens=40)
    assert verdict(tally) == [], told(tally)
    assert tally.answers >= 32


def test_storms_have_every_fault_in_every_phase_and_no_model_is_kept_from_loading() -> None:
    dice, last, seen = random.Random(1), None, Counter[tuple[str, str]]()
    for _ in range(500):
        last, before = plan(dice, tuple(KINDS), last), last
        seen[last.fault, last.phase] += 1
        if last.phase == "load":
            assert before is not None
            assert (before.phase, before.model) == ("serve", last.model)
    assert len(seen) == 2 * len(FAULTS)


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
