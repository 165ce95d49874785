"""What the scenes share: a server that is sampled, and figures with a bar beside each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Exchange
from tests.bench.memory.sampler import Samples

DEADLINE = 900.0
"""Seconds that a scene's requests may take together."""


@dataclass(slots=True)
class Findings:
    """The figures of all scenes."""

    report: harness.Report
    rows: list[list[str]] = field(default_factory=list)
    _scene: str = ""

    def scene(self, name: str) -> None:
        """What follows belongs to it."""
        self._scene = name
        print(f"\n## {name}", flush=True)

    def note(self, figure: str, value: str, number: Any = None) -> None:
        """A figure without a bar."""
        self._add(figure, value, "-", number)

    def bar(
        self,
        figure: str,
        value: str,
        bar: str,
        holds: bool,
        number: Any = None,
        *,
        speed: bool = False,
    ) -> None:
        """A figure, and the bar that it holds or misses; see `Report.bar`."""
        self.report.bar(holds, f"{figure}: {value} ({bar})", speed=speed)
        self._add(figure, value, bar if holds else f"MISSED {bar}", number)

    def _add(self, figure: str, value: str, bar: str, number: Any) -> None:
        self.rows.append([self._scene, figure, value, bar])
        self.report.figures.setdefault(self._scene, {})[figure] = (
            value if number is None else number
        )

    def tell(self) -> None:
        """Print all of them."""
        print("\n" + harness.table(["scene", "figure", "value", "bar"], self.rows))

    def invariants(self, what: str, samples: Samples) -> None:
        """Of a server that was sampled: nothing holds more than its charge, and all charges
        together are no more than the budget."""
        over = samples.over_charge()
        if not over:
            raise Failed(f"{what}: no sample of a worker")
        worst, footprint, charge = max(over, key=lambda each: each[0])
        above = sum(each[0] > 0 for each in over)
        self.bar(
            f"{what}: samples above the charge",
            f"{above} of {len(over)}",
            "0",
            above == 0,
            {"above": above, "samples": len(over)},
        )
        self.note(
            f"{what}: closest to its charge",
            f"{mb(footprint.size)} of {mb(charge)} ({footprint.name})",
            {"footprint": footprint.size, "charge": charge, "over": worst},
        )
        highest = max(each.size for _, each, _ in over)
        self.note(f"{what}: highest footprint of a worker", mb(highest), highest)
        budgets = {each.budget for each in samples.charges}
        budget = next(iter(budgets - {None}), None)
        if budget is not None:
            self.bar(
                f"{what}: charged at most",
                mb(samples.highest_charged),
                f"<= {mb(budget)}",
                samples.over_budget() <= 0,
                samples.highest_charged,
            )
        if samples.unanswered:
            self.note(f"{what}: /health not answered", str(samples.unanswered))


Scene = Callable[[Findings, Path, bool], None]
"""Gets a temporary directory and whether it is to be short."""


def run(name: str, about: str | None, play: Scene) -> None:
    """The command line of one scene."""

    def bench(report: harness.Report, folder: Path, short: bool) -> None:
        findings = Findings(report)
        try:
            play(findings, folder, short)
        finally:
            findings.tell()

    harness.run(f"memory.{name}", (about or "").partition("\n\n")[0].replace("\n", " "), bench)


def mb(size: float) -> str:
    """Megabytes, for people."""
    return f"{size / 1e6:,.0f} MB"


def texts(exchanges: Sequence[Exchange]) -> list[str]:
    """What each was answered. Raises Failed for one that was refused, or that was cut."""
    found = []
    for exchange in exchanges:
        answer = exchange.answer()
        if answer.status != 200 or not answer.done:
            raise Failed(f"{answer.status} {exchange.fault} {answer.body[-300:]!r}")
        found.append(answer.text())
    return found


def one_by_one(port: int, requests: Sequence[bytes]) -> list[str]:
    """The answers to requests of which each waits for the one before it."""
    return [
        text for each in requests for text in texts(client.exchange_all(port, [each], DEADLINE))
    ]


def prompt(number: int, tokens: int) -> str:
    """A text of so many bytes, no two of which begin alike."""
    return (f"{number} " + f"The {number}. of many words. " * tokens)[:tokens]
