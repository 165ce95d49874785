"""The machine that figures depend on, and how much of it other programs took meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_PACKAGES = ("mlx", "mlx-lm", "aiohttp", "uvloop", "mlx-bulkhead")


def environment() -> dict[str, str]:
    """What the figures depend on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    found = {
        "machine": _cpu(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return {**found, "load before": load}


class Others:
    """CPU time of programs that are not ours, from now on.

    Our children's time is known once they have ended and been waited for, so ask `percent` at the
    end.
    """

    def __init__(self) -> None:
        self._total, self._busy = _machine()
        self._ours = sum(os.times()[:4])

    def percent(self) -> float:
        """Their share of all cores. Above a few percent, rates and latencies are worth little."""
        total, busy = _machine()
        theirs = (busy - self._busy) - (sum(os.times()[:4]) - self._ours)
        return max(0.0, 100 * theirs / max(1e-9, total - self._total))


def _machine() -> tuple[float, float]:
    """CPU seconds of all cores: in all, and not idle."""
    times = psutil.cpu_times()
    # On Linux time in guests is counted twice.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total, total - times.idle - getattr(times, "iowait", 0.0)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=5).stdout.strip()
    return platform.processor() or "unknown"
