"""Helper commands, which always have a deadline."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

Run = Callable[[Sequence[str], float], str]


def run(command: Sequence[str], seconds: float) -> str:
    """The command's stdout. It is killed after so many seconds, for which this blocks. Raises
    OSError or subprocess.SubprocessError."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=seconds,
    ).stdout
