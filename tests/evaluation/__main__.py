"""lm-eval's figures through Bulkhead, and mlx-lm's own of the same model.

`make lm-eval`, or `python -m tests.evaluation`. Installs lm-eval and mlx-lm into an environment of
their own, a minute the first time. Exits with 1 when a metric, a sample's log likelihood or a text
differs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from tests.evaluation.model import make_evaluated
from tests.helpers.serving import ROOT, serving

HARNESS = ROOT / "tests" / "evaluation" / "harness.py"
ENVIRONMENT = ROOT / ".venv-lm-eval"
LM_EVAL = "lm-eval[api]>=0.4.9,<0.5"
CLOSE = 1e-4
"""Relative: the shape of a batch decides in which order a sum is taken."""
CONFIG = """
[server]
port = 0
[models.evaluated]
source = "{folder}"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, metavar="FOLDER")
    environment: Path = parser.parse_args().environment
    python = _install(environment)
    with tempfile.TemporaryDirectory(prefix="bulkhead-") as folder:
        model = make_evaluated(Path(folder) / "evaluated")
        direct = _evaluate(python, model, Path(folder) / "direct.json")
        with serving(Path(folder) / "state", config=CONFIG.format(folder=model)) as server:
            url = f"{server.url}/v1/completions"
            served = _evaluate(python, model, Path(folder) / "served.json", url)
    for task, metrics in served["metrics"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                print(f"{task:24} {name:28} {value:14.6f} {direct['metrics'][task][name]:14.6f}")
    found = list(_differences(served, direct, ""))
    print("\n".join(found) or "The same figures.")
    return 1 if found else 0


def _install(environment: Path) -> Path:
    """The interpreter of an environment with lm-eval and the mlx-lm that is installed here."""
    python = environment / "bin" / "python"
    done = environment / ".installed"
    wanted = [LM_EVAL]
    for name in ("mlx-lm", "mlx"):
        extra = "[cpu]" if name == "mlx" and sys.platform == "linux" else ""
        wanted.append(f"{name}{extra}=={importlib.metadata.version(name)}")
    if not done.exists() or done.read_text() != "\n".join(wanted):
        venv.create(environment, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        done.write_text("\n".join(wanted))
    return python


def _evaluate(python: Path, model: Path, out: Path, url: str = "") -> Any:
    environment = {**os.environ, "SERVED_MODEL": "evaluated", "HF_HOME": str(out.with_suffix(""))}
    command = [str(python), str(HARNESS), str(model), str(out), *([url] if url else [])]
    subprocess.run(command, check=True, env=environment)
    return json.loads(out.read_text())


def _differences(served: Any, direct: Any, place: str) -> Any:
    """Where the two differ, in words."""
    if isinstance(served, dict) and isinstance(direct, dict) and served.keys() == direct.keys():
        for key, value in served.items():
            yield from _differences(value, direct[key], f"{place}/{key}")
    elif isinstance(served, list) and isinstance(direct, list) and len(served) == len(direct):
        for at, value in enumerate(served):
            yield from _differences(value, direct[at], f"{place}/{at}")
    elif isinstance(served, float) and isinstance(direct, float):
        if not math.isclose(served, direct, rel_tol=CLOSE):
            yield f"{place}: {served} through Bulkhead, {direct} directly"
    elif served != direct:
        yield f"{place}: {served!r} through Bulkhead, {direct!r} directly"


if __name__ == "__main__":
    sys.exit(main())
