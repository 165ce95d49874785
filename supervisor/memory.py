"""What the machine has and uses, for `/health`."""

from __future__ import annotations

from supervisor.readers import Reader, for_platform
from supervisor.report import MachineMemory


def read(reader: Reader | None = None) -> MachineMemory:
    """Physical RAM and its use, None where the platform won't tell."""
    machine = (reader or for_platform()).machine()
    return MachineMemory(machine.physical, machine.used_percent)
