"""Memory on Linux, from /proc and the control groups' files."""

from __future__ import annotations

import re
from pathlib import Path

from supervisor.machine.readers.cgroups import Cgroups, ReadText
from supervisor.scheduler.pressure import MachineMemory, SystemPressure

_FIELD = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE | re.ASCII)
_STALL = re.compile(r"^(some|full) avg10=(\d+(?:\.\d+)?)", re.MULTILINE | re.ASCII)
WARN_STALL = 10.0
"""Percent of the last 10 s in which some task waited for memory."""
CRITICAL_STALL = 20.0
"""Percent of the last 10 s in which every task did: the machine is thrashing."""


def read_text(path: str) -> str:
    """Raises OSError."""
    return Path(path).read_text("ascii", "replace")


class LinuxReader:
    """`MemoryReader` over /proc and this process' control groups. `read` is for tests."""

    def __init__(self, read: ReadText = read_text) -> None:
        self._read = read
        self._cgroups = Cgroups(read)

    def machine(self) -> MachineMemory:
        fields = kilobytes(self._text("/proc/meminfo"))
        physical = fields.get("MemTotal")
        available = fields.get("MemAvailable")
        swap, swap_free = fields.get("SwapTotal"), fields.get("SwapFree")
        return MachineMemory(
            physical=physical,
            used=None if physical is None or available is None else max(0, physical - available),
            swap_used=None if swap is None or swap_free is None else max(0, swap - swap_free),
            level=pressure(self._text("/proc/pressure/memory")),
            groups=self._cgroups.memory(),
        )

    def footprint(self, pid: int) -> int | None:
        # Kernels without smaps_rollup (before 4.14, some sandboxes) have RSS, which is more.
        rollup = kilobytes(self._text(f"/proc/{pid}/smaps_rollup"))
        if "Pss" in rollup:
            return rollup["Pss"] + rollup.get("SwapPss", 0)
        return kilobytes(self._text(f"/proc/{pid}/status")).get("VmRSS")

    def glance(self, pid: int) -> int | None:
        fields = kilobytes(self._text(f"/proc/{pid}/status"))
        if "RssAnon" not in fields:  # before 4.5, and of a process that has ended
            return fields.get("VmRSS")
        return sum(fields.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap"))

    def wired(self, pid: int) -> int | None:
        return None

    def _text(self, path: str) -> str:
        try:
            return self._read(path)
        except OSError:
            return ""


def kilobytes(text: str) -> dict[str, int]:
    """The fields `Name:   123 kB` of meminfo, status and smaps_rollup, in bytes."""
    return {name: int(value) * 1024 for name, value in _FIELD.findall(text)}


def pressure(text: str) -> SystemPressure | None:
    """What /proc/pressure/memory says; None where the kernel keeps no such information."""
    stalls = {kind: float(share) for kind, share in _STALL.findall(text)}
    if "some" not in stalls:
        return None
    if stalls.get("full", 0.0) >= CRITICAL_STALL:
        return SystemPressure.CRITICAL
    return SystemPressure.WARN if stalls["some"] >= WARN_STALL else SystemPressure.NORMAL
