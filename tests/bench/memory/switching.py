"""Two models of more than a gigabyte that take turns where one of them fits, and what that leaves.

Bulkhead switches between them under a budget: the real footprints (PSS) of all its workers together
are sampled the whole time, since between one model's end and the next one's start is where others
run over. Beside it mlx_lm.server switches between the same models inside its one process. The
weights are random and made here, and nearly all of them are a wide vocabulary's embedding: they
take their memory and cost little to compute with. Needs /proc.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from supervisor.machine.readers import LinuxReader
from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.memory.scene import Findings, mb, run

BUDGET = 2_000_000_000
"""Bytes: one of the models with room for requests, but not two."""
LEAST = 1_000_000_000
"""Bytes of weights of each model."""
NAMES = ("one", "two")
OURS, THEIRS = "Bulkhead", "mlx_lm.server"
_SAMPLE_SECONDS = 0.05
_DEADLINE = 300.0
_MODULES = {"worker.main", "tests.helpers.fakes.worker"}
"""What workers run."""

_MAKE = """
import sys
from pathlib import Path
from tests.helpers.tiny_llama import Shape, make_model
shape = Shape(hidden_size=2048, intermediate_size=512, num_hidden_layers=1, head_dim=512)
make_model(Path(sys.argv[1]), "llama", shape=shape, seed=int(sys.argv[2]), vocabulary=131_072)
"""


def play(findings: Findings, folder: Path, short: bool) -> None:
    """Bulkhead, then the other."""
    findings.scene("two large models in turn")
    if LinuxReader().footprint(psutil.Process().pid) is None:
        raise Failed("/proc/PID/smaps_rollup is needed")
    turns = 4 if short else 12
    models = {name: _make(folder / name, seed) for seed, name in enumerate(NAMES)}
    sizes = [file.stat().st_size for model in models.values() for file in model.glob("*.safet*")]
    print(f"weights {min(sizes) / 1e9:.2f} GB, budget {BUDGET / 1e9:.1f} GB, {turns} turns")
    if min(sizes) < LEAST:
        raise Failed("the models are too small")
    ours = _ours(findings, folder / "b", models, turns)
    theirs = _theirs(folder / "m", models, turns)
    _tell(findings, {OURS: ours, THEIRS: theirs})


class Footprints:
    """The sum of some processes' PSS, bytes, sampled by a thread of its own."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self.highest = 0
        self.after: list[int] = []
        """What was held after each turn."""
        self.switches: list[float] = []
        """Seconds from each request to its answer."""
        self.left = 0
        """What was still held once every model was unloaded, or the last one replaced."""
        self._pids = pids
        self._over = threading.Event()
        self._reader = LinuxReader()

    def now(self) -> int:
        """The sum at this moment; a process that has just ended counts nothing."""
        return sum(self._reader.footprint(pid) or 0 for pid in self._pids())

    @contextmanager
    def sampling(self) -> Iterator[None]:
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.highest = max(self.highest, self.now())

    def turn(self, port: int, model: str) -> None:
        """One request, and what is held after it. No prompt is any earlier one's beginning, or
        a server that keeps prompts' caches would compute less."""
        begun = time.monotonic()
        request = client.chat(model, f"{len(self.after)} turns", 4)
        (exchange,) = client.exchange_all(port, [request], _DEADLINE)
        answer = exchange.answer()
        if answer.status != 200 or not answer.done:
            raise Failed(f"{model}: {answer.status} {answer.body[-300:]!r}")
        self.switches.append(time.monotonic() - begun)
        self.after.append(self.now())


def _ours(findings: Findings, folder: Path, models: dict[str, Path], turns: int) -> Footprints:
    # No minimum residency: every request makes the other model go at once.
    settings = f'[memory]\nbudget = "{BUDGET // 10**6}MB"\nmin_residency = 0\n'
    with harness.bulkhead(folder, models, settings=settings) as server:
        supervisor = psutil.Process(server.pid)
        seen = Footprints(lambda: worker_pids(supervisor))
        charged = 0
        with seen.sampling():
            for turn in range(turns):
                seen.turn(server.port, NAMES[turn % 2])
                charged = max(charged, server.health()["memory"]["charged_bytes"])
        last = NAMES[(turns - 1) % 2]
        _post(server.port, f"/admin/models/{last}/unload")
        _until_cold(server)
        seen.left = seen.now()
    findings.bar(
        "all workers at most",
        mb(seen.highest),
        f"<= {mb(BUDGET)}",
        seen.highest <= BUDGET,
        seen.highest,
    )
    findings.bar("charged at most", mb(charged), f"<= {mb(BUDGET)}", charged <= BUDGET, charged)
    findings.bar("left after an unload", mb(seen.left), "0 MB", seen.left == 0, seen.left)
    return seen


def _theirs(folder: Path, models: dict[str, Path], turns: int) -> Footprints:
    first = models[NAMES[0]]
    with harness.mlx_lm_server(folder, first, concurrency=8) as port:
        pid = harness.listener(port)
        seen = Footprints(lambda: [pid])
        with seen.sampling():
            for turn in range(turns):
                seen.turn(port, str(models[NAMES[turn % 2]]))
        seen.left = seen.now()  # there is no way to unload a model
    return seen


def _tell(findings: Findings, seen: dict[str, Footprints]) -> None:
    for name, each in seen.items():
        after = harness.median([float(size) for size in each.after])
        findings.note(
            f"{name}, after a turn and at most",
            f"{mb(after)}, {mb(each.highest)}",
            {"after_bytes": each.after, "highest_bytes": each.highest},
        )
        findings.note(
            f"{name}, a switch", f"{harness.median(each.switches[1:]):.2f} s", each.switches
        )


def _make(folder: Path, seed: int) -> Path:
    """In a process of its own: the weights must not count as the benchmark's."""
    subprocess.run(
        [sys.executable, "-c", _MAKE, str(folder), str(seed)],
        cwd=harness.ROOT,
        check=True,
        timeout=_DEADLINE,
    )
    return folder


def worker_pids(supervisor: psutil.Process) -> list[int]:
    """Of all workers, in whatever state."""
    found = []
    for child in supervisor.children():
        try:
            if _MODULES & set(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue  # it has just ended
    return found


def _until_cold(server: harness.Bulkhead) -> None:
    """Return once no model has a process. One that is being stopped is in no list of loaded ones,
    but not cold yet."""
    deadline = time.monotonic() + _DEADLINE
    while any(model["state"] != "cold" for model in server.health()["models"]):
        if time.monotonic() > deadline:
            raise Failed("a model was not unloaded")
        time.sleep(_SAMPLE_SECONDS)


def _post(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_DEADLINE)
    try:
        connection.request("POST", path)
        if connection.getresponse().status != 200:
            raise Failed(f"{path} was refused")
    finally:
        connection.close()


if __name__ == "__main__":
    run("switching", __doc__, play)
