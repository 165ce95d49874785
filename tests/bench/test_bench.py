"""The short form of the benchmarks whose bars are facts and not speeds.

Speeds are for `make bench-all` on a machine that does nothing else.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.serving import ROOT


@pytest.mark.parametrize(
    "name",
    [
        "crashes",
        "fairness",
        "footprint",
        "relay",
        "memory.alternating",
        "memory.fat_cache",
        "memory.long_prompts",
        "memory.oversubscribed",
        "memory.pressure",
        "memory.waiting_bodies",
    ],
)
def test_short_form(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{name}", "--short", "--any-speed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
