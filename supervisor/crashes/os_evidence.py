"""What the system itself knows of a death: Linux' kernel of kills for want of memory, macOS' crash
reports. Nothing here raises; what can't be read is None.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from supervisor.machine.readers.cgroups import ReadText
from supervisor.machine.readers.linux import read_text

_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE | re.ASCII)
_OOM_KILLED = re.compile(r"Killed process (\d+) \(|oom-kill:.*\bpid=(\d+),", re.ASCII)
_CGROUP = re.compile(r"^\d+:([\w,]*):(/\S*)$", re.MULTILINE | re.ASCII)
_KMSG = "/dev/kmsg"
_KMSG_RECORD = 8192
_KMSG_SECONDS = 1.0
_RECORD_MAX = 500
_IPS_LOOKED_AT = 20
_IPS_HEAD = 64 * 2**10
"""Bytes of a report in which its pid stands."""
_IPS_NAME = re.compile(r"(?i)python.*\.ips$")


class Evidence(Protocol):
    """What may be asked about a death."""

    @property
    def late_reports(self) -> bool:
        """Whether the system writes reports of its own, which `ips` may find seconds later."""

    def oom_kills(self) -> int | None:
        """How often the kernel has killed for want of memory, where we live. Costs microseconds."""

    def oom_record(self, pid: int) -> str | None:
        """What the kernel's log says about such a kill of `pid`. Blocks for up to a second."""

    def ips(self, pid: int, since: float) -> str | None:
        """Path of macOS' report about `pid`, written after `since` (epoch seconds). Blocks."""


def kernel_log(path: str = _KMSG, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """The kernel's records, oldest first. Raises OSError where they may not be read."""
    deadline = clock() + _KMSG_SECONDS
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while clock() < deadline:
            try:
                record = os.read(descriptor, _KMSG_RECORD)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.EINVAL):  # overwritten meanwhile; too long
                    continue
                raise
            if not record:
                return
            yield record.decode("utf-8", "replace")
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class SystemEvidence:
    """`Evidence` of this machine. All fields are for tests."""

    platform: str = sys.platform
    read: ReadText = read_text
    log: Callable[[], Iterable[str]] = kernel_log
    reports: Path = Path("~/Library/Logs/DiagnosticReports")

    def oom_kills(self) -> int | None:
        if self.platform != "linux":
            return None
        for path in (*self._counters(), "/proc/vmstat"):
            if found := _OOM_KILLS.search(self._text(path)):
                return int(found[1])
        return None

    def _counters(self) -> Iterator[str]:
        """Files of our control group, which count its kills and no others."""
        for controllers, group in _CGROUP.findall(self._text("/proc/self/cgroup")):
            if controllers == "":
                yield f"/sys/fs/cgroup{group.rstrip('/')}/memory.events"
            elif "memory" in controllers.split(","):
                yield f"/sys/fs/cgroup/memory{group.rstrip('/')}/memory.oom_control"

    def oom_record(self, pid: int) -> str | None:
        if self.platform != "linux":
            return None
        last = None
        try:
            for record in self.log():
                message = record.partition(";")[2] or record
                found = _OOM_KILLED.search(message)
                if found and str(pid) in found.groups():
                    last = message.partition("\n")[0].strip()[:_RECORD_MAX]
        except OSError:
            return last  # root's alone, on most systems
        return last

    @property
    def late_reports(self) -> bool:
        return self.platform == "darwin"

    def ips(self, pid: int, since: float) -> str | None:
        if self.platform != "darwin":
            return None
        try:
            return _find_ips(self.reports.expanduser(), pid, since)
        except (OSError, RuntimeError):
            return None  # no such folder, or no home

    def _text(self, path: str) -> str:
        try:
            return self.read(path)
        except OSError:
            return ""


def _find_ips(folder: Path, pid: int, since: float) -> str | None:
    """The newest report of a Python whose pid it is."""
    dated = [
        (path.stat().st_mtime, path) for path in folder.iterdir() if _IPS_NAME.search(path.name)
    ]
    of_pid = re.compile(rb'"pid"\s*:\s*%d\b' % pid)
    for written, path in sorted(dated, reverse=True)[:_IPS_LOOKED_AT]:
        if written < since:
            return None
        with open(path, "rb") as file:
            if of_pid.search(file.read(_IPS_HEAD)):
                return str(path)
    return None
