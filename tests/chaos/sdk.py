"""An application's view: the OpenAI SDK as it comes, while a worker is killed every two seconds.

`python -m tests.chaos.sdk --seconds 300 --clients 16 --every 2`. Exits with 1 when a call raises or
its answer is not what it is without kills, or when a harmless request is quarantined.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from supervisor.state.quarantine import Quarantine
from tests.bench.harness import quantile, table
from tests.chaos.faults import inject
from tests.chaos.storm import KINDS, MODELS
from tests.chaos.traffic import CHAT, choices_of, make
from tests.helpers.serving import Server, serving
from tests.helpers.tiny_llama import make_llama

SIGNALS = ("abrt", "segv", "kill")
CONFIG = f"""
[server]
port = 0
[memory]
spare = true
{MODELS}"""
_EACH = 2
"""Requests of every kind, of every model."""
_TOKENS = 60
_IN_A_ROW = 2
"""Deaths of one model; `recovery.max_restarts` is one more."""
_PATIENCE = 600.0
"""Seconds after which the last answers must be there."""
_LOOK_SECONDS = 0.1
_OWN = ("ignore_eos",)
"""Parameters that the SDK does not know; it sends them on."""


@dataclass(slots=True)
class Tally:
    """What the applications and the server have seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By signal and the state of the worker."""
    answers: int = 0
    streamed: int = 0
    recovered: int = 0
    """Answers whose headers say that they were, before they began."""
    seconds: list[float] = field(default_factory=list)
    """Of each call."""
    refused: Counter[str] = field(default_factory=Counter)
    """What the SDK was told and hid: statuses and codes."""
    errors: list[str] = field(default_factory=list)
    """Calls that raised."""
    wrong: list[str] = field(default_factory=list)
    quarantined: int = 0

    def misses(self) -> list[str]:
        """What must not be."""
        found = [f"error: {error}" for error in self.errors]
        found += [f"wrong: {answer}" for answer in self.wrong]
        if self.quarantined:
            found.append(f"{self.quarantined} harmless requests were quarantined")
        if not self.kills:
            found.append("nothing was killed")
        return found

    def told(self) -> str:
        """For people."""
        rows = [
            ["kills", *_sum(self.kills)],
            ["answers", str(self.answers), f"{self.streamed} streamed"],
            ["seconds a call", f"{quantile(self.seconds, 0.5):.1f}", "p50"],
            ["", f"{quantile(self.seconds, 0.99):.1f}", "p99"],
            ["", f"{max(self.seconds):.1f}", "longest"],
            ["recovered before their first byte", str(self.recovered), ""],
            ["refusals hidden by the SDK", *_sum(self.refused)],
            ["errors seen by the application", str(len(self.errors)), ""],
            ["other answers than without kills", str(len(self.wrong)), ""],
            ["harmless requests quarantined", str(self.quarantined), ""],
        ]
        return table(["", "", ""], rows)


def _sum(counted: Counter[str]) -> list[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items()))
    return [str(counted.total()), kinds]


class Targets:
    """Who may be killed: no model for a third time in a row without an answer to a request that
    came after the last. That would be a fault of another kind, a model that can't be served, which
    is then refused for a while on purpose."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row: Counter[str] = Counter()
        self._killed: dict[str, float] = {}

    def served(self, model: str, begun: float) -> None:
        """An answer has begun, to a request that was made at `begun`."""
        with self._lock:
            if begun > self._killed.get(model, 0.0):
                self._in_a_row[model] = 0

    def allow(self, model: str) -> bool:
        with self._lock:
            return self._in_a_row[model] < _IN_A_ROW

    def killed(self, model: str) -> None:
        with self._lock:
            self._in_a_row[model] += 1
            self._killed[model] = time.monotonic()


class Application:
    """One client, and what it gets. Whatever a call raises is what an application would see."""

    def __init__(
        self, server: Server, tally: Tally, targets: Targets, lock: threading.Lock
    ) -> None:
        self._tally = tally
        self._targets = targets
        self._lock = lock
        http_client = openai.DefaultHttpxClient(event_hooks={"response": [self._note]})
        self._sdk = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", http_client=http_client
        )

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """What the answer says, usage included. Raises whatever the SDK raises."""
        begun = time.monotonic()
        known = {key: value for key, value in body.items() if key not in _OWN}
        known["extra_body"] = {key: body[key] for key in _OWN if key in body}
        resource = self._sdk.chat.completions if path == CHAT else self._sdk.completions
        answer = resource.create(**known)
        chunks: list[dict[str, Any]] = []
        for chunk in answer if body.get("stream") else [answer]:
            if not chunks:
                self._targets.served(body["model"], begun)
            chunks.append(chunk.model_dump(exclude_unset=True))
        return choices_of(chunks)

    def close(self) -> None:
        self._sdk.close()

    def _note(self, response: Any) -> None:
        """Look at a response of whichever HTTP library this SDK has, before the SDK does."""
        code = ""
        if response.is_error:
            response.read()
            code = str(response.json()["error"]["code"])
        with self._lock:
            self._tally.recovered += "x-bulkhead-recoveries" in response.headers
            if code:
                self._tally.refused[f"{response.status_code} {code}"] += 1


