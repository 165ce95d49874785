"""All scenes of memory, one after another."""

from __future__ import annotations

from pathlib import Path

from tests.bench import harness
from tests.bench.answers import Failed
from tests.bench.memory import (
    alternating,
    fat_cache,
    long_prompts,
    oversubscribed,
    pressure,
    switching,
    waiting_bodies,
)
from tests.bench.memory.scene import Findings, Scene

SCENES: tuple[Scene, ...] = (
    switching.play,
    alternating.play,
    oversubscribed.play,
    fat_cache.play,
    long_prompts.play,
    waiting_bodies.play,
    pressure.play,
)


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Play them; one that can't go on is a bar that is missed, and the others follow."""
    findings = Findings(report)
    for number, play in enumerate(SCENES):
        try:
            play(findings, folder / str(number), short)
        except Failed as failure:
            findings.bar("the scene completes", str(failure), "yes", holds=False)
    findings.tell()


if __name__ == "__main__":
    harness.run("memory", "what models take in memory, beside what they are charged", bench)
