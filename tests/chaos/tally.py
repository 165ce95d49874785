"""What a storm has shown, for people and as a list of what must not be."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Written by many threads, under `lock`."""

    injected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Faults that hit, by kind and phase."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests, by kind."""
    answered: Counter[str] = field(default_factory=Counter)
    """Whole answers, by kind."""
    recovered: Counter[str] = field(default_factory=Counter)
    """Those that say that they were, by kind."""
    refused: Counter[str] = field(default_factory=Counter)
    """Answers that asked to be tried again, and were, by code."""
    wrong: list[str] = field(default_factory=list)
    """Answers that were not what they are without faults."""
    lost: list[str] = field(default_factory=list)
    """Requests that got a refusal, or none."""
    ineffective: list[str] = field(default_factory=list)
    """Faults that did not end their process."""
    healths: int = 0
    unhealthy: list[str] = field(default_factory=list)
    gateways: int = 1
    quarantined: int = 0
    """Requests. None of them kills a worker, so none should be."""
    seconds: float = 0.0
    stopped: str = ""
    """Why it ended before its last fault, if it did."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def faults(self) -> int:
        return self.injected.total()

    @property
    def answers(self) -> int:
        return self.answered.total()


def misses(tally: Tally) -> list[str]:
    """What must not be."""
    found = [f"wrong: {fault}" for fault in tally.wrong]
    found += [f"lost: {fault}" for fault in tally.lost]
    found += [f"/health: {fault}" for fault in tally.unhealthy]
    found += tally.ineffective
    if tally.asked.total() != tally.answers + len(tally.lost):
        found.append(f"{tally.asked.total()} requests, {tally.answers} answers")
    if tally.gateways != 1:
        found.append("the gateway was started again")
    if set(tally.refused) - {"model_loading"}:
        found.append(f"refused: {dict(tally.refused)}")
    if tally.quarantined:
        found.append(f"{tally.quarantined} harmless requests were quarantined")
    if not tally.recovered:
        found.append("no answer was ever recovered: the storm missed them all")
    return found


def told(tally: Tally) -> str:
    """A line for people."""
    return (
        f"{tally.faults} faults; {tally.asked.total()} requests, {tally.answers} answers, "
        f"{tally.recovered.total()} of them recovered; {tally.refused.total()} tried again; "
        f"{len(tally.wrong)} wrong, {len(tally.lost)} lost, {tally.quarantined} quarantined; "
        f"{tally.healths} looks at /health, {len(tally.unhealthy)} failed; {tally.seconds:.0f} s"
        f"{f'; {tally.stopped}' if tally.stopped else ''}"
    )


def table(tally: Tally, faults: Iterable[str], phases: Iterable[str]) -> str:
    """Faults by kind and phase, then requests by kind."""
    columns = [*phases]
    rows = [["fault", *columns, "all"]]
    for fault in faults:
        counts = [tally.injected[fault, phase] for phase in columns]
        rows.append([fault, *map(str, counts), str(sum(counts))])
    sums = [sum(tally.injected[fault, phase] for fault in faults) for phase in columns]
    rows += [["all", *map(str, sums), str(sum(sums))], [""]]
    rows.append(["request", "asked", "answered", "recovered"])
    for kind in sorted(tally.asked):
        counts = [tally.asked[kind], tally.answered[kind], tally.recovered[kind]]
        rows.append([kind, *map(str, counts)])
    return "\n".join("".join(f"{cell:<11}" for cell in row).rstrip() for row in rows)
