"""The server against its own document: `python -m tests.property.openapi --examples 50 --seed 1`.

schemathesis makes requests that the document allows and such that it forbids, of every method, to a
real server with the demo model. Every answer has to pass all of its checks.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.serving import serving

PHASES = "examples,coverage,fuzzing"


def st_run(
    url: str, folder: Path, seed: int, examples: int, seconds: float, only: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """schemathesis with all checks, for at most `seconds`, over the paths `only` or over all; what
    it keeps goes into `folder`."""
    command = [
        str(Path(sys.executable).with_name("st")),
        "run",
        f"{url}/openapi.json",
        "--checks=all",
        f"--phases={PHASES}",
        f"--max-examples={examples}",
        f"--seed={seed}",
        "--continue-on-failure",
        "--request-timeout=60",
        "--no-color",
        *(f"--include-path={path}" for path in only),
    ]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    said = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "s", "--model", "demo=demo") as server,
    ):
        done = st_run(server.url, Path(folder), said.seed, said.examples, 3600)
    print(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
