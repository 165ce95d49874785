"""Memory on macOS. Written from documentation and reports, tested on recorded output.

psutil's `virtual_memory` fails on macOS 27 with "(ipc/mig) array not large enough" (psutil 7.2.2):
then `vm_stat` tells the same.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from supervisor.readers.base import Level, Machine

COMMAND_SECONDS = 2.0
"""sysctl and vm_stat answer in milliseconds; a machine that swaps may take longer."""
RUSAGE_INFO_V4 = 4
RUSAGE_BYTES = 512
"""Room for rusage_info_v4 and what later versions add."""
_FOOTPRINT_OFFSET = 72
"""Of ri_phys_footprint: 16 bytes of uuid, then u64 fields (wired @56, resident @64)."""
_PAGE = re.compile(r"page size of (\d+) bytes")
_PAGES = re.compile(r'^"?([A-Za-z][\w :-]*?)"?:\s+(\d+)\.?\s*$', re.MULTILINE)
_SWAP = re.compile(r"used = (\d+(?:\.\d+)?)([KMG])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

Run = Callable[[Sequence[str]], str]
Rusage = Callable[[int, int, "ctypes.Array[ctypes.c_char]"], int]


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes in use and wired."""

    used: int | None = None
    wired: int | None = None


def run(command: Sequence[str]) -> str:
    """stdout of a helper, with a deadline. Raises OSError or subprocess.SubprocessError."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=COMMAND_SECONDS,
    ).stdout


def from_psutil() -> Use:
    """Raises what psutil raises."""
    memory = psutil.virtual_memory()
    return Use(int(memory.total - memory.available), int(memory.wired))


class MacReader:
    """`Reader` over sysctl, psutil or vm_stat, and libproc. The arguments are for tests."""

    def __init__(
        self,
        run: Run = run,
        use: Callable[[], Use] = from_psutil,
        rusage: Rusage | None = None,
    ) -> None:
        self._run = run
        self._use = use
        self._rusage = rusage
        self._has_libproc = True

    def machine(self) -> Machine:
        physical = _integer(self._output("/usr/sbin/sysctl", "-n", "hw.memsize")) or _sysconf()
        use = self._used(physical)
        level = _integer(
            self._output("/usr/sbin/sysctl", "-n", "kern.memorystatus_vm_pressure_level")
        )
        return Machine(
            physical=physical,
            used=use.used,
            wired=use.wired,
            swap_used=swap_used(self._output("/usr/sbin/sysctl", "-n", "vm.swapusage")),
            level=Level(level) if level in set(Level) else None,
        )

    def _used(self, physical: int | None) -> Use:
        try:
            return self._use()
        except (psutil.Error, OSError, RuntimeError, AttributeError, ValueError):
            return vm_stat(self._output("/usr/bin/vm_stat"), physical)

    def footprint(self, pid: int) -> int | None:
        """Needs no root for a child of the same user."""
        if self._rusage is None:
            if not self._has_libproc:
                return None
            try:
                self._rusage = _libproc()
            except (OSError, AttributeError):
                self._has_libproc = False
                return None
        buffer = ctypes.create_string_buffer(RUSAGE_BYTES)
        if self._rusage(pid, RUSAGE_INFO_V4, buffer) != 0:
            return None
        return phys_footprint(buffer.raw)

    def _output(self, *command: str) -> str:
        try:
            return self._run(command)
        except (OSError, subprocess.SubprocessError):
            return ""


def phys_footprint(rusage: bytes) -> int | None:
    """ri_phys_footprint of a rusage_info_v4; None for one that was never filled in."""
    (value,) = struct.unpack_from("<Q", rusage, _FOOTPRINT_OFFSET)
    return int(value) or None


def vm_stat(text: str, physical: int | None) -> Use:
    """What `vm_stat` tells. Used is everything but free, speculative, inactive and purgeable
    pages, as psutil counts it."""
    size = _PAGE.search(text)
    pages = {name.strip(): int(count) for name, count in _PAGES.findall(text)}
    if size is None:
        return Use()
    page = int(size[1])
    wired = pages.get("Pages wired down")
    free, inactive = pages.get("Pages free"), pages.get("Pages inactive")
    used = None
    if physical is not None and free is not None and inactive is not None:
        # vm_stat has taken the speculative pages out of the free ones; psutil has not.
        reclaimable = free + pages.get("Pages speculative", 0) + inactive
        used = max(0, physical - reclaimable * page)
    return Use(used, None if wired is None else wired * page)


def swap_used(text: str) -> int | None:
    """Of `total = 2048.00M  used = 1024.50M  free = 1023.50M  (encrypted)`."""
    match = _SWAP.search(text)
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


def _integer(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _sysconf() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _libproc() -> Rusage:
    """Raises OSError or AttributeError."""
    function = ctypes.CDLL("/usr/lib/libproc.dylib").proc_pid_rusage
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function
