"""How much memory Metal recommends to use at most, read in a child process.

The supervisor never imports MLX: a GPU that hangs or an assertion that aborts must not reach it.
`iogpu.wired_limit_mb` is reflected in the figure. It must not be derived from the RAM: 16 GB have
10.67 to 11.84, 128 GB 107.5.
"""

from __future__ import annotations

import subprocess
import sys

from supervisor.machine.readers.command import Run, run

SECONDS = 30.0
"""The first import after an update compiles and may take ten."""
_ARGUMENTS = (
    "-c",
    "import mlx.core as mx; "
    "print('working-set', mx.device_info().get('max_recommended_working_set_size', 0))",
)


def working_set(*, platform: str = sys.platform, run: Run = run) -> int | None:
    """Bytes that the GPU recommends to use at most; None on Linux, without Metal, and when the
    child fails or takes longer than 30 s, for which this blocks. Never raises. The arguments are
    for tests."""
    if platform != "darwin":
        return None
    try:
        output = run((sys.executable, *_ARGUMENTS), SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    for line in output.splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "working-set" and value.isascii() and value.isdigit() and len(value) < 20:
            return int(value) or None
    return None
