"""The command and its table."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from supervisor.cli.client import Refusal, Unreachable, fail
from supervisor.cli.selftest.faults import KILLS, STARVES, WEDGES, Injection
from supervisor.cli.selftest.instance import CannotStart, private_instance
from supervisor.cli.selftest.run import RoundResult, run_rounds

_COLUMNS = 120
"""Of the table where it goes into a file or a pipe."""
Kill = Annotated[bool, typer.Option("--kill", help="Signals that end a worker.")]
Wedge = Annotated[bool, typer.Option("--wedge", help="A worker that stands still.")]
Oom = Annotated[bool, typer.Option("--oom", help="A worker that gets no more memory.")]


def selftest(kill: Kill = False, wedge: Wedge = False, oom: Oom = False) -> None:
    """Exit status 1 when a request was lost, a fault not seen, or a death not recovered from."""
    chosen = [
        *(KILLS if kill else ()),
        *(WEDGES if wedge else ()),
        *(STARVES if oom else ()),
    ] or [*KILLS, *WEDGES, *STARVES]
    try:
        rows = _run(chosen)
    except (CannotStart, Unreachable, Refusal) as error:
        fail(f"the private instance failed: {error}")
    if not all(row.is_passed for row in rows):
        raise SystemExit(1)


def _run(faults: Sequence[Injection]) -> list[RoundResult]:
    console = Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _COLUMNS
    )
    console.print(f"A private instance with the demo model, {len(faults)} faults, under load.")
    with private_instance() as instance:
        rows = list(run_rounds(instance, faults))
    console.print(result_table(rows))
    for row in rows:
        for failure in row.failures:
            console.print(f"{row.fault.value}: {failure}")
    lost = sum(row.lost.total() for row in rows)
    console.print(f"{lost} requests lost" if lost else "No request was lost.")
    return rows


def result_table(rows: Sequence[RoundResult]) -> Table:
    """One line a round. "same" is of whole answers; on Metal, text after a cut may differ."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("fault", no_wrap=True)
    columns = "asked", "whole", "recovered", "same", "refused", "lost", "seen after", "pause"
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(
            row.fault.value,
            *map(str, (row.requests, row.whole, row.recovered, row.same)),
            _counts(row.refused),
            _counts(row.lost),
            _seconds(row.detected),
            _seconds(row.pause),
        )
    return made


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counted.items())) or "0"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
