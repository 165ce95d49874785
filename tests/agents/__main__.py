"""Agents: `python -m tests.agents [NAME…]`. Exits with 1 when one of them does not do its task."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.agents import network
from tests.agents.frameworks import FRAMEWORKS
from tests.agents.install import CannotInstall, install
from tests.agents.programs import PROGRAMS
from tests.agents.run import run

SCENARIOS = {scenario.name: scenario for scenario in (*PROGRAMS, *FRAMEWORKS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--plain", action="store_true", help="only without deaths")
    parser.add_argument("--struck", action="store_true", help="only with a SIGABRT in every turn")
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    arguments = parser.parse_args()
    names = arguments.names or list(SCENARIOS)
    inside = network.INSIDE in os.environ
    installed = {}
    failed = False
    for name in names:
        begun = time.monotonic()
        try:
            installed[name] = install(name)
        except CannotInstall as error:
            print(f"{name}: {error}")
            failed = True
        if not inside and time.monotonic() - begun > 1:
            print(f"{name}: installed in {time.monotonic() - begun:.0f} s", flush=True)
    if not inside:
        network.leave(sys.argv[1:])
    else:
        network.raise_loopback()
    shut = network.is_shut()
    print("no network but loopback" if shut else "no namespace: proxies lead nowhere", flush=True)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="agents-"))
    for name in names:
        for strike in (False, True):
            if name not in installed or (arguments.plain and strike) or (arguments.struck and not strike):
                continue
            kind = "struck" if strike else "plain"
            place = folder / f"{name}-{kind}"
            shutil.rmtree(place, ignore_errors=True)
            result = run(SCENARIOS[name], place, installed[name], strike=strike, shut=shut)
            print(
                f"{name:12} {kind:7} {'FAILED' if result.misses else 'ok':7} {result.answers} answers, longest prompt "
                f"{result.tokens} tokens, {result.strikes} strikes, {result.recovered} recovered, {result.seconds:.0f} s"
                f" {dict(result.others)}",
                flush=True,
            )
            for miss in result.misses:
                print(f"    {miss}")
            if result.misses:
                print((place / "output.txt").read_text(errors="replace")[-1500:])
            failed |= bool(result.misses)
    sys.exit(failed)


if __name__ == "__main__":
    main()
