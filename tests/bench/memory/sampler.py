"""What processes hold and what they are charged, read by a process of its own:
`python -m tests.bench.memory.sampler SECONDS PORT PID…`.

Every `SECONDS` it reads the footprints, as the supervisor does, of the PIDs it was given and of the
workers that `/health` on `PORT` names (0 = there is none), and on another thread `/health` itself.
It writes one JSON object a line to stdout until its stdin is closed.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisor.machine.readers import for_platform
from tests.bench import client, harness
from tests.bench.answers import Failed

SECONDS = 0.05
_HEALTH_SECONDS = 60.0
_END_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Charges:
    """What `/health` said; it was asked and answered at these times, monotonic seconds."""

    asked: float
    answered: float
    charged: int
    """Over all, bytes."""
    budget: int | None
    workers: dict[str, int]
    """Bytes by `name#generation`."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process held then, bytes. `name` is a worker's `name#generation`, or a PID."""

    at: float
    name: str
    size: int


@dataclass(slots=True)
class Samples:
    """Everything that was read, in order."""

    charges: list[Charges] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    unanswered: int = 0
    """Times that `/health` was asked in vain."""

    def held(self, name: str) -> list[int]:
        """The footprints of one process."""
        return [each.size for each in self.footprints if each.name == name]

    @property
    def slowest_health(self) -> float:
        return max((each.answered - each.asked for each in self.charges), default=0.0)

    @property
    def highest_charged(self) -> int:
        return max((each.charged for each in self.charges), default=0)

    def over_budget(self) -> int:
        """Bytes by which Σ charges exceeded the budget at worst, negative = it never did."""
        return max(
            (each.charged - each.budget for each in self.charges if each.budget is not None),
            default=-1,
        )

    def over_charge(self) -> list[tuple[int, Footprint, int]]:
        """Of each footprint of a worker: bytes above its charge, the footprint, the charge.

        A worker is charged before it takes and until it has given back, and `/health` is not read
        in the same moment: the charge is the highest that was told by an answer which may be of
        that moment, or by the last before or the first after it.
        """
        found = []
        begin = 0
        for each in self.footprints:
            while begin + 1 < len(self.charges) and self.charges[begin + 1].answered <= each.at:
                begin += 1
            charge = None
            for told in self.charges[begin:]:
                if each.name in told.workers:
                    charge = max(charge or 0, told.workers[each.name])
                if told.asked >= each.at:
                    break
            if charge is not None:
                found.append((each.size - charge, each, charge))
        return found

    @classmethod
    def parse(cls, lines: Sequence[str]) -> Samples:
        samples = cls()
        for line in lines:
            match json.loads(line):
                case {"unanswered": _}:
                    samples.unanswered += 1
                case {"asked": _, **rest} as whole if rest:
                    samples.charges.append(Charges(**whole))
                case whole:
                    samples.footprints.append(Footprint(**whole))
        return samples


@contextmanager
def sampling(folder: Path, port: int = 0, *pids: int) -> Iterator[Samples]:
    """Sample while the block runs; what it has yielded is filled in afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = Samples()
    command = [sys.executable, "-m", __name__, str(SECONDS), str(port), *map(str, pids)]
    file = folder / "samples"
    with file.open("wb") as stdout:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, cwd=harness.ROOT)
        try:
            assert process.stdin is not None
            deadline = time.monotonic() + _END_SECONDS
            while not file.stat().st_size and process.poll() is None:
                if time.monotonic() > deadline:
                    raise Failed("the sampler does not begin")
                time.sleep(SECONDS)
            yield samples
            process.stdin.close()
            if process.wait(_END_SECONDS) != 0:
                raise Failed("the sampler died")
        finally:
            harness.end(process)
    found = Samples.parse(file.read_text().splitlines())
    samples.charges, samples.footprints = found.charges, found.footprints
    samples.unanswered = found.unanswered
    if not samples.footprints:
        raise Failed("the sampler has seen nothing")


# ── the process ──────────────────────────────────────────────────────────────────────────────────


class _Sampler:
    def __init__(self, seconds: float, port: int, pids: Sequence[int]) -> None:
        self._seconds = seconds
        self._port = port
        self._names = {pid: str(pid) for pid in pids}
        self._workers: dict[int, str] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        """Around stdout."""

    def run(self) -> None:
        asking = threading.Thread(target=self._ask_for_ever, daemon=True)
        if self._port:
            asking.start()
        reader = for_platform()
        while not select.select([sys.stdin], [], [], self._seconds)[0]:
            for pid, name in {**self._names, **self._workers}.items():
                at = time.monotonic()
                size = reader.footprint(pid)
                if size:
                    self._tell({"at": at, "name": name, "size": size})
        self._over.set()
        if self._port:
            asking.join(_HEALTH_SECONDS)

    def _ask_for_ever(self) -> None:
        while not self._over.wait(self._seconds):
            asked = time.monotonic()
            try:
                health = client.get(self._port, "/health", _HEALTH_SECONDS).json()
            except (OSError, Failed, ValueError):
                self._tell({"unanswered": asked})
                continue
            answered = time.monotonic()
            loaded = [each for each in health["cached_models"] if each["pid"] is not None]
            names = {each["pid"]: f"{each['name']}#{each['generation']}" for each in loaded}
            self._tell(
                {
                    "asked": asked,
                    "answered": answered,
                    "charged": health["memory"]["charged_bytes"],
                    "budget": health["memory"]["budget_bytes"],
                    "workers": {names[each["pid"]]: each["charge_bytes"] for each in loaded},
                }
            )
            self._workers = names

    def _tell(self, what: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _Sampler(float(sys.argv[1]), int(sys.argv[2]), [int(pid) for pid in sys.argv[3:]]).run()
