"""What the machine has and uses."""

from __future__ import annotations

import os

import psutil

from supervisor.report import MachineMemory


def read() -> MachineMemory:
    """Physical RAM and its use. psutil's figure fails on macOS 27, which must not fail /health."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        used: float | None = psutil.virtual_memory().percent
    except (psutil.Error, OSError, RuntimeError):
        used = None
    return MachineMemory(physical, used)
