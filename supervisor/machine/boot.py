"""Which boot of the machine this is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from supervisor.machine.readers.command import Run, run

_LINUX = Path("/proc/sys/kernel/random/boot_id")
_MACOS = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
_SECONDS = 5.0


def boot_id(*, platform: str = sys.platform, path: Path = _LINUX, run: Run = run) -> str:
    """The same until the machine is restarted; "" where it can't be read. Blocks for 5 s at most;
    never raises. The arguments are for tests."""
    try:
        return (run(_MACOS, _SECONDS) if platform == "darwin" else path.read_text()).strip()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
