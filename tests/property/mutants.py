"""Break the scheduler in every small way there is, and see that a unit test or mypy notices.

python -m tests.property.mutants
python -m tests.property.mutants --children 1 "supervisor.scheduler.plan.*"

mutmut makes the mutants and runs the tests, as `[tool.mutmut]` says. Mutants that survive are
listed with a judgement in `mutants.toml`; one that is not is printed, and is a failure. A mutant is
known there by its function and by what became of which line, so that the list outlives other edits.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

ROOT = Path(__file__).resolve().parents[2]
JUDGED = Path(__file__).with_suffix(".toml")
_NOTICED = {"killed", "timeout", "caught by type check"}


def identify(module: str, function: str, diff: str) -> str:
    """What a mutant is called in the list: its function, and its lines before and after."""

    def lines(sign: str) -> str:
        changed = [line[1:].strip() for line in diff.splitlines()[2:] if line.startswith(sign)]
        return " ".join(changed)

    return f"{module}.{function}: {lines('-')} → {lines('+')}"


def read_judged(text: str) -> set[str]:
    """All mutants of the list, whatever the judgement. Raises ValueError for one listed twice."""
    counts = Counter(each for group in tomllib.loads(text)["judged"] for each in group["mutants"])
    if twice := [each for each, count in counts.items() if count > 1]:
        raise ValueError(f"judged twice: {twice}")
    return set(counts)


def compare(survivors: Mapping[str, str], judged: Iterable[str]) -> tuple[list[str], list[str]]:
    """The survivors (and their diffs) that nobody has judged, and judgements without a survivor."""
    judged = set(judged)
    return sorted(survivors.keys() - judged), sorted(judged - survivors.keys())


def run(names: list[str], children: int) -> None:
    """Make all mutants anew, in ./mutants, and test those whose names match, or all."""
    shutil.rmtree("mutants", ignore_errors=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "mutmut", "run", f"--max-children={children}", *names]
    subprocess.run(command, env={**os.environ, "PATH": path}, check=True)


def read_results() -> tuple[Counter[str], dict[str, str]]:
    """How many mutants ended in which way, and the diffs of those that nothing has noticed."""
    counts: Counter[str] = Counter()
    survivors = {}
    for path in walk_mutatable_files():
        results = SourceFileMutationData(path=path)
        results.load()
        for name, code in results.exit_code_by_key.items():
            status = status_by_exit_code[code]
            counts[status] += 1
            if status not in _NOTICED and code is not None:
                function, cls = orig_function_and_class_names_from_key(name)
                diff = get_diff_for_mutant(name, path=path)
                full = f"{cls}.{function}" if cls else function
                survivors[identify(path.stem, full, diff)] = f"# mutmut show {name}\n{diff}"
    return counts, survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patterns of mutmut's names; all without any")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.chdir(ROOT)
    started = time.monotonic()
    run(options.names, options.children)
    counts, survivors = read_results()
    new, stale = compare(survivors, read_judged(JUDGED.read_text()))
    for each in new:
        print(f"\n{survivors[each]}\nNot judged: {each}")
    if not options.names:
        for each in stale:
            print(f"Judged, and survives no longer: {each}")
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    minutes = (time.monotonic() - started) / 60
    print(f"\n{told}; {len(new)} not judged, {minutes:.1f} minutes")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