def run(folder: Path, seconds: float, clients: int, every: float, seed: int) -> Tally:
    """Kill a worker every so many seconds, under so many applications. The random choices are
    functions of `seed`."""
    dice, tally, targets, lock = random.Random(seed), Tally(), Targets(), threading.Lock()
    one, two = (make_llama(folder / f"model{i}", seed=i) for i in (1, 2))
    wanted = [
        make(kind, model, _TOKENS, dice)
        for model, kinds in KINDS.items()
        for kind in kinds
        for _ in range(_EACH)
    ]  # fmt: skip
    with serving(folder / "state", config=CONFIG.format(one=one, two=two)) as server:
        with _applications(server, 8, Tally(), targets, lock) as first:
            asked = zip(first * len(wanted), wanted, strict=False)
            undisturbed = [(request, application.ask(*request)) for application, request in asked]
        over = threading.Event()

        def work(application: Application, dice: random.Random) -> None:
            while not over.is_set():
                request, expected = dice.choice(undisturbed)
                _compare(application, request, expected, tally, lock)

        with (
            _applications(server, clients, tally, targets, lock) as applications,
            ThreadPoolExecutor(clients) as pool,
        ):
            working = [
                pool.submit(work, application, random.Random(dice.random()))
                for application in applications
            ]
            try:
                _kill(server, targets, seconds, every, dice, tally)
            finally:
                over.set()
            for each in working:
                each.result(_PATIENCE)
        tally.quarantined = server.log().count("alone kills the worker")
        tally.quarantined += len(Quarantine.load(server.state / "quarantine.json").quarantined())
    return tally


@contextmanager
def _applications(
    server: Server, count: int, tally: Tally, targets: Targets, lock: threading.Lock
) -> Iterator[list[Application]]:
    made = [Application(server, tally, targets, lock) for _ in range(count)]
    try:
        yield made
    finally:
        for application in made:
            application.close()


def _compare(
    application: Application,
    request: tuple[str, dict[str, Any]],
    expected: Any,
    tally: Tally,
    lock: threading.Lock,
) -> None:
    """Ask once more for what has an undisturbed answer."""
    path, body = request
    about, begun, got, error = f"{path} {body}", time.monotonic(), None, ""
    try:
        got = application.ask(path, body)
    except Exception as raised:  # noqa: BLE001 - whatever comes out, an application would get it
        error = f"{type(raised).__name__}: {raised}"
    with lock:
        tally.seconds.append(time.monotonic() - begun)
        if error:
            tally.errors.append(f"{about}: {error}")
            return
        tally.answers += 1
        tally.streamed += bool(body.get("stream"))
        if got != expected:
            tally.wrong.append(f"{about}: got {got}\n  expected {expected}")


def _kill(
    server: Server,
    targets: Targets,
    seconds: float,
    every: float,
    dice: random.Random,
    tally: Tally,
) -> None:
    """Every so often, end the worker of a random model that has one, whatever it is at; when none
    of them may be killed, as soon as one may."""
    begun = time.monotonic()
    for number in range(1, int(seconds / every) + 1):
        time.sleep(max(0.0, begun + number * every - time.monotonic()))
        while not _kill_one(server, targets, dice, tally) and time.monotonic() < begun + seconds:
            time.sleep(_LOOK_SECONDS)


def _kill_one(server: Server, targets: Targets, dice: random.Random, tally: Tally) -> bool:
    living = [
        model
        for model in server.health()["cached_models"]
        if model["pid"] is not None and targets.allow(model["name"])
    ]
    if not living:
        return False
    model, fault = dice.choice(living), dice.choice(SIGNALS)
    targets.killed(model["name"])
    if inject(fault, model["pid"], server.state):
        tally.kills[f"{fault} {model['state'].lower()}"] += 1
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--every", type=float, default=2, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    # Being told to stop unwinds, so that nothing stays behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tally = run(
            Path(folder), arguments.seconds, arguments.clients, arguments.every, arguments.seed
        )
        print(tally.told())
        for fault in tally.misses()[:20]:
            print(f"  {fault[:3000]}")
        sys.exit(1 if tally.misses() else 0)


if __name__ == "__main__":
    main()
