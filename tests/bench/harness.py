"""What the benchmarks share: servers to start and stop, statistics, tables, the frame of a run.

Everything listens on the loopback, lives in one temporary directory and is ended, by its own pid,
when the benchmark ends in whatever way.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from tests.bench import client
from tests.bench.answers import Failed
from tests.bench.machine import Others, environment
from tests.helpers.fakes.worker import IMPORTS
from tests.helpers.serving import without_spare

ROOT = Path(__file__).resolve().parent.parent.parent
_READY_SECONDS = 60.0
_STOP_SECONDS = 20.0


# ── processes ────────────────────────────────────────────────────────────────────────────────────


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, after a while SIGKILL; returns when the process is reaped and its pipes closed."""
    with process:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line of a process's unbuffered stdout. Raises Failed at its end or the deadline."""
    assert process.stdout is not None
    descriptor, deadline, line = process.stdout.fileno(), time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise Failed(f"{process.args!r} said nothing for {seconds:.0f} s")
        # One task, one line: there is never more than it in the pipe.
        data = os.read(descriptor, 1 << 20)
        if not data:
            raise Failed(f"{process.args!r} ended")
        line += data
    return line


def make_model(folder: Path, seed: int, context: int = 4096, heads: int = 4) -> Path:
    """A tiny Llama that never ends by itself, see `tests.bench.model`."""
    figures = map(str, (seed, context, heads))
    command = [sys.executable, "-m", "tests.bench.model", str(folder), *figures]
    subprocess.run(command, cwd=ROOT, check=True, timeout=_READY_SECONDS)
    return folder


class Bulkhead:
    """A running server. `pid` is the supervisor's."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port

    def health(self) -> dict[str, Any]:
        answer = client.get(self.port, "/health")
        if answer.status != 200:
            raise Failed(f"/health: {answer.status}")
        health: dict[str, Any] = answer.json()
        return health

    def workers(self) -> dict[str, int]:
        """Pids of the ready workers by model name."""
        return {
            model["name"]: model["pid"]
            for model in self.health()["cached_models"]
            if model["state"].lower() == "ready"
        }

    def worker(self, name: str) -> tuple[int, str]:
        """Pid and `name#generation` of a model's ready worker."""
        pid = self.workers()[name]
        found = [m for m in self.health()["cached_models"] if m["name"] == name]
        return pid, f"{name}#{found[0]['generation']}"

    def gateway(self) -> int:
        """The gateway's pid. Raises Failed when there is none at the moment."""
        for child in psutil.Process(self.pid).children():
            try:
                if "gateway.main" in child.cmdline():
                    return int(child.pid)
            except psutil.Error:
                continue
        raise Failed("there is no gateway process")

    def warm_up(self, *models: str, seconds: float = _READY_SECONDS) -> None:
        """Load the models and have each answer once. Raises Failed."""
        requests = [client.chat(model, "warm up", 8, ignore_eos=True) for model in models]
        for exchange in client.exchange_all(self.port, requests, seconds):
            answer = exchange.answer()
            if answer.status != 200 or not answer.done:
                raise Failed(f"warm-up: {answer.status} {answer.body[-300:]!r}")


