"""Chaos: `python -m tests.chaos --faults 2000 --seed 1`. Exits with 1 when an answer is not what it
would have been, names the request, and leaves the server's files."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.injector import PROBATION
from tests.chaos.storm import storm
from tests.chaos.tally import Tally, misses, table, told
from tests.helpers.fakes.signs import PHASES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="end in good order after that, however far")
    arguments = parser.parse_args()
    over, signals = threading.Event(), list[str]()

    def stop(number: int, frame: object) -> None:
        signals.append(signal.Signals(number).name)
        over.set()
        signal.signal(number, signal.SIG_DFL)  # another one means at once

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    tally = storm(folder, arguments.faults, arguments.seed, over=over, seconds=seconds, tell=_tell)
    tally.stopped = f"stopped by {signals[0]}" if signals else tally.stopped
    _tell(tally)
    found = misses(tally)
    if found:
        print(f"The server's files are in {folder}. Misses:")
    else:
        shutil.rmtree(folder)
    for miss in found[:20]:
        print(f"  {miss[:3000]}")
    print(
        f"{tally.faults} of {arguments.faults} faults: {f'{len(found)} misses' if found else 'ok'}"
    )
    sys.exit(1 if found or signals else 0)


def _tell(tally: Tally) -> None:
    print(f"\n{told(tally)}\n{table(tally, FAULTS, (*PHASES, PROBATION))}", flush=True)
    for miss in [*tally.wrong, *tally.lost, *tally.unhealthy, *tally.ineffective][:3]:
        print(f"  {miss[:500]}", flush=True)


if __name__ == "__main__":
    main()
