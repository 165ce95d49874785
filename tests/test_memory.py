from __future__ import annotations

from supervisor import memory
from supervisor.readers import Machine
from supervisor.report import MachineMemory


class Told:
    """A reader that answers one thing."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def machine(self) -> Machine:
        return self._machine

    def footprint(self, pid: int) -> int | None:
        return None

    def wired(self, pid: int) -> int | None:
        return None


def test_what_health_shows() -> None:
    assert memory.read(Told(Machine(physical=200, used=50))) == MachineMemory(200, 25.0)
    assert memory.read(Told(Machine(physical=200))) == MachineMemory(200, None)
    assert memory.read(Told(Machine(used=50))) == MachineMemory(None, None)


def test_this_machine() -> None:
    told = memory.read()
    assert told.physical_bytes
    assert 0 < (told.used_percent or 0) < 100
