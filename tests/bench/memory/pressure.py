"""Long chats with one model on a small machine, beside an idle, pinned neighbour: who goes when
memory runs short.

The machine is played: its RAM in use is what a file says, which follows what the workers really
hold. The workers are real.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from supervisor.machine.readers import for_platform
from tests.bench import client, harness
from tests.bench.memory import models
from tests.bench.memory.sampler import sampling
from tests.bench.memory.scene import DEADLINE, Findings, mb, prompt, run
from tests.bench.memory.switching import worker_pids
from tests.helpers.fakes.serve import MEMORY

PHYSICAL = 1_400_000_000
OTHERS = 100_000_000
"""What other programs use of it."""
SHARE = 0.75
"""Of RAM, the budget."""
_PACE = 0.05


def play(findings: Findings, folder: Path, short: bool) -> None:
    """Chats grow turn by turn, all at once."""
    chats, turns, step = (2, 2, 60) if short else (8, 4, 150)
    findings.scene("pressure beside a pinned neighbour")
    made = {
        "busy": models.make(folder / "busy", "llama", models.FAT),
        "near": models.make(folder / "near", "llama", {}),
    }
    settings = f'[memory]\nbudget = "{int(SHARE * PHYSICAL) // 10**6}MB"\n'
    level = folder / "level"
    with harness.bulkhead(
        folder / "b",
        made,
        settings=settings,
        recovery="resume",
        scripted=True,
        own={"near": "pin = true"},
        environ={MEMORY: str(_write(level, OTHERS))},
    ) as server:
        server.warm_up("near")
        server.warm_up("busy")
        statuses: list[int] = []
        with sampling(folder / "s", server.port) as samples, _following(level, server.pid) as seen:
            for turn in range(turns):
                requests = [
                    client.chat("busy", prompt(chat, step * (turn + 1)), 16, ignore_eos=True)
                    for chat in range(chats)
                ]
                crowd = client.exchange_all(server.port, requests, DEADLINE)
                statuses += [each.answer().status for each in crowd]
        health = server.health()
    names = [name for each in samples.charges for name in each.workers]
    unloads = max(int(name[5:]) for name in names if name.startswith("near#")) - 1
    unloads += "near" not in {each["name"] for each in health["cached_models"]}
    served = statuses.count(200)
    deaths = sum(each["deaths"] for each in health["models"])
    findings.bar("the neighbour's unloads", str(unloads), "0", unloads == 0, unloads)
    findings.bar(
        "chats answered",
        f"{served} of {len(statuses)}",
        "all",
        served == len(statuses),
        served,
    )
    findings.bar("deaths", str(deaths), "0", deaths == 0, deaths)
    findings.note("RAM in use at most", f"{100 * max(seen):.0f} % of {mb(PHYSICAL)}", max(seen))
    findings.invariants("both", samples)


@contextmanager
def _following(level: Path, supervisor: int) -> Iterator[list[float]]:
    """Have the file say what the workers hold. Yields the shares of RAM that it has said."""
    over, reader, parent = threading.Event(), for_platform(), psutil.Process(supervisor)
    seen: list[float] = []

    def follow() -> None:
        while not over.wait(_PACE):
            used = OTHERS + sum(reader.footprint(pid) or 0 for pid in worker_pids(parent))
            _write(level, used)
            seen.append(used / PHYSICAL)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _write(level: Path, used: int) -> Path:
    """Whole, for it is read at any time."""
    level.parent.mkdir(parents=True, exist_ok=True)
    new = level.with_suffix(".new")
    new.write_text(json.dumps(min(100.0, 100 * used / PHYSICAL)))
    new.replace(level)
    return level


if __name__ == "__main__":
    run("pressure", __doc__, play)
