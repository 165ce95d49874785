"""Agents: `python -m tests.agents [NAME…]`. Exits with 1 when one of them does not do its task."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from tests.agents import network
from tests.agents.frameworks import FRAMEWORKS
from tests.agents.install import folder_of, install_all, is_installed
from tests.agents.programs import PROGRAMS
from tests.agents.run import Result, run
from tests.agents.scenario import Scenario
from tests.agents.striker import POSSIBLE
from tests.bench.harness import table

SCENARIOS = {scenario.name: scenario for scenario in (*PROGRAMS, *FRAMEWORKS)}
_SHOWN = 2000
"""Characters of a program's output that are shown when it has failed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--plain", action="store_true", help="without deaths alone")
    parser.add_argument("--struck", action="store_true", help="with a SIGABRT in every turn alone")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SCENARIOS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SCENARIOS)}")
    # Being told to stop unwinds, so that nothing stays behind.
    for told in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(told, lambda number, _: sys.exit(128 + number))
    chosen = [SCENARIOS[name] for name in dict.fromkeys(arguments.names or SCENARIOS)]
    if network.INSIDE in os.environ:
        network.raise_loopback()
    else:
        install_all(dict.fromkeys(scenario.packages for scenario in chosen))
        network.leave(sys.argv[1:])  # does not return where it can
    kinds = [False] * (not arguments.struck) + [True] * (not arguments.plain)
    if True in kinds and not POSSIBLE:
        print("The middle of an answer is seen on Linux alone: nothing is struck here.")
        kinds.remove(True)
    if not kinds:
        sys.exit("Nothing is left to run.")
    sys.exit(_run_all(chosen, kinds))


def _run_all(chosen: list[Scenario], kinds: list[bool]) -> int:
    """The exit status."""
    shut = network.is_shut()
    print(
        "There is no network but loopback."
        if shut
        else "No network namespace can be made here: all proxies lead nowhere instead.",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(prefix="agents-"))
    try:
        rows, failed = _judge_all(chosen, kinds, folder, shut)
    except BaseException:  # told to stop: nobody wants what is there
        shutil.rmtree(folder, ignore_errors=True)
        raise
    head = ["", "", "", "answers", "longest prompt", "strikes", "recovered", "seconds", "refused"]
    width = len(head)
    print(table(head, [row + [""] * (width - len(row)) for row in rows]))
    if failed:
        print(f"What those that failed left is in {folder}.")
    else:
        shutil.rmtree(folder)
    return int(failed)


def _judge_all(
    chosen: list[Scenario], kinds: list[bool], folder: Path, shut: bool
) -> tuple[list[list[str]], bool]:
    """The table's rows, and whether any of them failed. Those leave what they had in `folder`."""
    rows, failed = [], False
    for scenario in chosen:
        for strike in kinds:
            if not is_installed(scenario.packages):
                rows.append([scenario.name, "not installed"])
                failed = True
                continue
            kind = "struck" if strike else "plain"
            place = folder / f"{scenario.name}-{kind}"
            try:
                result = run(
                    scenario, place, folder_of(scenario.packages), strike=strike, shut=shut
                )
            except Exception as error:  # noqa: BLE001
                # Of the server's end as well: the others shall be judged nevertheless.
                traceback.print_exc()
                print(f"{scenario.name}, {kind}: FAILED, {type(error).__name__}", flush=True)
                rows.append([scenario.name, kind, "FAILED"])
                failed = True
                continue
            rows.append(_row(scenario, kind, result))
            told = f"{result.answers} answers, {result.recovered} recovered"
            print(f"{scenario.name}, {kind}: {rows[-1][2]}, {told}", flush=True)
            for miss in result.misses:
                print(f"    {miss}", flush=True)
            if result.misses:
                failed = True
                print((place / "output.txt").read_text(errors="replace")[-_SHOWN:], flush=True)
            else:
                shutil.rmtree(place)
    return rows, failed


def _row(scenario: Scenario, kind: str, result: Result) -> list[str]:
    refused = ", ".join(f"{count} × {what}" for what, count in sorted(result.refused.items()))
    figures = (result.answers, result.prompt, result.strikes, result.recovered)
    verdict = "FAILED" if result.misses else "ok"
    return [scenario.name, kind, verdict, *map(str, figures), f"{result.seconds:.0f}", refused]


if __name__ == "__main__":
    main()
