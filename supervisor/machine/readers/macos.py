"""Memory on macOS. Written from documentation and reports, tested on recorded output.

`sysctlbyname` and libproc are called in this process, since some figures are read ten times a
second; where that fails, the `sysctl` command tells the same. psutil's `virtual_memory` fails on
macOS 27 with "(ipc/mig) array not large enough" (psutil 7.2.2): then `vm_stat` tells the same.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import psutil

from supervisor.machine.readers.base import MachineMemory
from supervisor.machine.readers.command import Run, run
from supervisor.scheduler.pressure import SystemPressure

COMMAND_SECONDS = 2.0
"""sysctl and vm_stat answer in milliseconds; a machine that swaps may take longer."""
RUSAGE_INFO_V4 = 4
RUSAGE_BYTES = 512
"""Room for rusage_info_v4 and what later versions add."""
_RUSAGE = struct.Struct("<16x 5Q Q Q Q Q")
"""uuid, five figures of no use here, wired @56, resident @64, phys_footprint @72, start @80."""
_SWAP_USAGE = struct.Struct("<QQQII")
"""struct xsw_usage: total, available and used bytes, page size, whether encrypted."""
_PAGE = re.compile(r"page size of (\d+) bytes")
_PAGES = re.compile(r"^(Pages [a-z ]+):\s+(\d+)\.?\s*$", re.MULTILINE)
_SWAP = re.compile(r"used = (\d+(?:\.\d+)?)([KMG])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_ABSENT = (OSError, AttributeError)
"""What ctypes raises where the library or the function is not there, as on Linux."""

Sysctl = Callable[[str], bytes]
Rusage = Callable[[int], bytes]


class Use(NamedTuple):
    """Bytes in use and wired."""

    used: int | None = None
    wired: int | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """Bytes of one process."""

    wired: int
    footprint: int


def from_psutil() -> Use:
    """Raises what psutil raises."""
    memory = psutil.virtual_memory()
    return Use(int(memory.total - memory.available), int(memory.wired))


def sysctl(name: str) -> bytes:
    """The kernel's value, as it is. Raises OSError or AttributeError."""
    function = ctypes.CDLL(None, use_errno=True).sysctlbyname
    buffer = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(buffer))
    if function(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        raise OSError(ctypes.get_errno(), "sysctlbyname", name)
    return buffer.raw[: size.value]


def rusage(pid: int) -> bytes:
    """rusage_info_v4 of `pid`; needs no root for the user's own. Raises OSError, AttributeError."""
    function = ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True).proc_pid_rusage
    buffer = ctypes.create_string_buffer(RUSAGE_BYTES)
    if function(ctypes.c_int(pid), ctypes.c_int(RUSAGE_INFO_V4), buffer) != 0:
        raise OSError(ctypes.get_errno(), "proc_pid_rusage")
    return buffer.raw


class MacReader:
    """`MemoryReader` over sysctl, psutil or vm_stat, and libproc. The arguments are for tests."""

    def __init__(
        self,
        run: Run = run,
        sysctl: Sysctl = sysctl,
        use: Callable[[], Use] = from_psutil,
        rusage: Rusage = rusage,
    ) -> None:
        self._run = run
        self._sysctl = sysctl
        self._use = use
        self._rusage = rusage

    def machine(self) -> MachineMemory:
        physical = self._number("hw.memsize") or _sysconf()
        use = self._used(physical)
        level = self._number("kern.memorystatus_vm_pressure_level")
        return MachineMemory(
            physical=physical,
            used=use.used,
            wired=use.wired,
            swap_used=self._swap_used(),
            level=SystemPressure(level) if level in set(SystemPressure) else None,
        )

    def footprint(self, pid: int) -> int | None:
        process = self._process(pid)
        return None if process is None else process.footprint

    def glance(self, pid: int) -> int | None:
        return self.footprint(pid)

    def wired(self, pid: int) -> int | None:
        process = self._process(pid)
        return None if process is None else process.wired

    def _process(self, pid: int) -> Process | None:
        try:
            return process_memory(self._rusage(pid))
        except _ABSENT:
            return None

    def _used(self, physical: int | None) -> Use:
        try:
            return self._use()
        except (psutil.Error, OSError, RuntimeError, AttributeError, ValueError):
            return vm_stat(self._output("/usr/bin/vm_stat"), physical)

    def _number(self, name: str) -> int | None:
        try:
            value = self._sysctl(name)
        except _ABSENT:
            return integer(self._output("/usr/sbin/sysctl", "-n", name))
        return int.from_bytes(value, "little") if len(value) in (4, 8) else None

    def _swap_used(self) -> int | None:
        try:
            value = self._sysctl("vm.swapusage")
        except _ABSENT:
            return swap_used(self._output("/usr/sbin/sysctl", "-n", "vm.swapusage"))
        return int(_SWAP_USAGE.unpack(value)[2]) if len(value) == _SWAP_USAGE.size else None

    def _output(self, *command: str) -> str:
        try:
            return self._run(command, COMMAND_SECONDS)
        except (OSError, subprocess.SubprocessError):
            return ""


def process_memory(info: bytes) -> Process | None:
    """Of a rusage_info_v4; None for one that is too short or was never filled in."""
    if len(info) < _RUSAGE.size:
        return None
    *_, wired, _resident, footprint, _start = _RUSAGE.unpack_from(info)
    return Process(int(wired), int(footprint)) if footprint else None


def vm_stat(text: str, physical: int | None) -> Use:
    """What `vm_stat` tells. Used is everything but free and inactive pages, as psutil has it."""
    size = _PAGE.search(text)
    if size is None:
        return Use()
    page = int(size[1])
    pages = {name: int(count) * page for name, count in _PAGES.findall(text)}
    free, inactive = pages.get("Pages free"), pages.get("Pages inactive")
    used = None
    if physical is not None and free is not None and inactive is not None:
        # vm_stat has taken the speculative pages out of the free ones; psutil has not.
        used = max(0, physical - free - pages.get("Pages speculative", 0) - inactive)
    return Use(used, pages.get("Pages wired down"))


def swap_used(text: str) -> int | None:
    """Of `total = 2048.00M  used = 1024.50M  free = 1023.50M  (encrypted)`."""
    match = _SWAP.search(text)
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


def integer(text: str) -> int | None:
    """Of one line with digits alone."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _sysconf() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
