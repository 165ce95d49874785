"""Chaos: `python -m tests.chaos --faults 2000 --seed 1`. Exits with 1 when an answer is not what it
would have been, and names the request."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.storm import storm, told, verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = storm(Path(folder), arguments.faults, arguments.seed)
        print(told(tally))
        for fault in verdict(tally)[:20]:
            print(f"  {fault[:3000]}")
        sys.exit(1 if verdict(tally) else 0)


if __name__ == "__main__":
    main()
