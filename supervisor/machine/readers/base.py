"""What every reader answers."""

from __future__ import annotations

from typing import Protocol

from supervisor.scheduler.pressure import MachineMemory


class MemoryReader(Protocol):
    """Reads memory. Nothing here raises."""

    def machine(self) -> MachineMemory:
        """Blocks for at most the deadline of one helper command, as a rule for under 1 ms."""

    def footprint(self, pid: int) -> int | None:
        """Bytes that would come back if process `pid` ended; None when it is gone or not ours.

        Linux: PSS, which shares shared pages out. macOS: phys_footprint, which has Metal's buffers
        in it (RSS has not: 193 MB beside 30 GB real) and lags frees by 0.1 to 0.3 s.
        """

    def glance(self, pid: int) -> int | None:
        """What process `pid` holds of its own, for microseconds, without asking its page tables.

        Linux: anonymous and shared-memory pages, where MLX keeps everything, swapped ones included,
        but no pages of libraries and other files. macOS: the footprint.
        """

    def wired(self, pid: int) -> int | None:
        """Bytes of process `pid` that can't be moved out; always None on Linux."""
