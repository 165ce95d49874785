"""What the machine has and uses, read the same way on Linux and macOS.

A reader never raises and never waits long: what can't be read is None, and whoever asks treats
None as "unknown", never as zero.
"""

from __future__ import annotations

import sys

from supervisor.machine.readers.base import MemoryReader
from supervisor.machine.readers.linux import LinuxReader
from supervisor.machine.readers.macos import MacReader
from supervisor.machine.readers.working_set import working_set
from supervisor.scheduler.pressure import MachineMemory, SystemPressure

__all__ = [
    "LinuxReader",
    "MacReader",
    "MachineMemory",
    "MemoryReader",
    "SystemPressure",
    "for_platform",
    "working_set",
]


def for_platform(platform: str = sys.platform) -> MemoryReader:
    """The reader of this machine."""
    return MacReader() if platform == "darwin" else LinuxReader()