@contextmanager
def bulkhead(
    folder: Path,
    models: Mapping[str, Path],
    *,
    settings: str = "",
    server: str = "",
    recovery: str = "off",
    soft_files: int = 0,
    scripted: bool = False,
    own: Mapping[str, str] = MappingProxyType({}),
    environ: Mapping[str, str] = MappingProxyType({}),
    imports: bool = True,
) -> Iterator[Bulkhead]:
    """`bulkhead serve` with its state in `folder`. `settings` is more TOML, `server` that
    of its table, `own` that of single models, `environ` more environment;
    a death is seen by the client unless `recovery` repairs it; `soft_files`, if given,
    is the soft limit of open files that the server is started with; with `scripted`, models may be
    folders with a `tests.helpers.fakes.engine.Script`, whose workers import mlx-lm only with
    `imports`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "bench.toml"
    text = f'[recovery]\nmode = "{recovery}"\n{settings}\n[server]\nport = 0\n{server}\n'
    for name, source in models.items():
        text += f'[models.{name}]\nsource = "{source}"\n{own.get(name, "")}\n'
    config.write_text(without_spare(text))
    state = str(folder / "state")
    script = Path(sysconfig.get_path("scripts")) / "bulkhead"
    command = [str(script), "serve", "--config", str(config), "--state-dir", state]
    if scripted:
        command = [sys.executable, "-m", "tests.helpers.fakes.serve", str(config), state]
    if soft_files:
        command = ["/bin/sh", "-c", 'ulimit -S -n "$0" && exec "$@"', str(soft_files), *command]
    errors = folder / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, IMPORTS: "1" if imports else "", **environ},
        )
    try:
        try:
            line = read_line(process, _READY_SECONDS).decode()
        except Failed as failure:
            raise Failed(f"{failure}: {errors.read_text()[-2000:]}") from None
        yield Bulkhead(process.pid, int(line.rsplit(":", 1)[1]))
    finally:
        end(process)


@contextmanager
def mlx_lm_server(folder: Path, model: Path, concurrency: int) -> Iterator[int]:
    """mlx-lm's own server; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "WARNING"]
    command += ["--decode-concurrency", str(concurrency), "--prompt-concurrency", "8"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                text = (folder / "stderr").read_text()[-2000:]
                raise Failed(f"mlx_lm.server did not start: {text}")
            time.sleep(0.1)
        yield port
    finally:
        end(process)


def listener(port: int) -> int:
    """Pid of the child of ours that serves there. Raises Failed."""
    for child in psutil.Process().children():
        if str(port) in child.cmdline():
            return int(child.pid)
    raise Failed("mlx_lm.server has no process")


def _answers(port: int) -> bool:
    try:
        return client.get(port, "/v1/models").status == 200
    except (OSError, Failed):
        return False


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are not above (nearest rank, so always one that was seen)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


# ── the frame of a run ───────────────────────────────────────────────────────────────────────────


class Report:
    """What a benchmark found: text for people, figures for programs, bars that were missed."""

    def __init__(self, *, speed_counts: bool = True) -> None:
        self._speed_counts = speed_counts
        self.figures: dict[str, Any] = {}
        self.missed: list[str] = []

    def bar(self, holds: bool, claim: str, *, speed: bool = False) -> None:
        """State a bar and whether it holds; one of `speed` depends on the machine's other work."""
        print(f"{'ok    ' if holds else 'MISSED'}  {claim}", flush=True)
        if not holds and (self._speed_counts or not speed):
            self.missed.append(claim)


Benchmark = Callable[[Report, Path, bool], None]
"""Gets a temporary directory and whether the run is to be short."""


def run(name: str, about: str, benchmark: Benchmark) -> None:
    """The command line of one benchmark. Exits 0 when every bar holds, 1 otherwise."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{name}", description=about)
    parser.add_argument("--short", action="store_true", help="fewer and smaller rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--any-speed", action="store_true", help="a bar on speed that is missed is no failure"
    )
    arguments = parser.parse_args()
    # Being told to stop unwinds, so that nothing stays behind.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    report, about_machine, begun, others = (
        Report(speed_counts=not arguments.any_speed),
        environment(),
        time.monotonic(),
        Others(),
    )
    print(f"# {name}{' (short)' if arguments.short else ''}")
    print(" · ".join(f"{key} {value}" for key, value in about_machine.items()), flush=True)
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder:
        try:
            benchmark(report, Path(folder), arguments.short)
        except Failed as failure:
            report.bar(False, f"the run completes: {failure}")
    theirs = others.percent()
    print(f"{time.monotonic() - begun:.0f} s; other programs used {theirs:.0f} % of the cores")
    if arguments.json is not None:
        content = {
            "benchmark": name,
            "short": arguments.short,
            "environment": about_machine,
            "others_percent": theirs,
            "figures": report.figures,
            "missed": report.missed,
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(1 if report.missed else 0)
