"""Resident memory of gateway and supervisor, idle and with 32 streams running.

RSS is what bars are set for; PSS, which shares out common pages, is shown beside it. Neither
process may have mlx mapped. Needs /proc.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Exchange, Load

STREAMS = 32
GATEWAY, SUPERVISOR, WORKER = "gateway", "supervisor", "worker"
BARS = {GATEWAY: 60.0, SUPERVISOR: 45.0}
"""MB (10^6 bytes) of RSS, at any time."""
_SAMPLE_SECONDS = 0.1
_SETTLE_SECONDS = 1.0
_DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Memory:
    """MB of one process."""

    rss: float
    pss: float


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise Failed("/proc/PID/smaps_rollup is needed")
    tokens, rounds = (32, 1) if short else (256, 8)
    model = harness.make_model(folder / "model", seed=1)
    with harness.bulkhead(folder / "b", {"tiny": model}) as server:
        start = {GATEWAY: server.gateway(), SUPERVISOR: server.pid}
        fresh = _read(start)
        server.warm_up("tiny")
        pids = {**start, WORKER: server.workers()["tiny"]}
        time.sleep(_SETTLE_SECONDS)
        idle = _read(pids)
        busy = [_under_load(server.port, pids, tokens) for _ in range(rounds)]
        time.sleep(_SETTLE_SECONDS)
        after = _read(pids)
        mapped = {role: _maps_mlx(pid) for role, pid in pids.items()}
        if server.gateway() != pids[GATEWAY] or server.workers()["tiny"] != pids[WORKER]:
            raise Failed("a process was replaced during the run")
    _tell(report, fresh, idle, busy, after, mapped)


def _under_load(port: int, pids: dict[str, int], tokens: int) -> dict[str, Memory]:
    """The highest figures seen while the streams run."""
    exchanges = [
        Exchange(client.chat("tiny", f"{i} f", tokens, ignore_eos=True)) for i in range(STREAMS)
    ]
    connections = client.connect(port, STREAMS)
    highest = dict.fromkeys(pids, Memory(0, 0))
    try:
        load = Load()
        for connection, exchange in zip(connections, exchanges, strict=True):
            load.start(connection, exchange)
        deadline = time.monotonic() + _DEADLINE
        due = time.monotonic() + _SAMPLE_SECONDS
        while load.running and time.monotonic() < deadline:
            load.step(max(0.0, due - time.monotonic()))
            if time.monotonic() >= due:
                due = time.monotonic() + _SAMPLE_SECONDS
                highest = _higher(highest, _read(pids))
        load.give_up()
    finally:
        for connection in connections:
            connection.close()
    for exchange in exchanges:
        answer = exchange.answer()
        if not answer.done or answer.usage()["completion_tokens"] != tokens:
            raise Failed(f"a bad stream: {answer.status} {exchange.fault}")
    return highest


def _higher(one: dict[str, Memory], other: dict[str, Memory]) -> dict[str, Memory]:
    return {
        role: Memory(max(one[role].rss, other[role].rss), max(one[role].pss, other[role].pss))
        for role in one
    }


def _read(pids: dict[str, int]) -> dict[str, Memory]:
    return {role: _memory(pid) for role, pid in pids.items()}


def _memory(pid: int) -> Memory:
    """Raises OSError when the process is gone."""
    status = Path(f"/proc/{pid}/status").read_text()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return Memory(_field(status, "VmRSS:"), _field(rollup, "Pss:"))


def _field(text: str, name: str) -> float:
    """MB of a line such as `VmRSS:  12345 kB`, whose kB are 1,024 bytes."""
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise Failed(f"no {name} in /proc")


def _maps_mlx(pid: int) -> bool:
    return "mlx" in Path(f"/proc/{pid}/maps").read_text().lower()


def _tell(
    report: harness.Report,
    fresh: dict[str, Memory],
    idle: dict[str, Memory],
    busy: list[dict[str, Memory]],
    after: dict[str, Memory],
    mapped: dict[str, bool],
) -> None:
    highest = busy[0]
    for sample in busy[1:]:
        highest = _higher(highest, sample)
    phases = {"started": fresh, "model loaded": idle, f"{STREAMS} streams": highest, "after": after}
    roles = list(mapped)
    header = ["RSS / PSS, MB", *roles]
    rows = [
        [
            name,
            *(
                f"{phase[role].rss:.1f} / {phase[role].pss:.1f}" if role in phase else "-"
                for role in roles
            ),
        ]
        for name, phase in phases.items()
    ]
    print(harness.table(header, rows))
    for role, bar in BARS.items():
        most = max(phase[role].rss for phase in phases.values())
        report.bar(most <= bar, f"{role}: RSS {most:.1f} MB <= {bar:.0f} MB")
        report.bar(not mapped[role], f"{role}: no mlx in its maps")
    if not mapped[WORKER]:
        report.bar(False, "the worker maps mlx, or the search for it proves nothing")
    report.figures = {
        name: {role: {"rss_mb": m.rss, "pss_mb": m.pss} for role, m in phase.items()}
        for name, phase in phases.items()
    }


if __name__ == "__main__":
    harness.run("footprint", (__doc__ or "").partition("\n")[0], bench)
