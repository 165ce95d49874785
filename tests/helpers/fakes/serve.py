"""`bulkhead serve` with scripted workers: `python -m tests.helpers.fakes.serve CONFIG STATE`."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from supervisor import serve
from supervisor.config.flags import Overrides
from supervisor.config.settings import load
from supervisor.machine.readers import MachineMemory, MemoryReader, for_platform

MEMORY = "FAKE_MEMORY"
"""Environment: a file that holds the percentage of RAM in use, as a JSON number."""
BUGS = "FAKE_BUGS"
"""Environment: functions of the supervisor that raise, such as "scheduler.pool:Pool.passed*2 …":
the second call of that one does, and the calls before and after it do not."""
ARMED = "FAKE_ARMED"
"""Environment: calls count from when this file is there."""
PHYSICAL = 100 * 10**9


class ToldReader:
    """A machine of 100 GB whose use is what a file says; its processes are the real ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._real = for_platform()

    def machine(self) -> MachineMemory:
        return MachineMemory(PHYSICAL, int(PHYSICAL * json.loads(self._path.read_text()) / 100))

    def footprint(self, pid: int) -> int | None:
        return self._real.footprint(pid)

    def glance(self, pid: int) -> int | None:
        return self._real.glance(pid)

    def wired(self, pid: int) -> int | None:
        return self._real.wired(pid)


def plant(bug: str, armed: Path) -> None:
    """Have the function raise once, of its calls from when the file `armed` is there."""
    path, _, number = bug.partition("*")
    module, _, name = path.partition(":")
    holder: Any = importlib.import_module(f"supervisor.{module}")
    *outer, last = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    real, calls = getattr(holder, last), itertools.count(1)

    @functools.wraps(real)
    def raising(*args: Any, **more: Any) -> Any:
        if armed.exists() and next(calls) == int(number or 1):
            raise RuntimeError(f"planted in {name}")
        return real(*args, **more)

    setattr(holder, last, raising)


def main() -> None:
    for bug in os.environ.get(BUGS, "").split():
        plant(bug, Path(os.environ[ARMED]))
    path, state = Path(sys.argv[1]), Path(sys.argv[2])
    settings = load(path, environ=os.environ, overrides=Overrides())
    told = os.environ.get(MEMORY)
    reader: MemoryReader | None = ToldReader(Path(told)) if told else None
    sys.exit(serve.run(settings, state, worker_module="tests.helpers.fakes.worker", reader=reader))


if __name__ == "__main__":
    main()
