"""`bulkhead serve` with scripted workers: `python -m tests.helpers.fakes.serve CONFIG STATE`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from supervisor import serve
from supervisor.config.settings import Overrides, load
from supervisor.machine.readers import MachineMemory, MemoryReader, for_platform

MEMORY = "FAKE_MEMORY"
"""Environment: a file that holds the percentage of RAM in use, as a JSON number."""
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


def main() -> None:
    path, state = Path(sys.argv[1]), Path(sys.argv[2])
    settings = load(path, environ=os.environ, overrides=Overrides())
    told = os.environ.get(MEMORY)
    reader: MemoryReader | None = ToldReader(Path(told)) if told else None
    sys.exit(serve.run(settings, state, worker_module="tests.helpers.fakes.worker", reader=reader))


if __name__ == "__main__":
    main()
