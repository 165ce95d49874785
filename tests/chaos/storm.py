"""Load, faults, and the comparison of what came out."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.injector import FaultInjector, Target
from tests.chaos.tally import Tally, misses, told
from tests.chaos.traffic import letters, make, said
from tests.helpers.fakes import orders
from tests.helpers.fakes.worker import TABLE
from tests.helpers.serving import Answer, Server, serving
from tests.helpers.tiny_llama import make_llama

__all__ = ["KINDS", "STREAMS", "Request", "Tally", "misses", "storm", "told"]

STREAMS = 32
STALL_SECONDS = 2
LOAD_STALL_SECONDS = 12
_ANSWER_SECONDS = 300.0
_VARIETY = 0.25
"""Of an answer's tokens so many are distinct at least."""
_HEALTH_SECONDS = 0.05
_TELL_SECONDS = 60.0
MODELS = """
[models.one]
source = "{one}"
[models.two]
source = "{two}"
[models.demo]
source = "demo"
"""
CONFIG = f"""
[server]
port = 0
[memory]
load_stall_seconds = {LOAD_STALL_SECONDS}
[recovery]
stall_seconds = {STALL_SECONDS}
max_restarts = 6
{MODELS}"""
COMMON = ("plain", "seeded", "penalised", "several", "structured")
KINDS = {"one": COMMON, "two": COMMON, "demo": (*COMMON, "calling", "reasoning")}


@dataclass(frozen=True, slots=True)
class Request:
    """One of those that are asked for again and again, and its answer when nothing happens."""

    kind: str
    path: str
    body: dict[str, Any]
    answer: Any

    @property
    def model(self) -> str:
        return str(self.body["model"])


def storm(
    folder: Path,
    faults: int,
    seed: int,
    *,
    each: int = 2,
    tokens: int = 48,
    over: threading.Event | None = None,
    seconds: float | None = None,
    tell: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Let so many faults happen to three models under 32 streams, each model's in an order of its
    own. `each` is how many requests of every kind there are; the random choices are functions of
    `seed`. Once `over` is set, or after so many `seconds`, there are no new faults and requests.
    `tell` is told once a minute how far it is."""
    dice = random.Random(seed)
    (folder / "orders").mkdir(parents=True)
    one, two = (make_llama(folder / f"model{i}", seed=i) for i in (1, 2))
    config = CONFIG.format(one=one, two=two)
    environ = {
        orders.VARIABLE: str(folder / "orders"),
        TABLE: str(folder / "table"),
        # Workers compile our modules once.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    }
    tally = Tally()
    with serving(
        folder / "state", config=config, scripted=True, environ=environ, process_group=0
    ) as server:
        wanted = [
            (kind, *make(kind, model, tokens, dice))
            for model, kinds in KINDS.items()
            for kind in kinds
            for _ in range(each)
        ]
        requests = _undisturbed(server, wanted)
        gateway = server.gateway.pid
        weather = _Weather(server, requests, folder / "orders", tally, over or threading.Event())
        begun = time.monotonic()
        weather.run(dice, faults, seconds, tell)
        tally.seconds = time.monotonic() - begun
        tally.gateways += server.gateway.pid != gateway
        tally.quarantined = server.log().count("alone kills the worker")
    return tally


def _undisturbed(server: Server, wanted: list[tuple[str, str, dict[str, Any]]]) -> list[Request]:
    def ask(request: tuple[str, str, dict[str, Any]]) -> Request:
        kind, path, body = request
        answer = said(server.request("POST", path, body, seconds=_ANSWER_SECONDS))
        return Request(kind, path, body, answer)

    for model in KINDS:  # one after another: the first worker has the most to import
        while (answer := server.chat(model, max_tokens=1)).status == 503:
            assert answer.json["error"]["code"] == "model_loading", answer.body
    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(ask, wanted))
    texts = [json.dumps(request.answer) for request in requests]
    # Models that say the same to all would prove nothing.
    assert len(set(texts)) > 0.9 * len(texts), "the undisturbed answers are too much alike"
    for request in requests:
        # Tokens of the random models are single characters, and a schema leaves them little room.
        if request.model != "demo" and request.kind != "structured":
            assert len(letters(request.answer)) >= _VARIETY * request.body["max_tokens"], request
    return requests


class _Weather:
    """A storm that goes on: clients, faults, and a look at the server's health."""

    def __init__(
        self,
        server: Server,
        requests: list[Request],
        folder: Path,
        tally: Tally,
        over: threading.Event,
    ) -> None:
        self._server = server
        self._requests = {
            model: [each for each in requests if each.model == model] for model in KINDS
        }
        self._folder = folder
        self._tally = tally
        self._over = over
        self._calm = threading.Event()
        """Nothing more is asked for."""
        self._view: dict[str, dict[str, object]] = {}
        """Entries of /health, by model."""
        self._left = 0
        """Faults."""
        self._hushed = ""
        """A model that gets no new requests."""

    def run(
        self,
        dice: random.Random,
        faults: int,
        seconds: float | None,
        tell: Callable[[Tally], object],
    ) -> None:
        self._left = faults
        begun = told_at = time.monotonic()
        with ThreadPoolExecutor(STREAMS + len(KINDS) + 1) as pool:
            watch = pool.submit(self._watch_health)
            names = tuple(KINDS)
            clients = [
                pool.submit(self._client, names[i % len(names)], random.Random(dice.random()))
                for i in range(STREAMS)
            ]
            injectors = [
                pool.submit(self._injector(model, random.Random(dice.random())).run)
                for model in KINDS
            ]
            try:
                while not all(injector.done() for injector in injectors):
                    now = time.monotonic()
                    self._tally.seconds = now - begun
                    if now - told_at >= _TELL_SECONDS:
                        told_at = now
                        tell(self._tally)
                    if seconds is not None and now - begun > seconds and not self._over.is_set():
                        self._tally.stopped = f"ended after {seconds / 60:g} minutes"
                        self._over.set()
                    self._over.wait(0.2) if not self._over.is_set() else time.sleep(0.2)
            finally:
                self._over.set()
                self._calm.set()
            for task in (*injectors, *clients, watch):
                task.result(_ANSWER_SECONDS)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────

    def _injector(self, model: str, dice: random.Random) -> FaultInjector:
        path = f"/admin/models/{model}/load"
        target = Target(
            lambda: self._view.get(model, {}),
            lambda: self._server.request("POST", path, seconds=_ANSWER_SECONDS),
            self._folder,
        )
        return FaultInjector(
            model, dice, target, self._folder, self._tally, self._take, self._hush, self._over
        )

    def _take(self) -> bool:
        with self._tally.lock:
            self._left -= 1
            return self._left >= 0

    def _hush(self, model: str, hushed: bool) -> bool:
        """Keep new requests from a model, or no longer; False while that is done to another."""
        with self._tally.lock:
            if hushed and self._hushed:
                return False
            self._hushed = model if hushed else ""
            return True

    # ── clients ──────────────────────────────────────────────────────────────────────────────────

    def _client(self, home: str, dice: random.Random) -> None:
        while not self._calm.is_set():
            there = [model for model in KINDS if model != self._hushed]
            request = dice.choice(self._requests[home if home in there else dice.choice(there)])
            with self._tally.lock:
                self._tally.asked[request.kind] += 1
            self._ask(request)

    def _ask(self, request: Request) -> None:
        """Make a request, and note what became of it."""
        try:
            answer = self._read(request)
            while answer.status == 503 and answer.headers.get("x-should-retry") != "false":
                # Of a load that stands still those are told who came for it. Every SDK tries again.
                with self._tally.lock:
                    self._tally.refused[answer.json["error"]["code"]] += 1
                answer = self._read(request)
            got = said(answer)
        except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
            with self._tally.lock:
                self._tally.lost.append(
                    f"{request.path} {request.body}: {type(error).__name__}: {error}"
                )
            return
        with self._tally.lock:
            self._tally.answered[request.kind] += 1
            if "x-bulkhead-recoveries" in answer.headers or b": recoveries " in answer.body:
                self._tally.recovered[request.kind] += 1
            if got != request.answer:
                self._tally.wrong.append(
                    f"{request.path} {request.body}: got {got}\n  expected {request.answer}"
                )

    def _read(self, request: Request) -> Answer:
        body = request.body
        return self._server.request("POST", request.path, body, seconds=_ANSWER_SECONDS)

    # ── health ───────────────────────────────────────────────────────────────────────────────────

    def _watch_health(self) -> None:
        """Look all the time, which shows the injectors where the models are."""
        while not self._calm.wait(_HEALTH_SECONDS):
            try:
                answer = self._server.request("GET", "/health")
                entries = answer.json["cached_models"]
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._tally.unhealthy.append(f"{type(error).__name__}: {error}")
                continue
            self._view = {entry["name"]: entry for entry in entries}
            self._tally.healths += 1
            if answer.status != 200:
                self._tally.unhealthy.append(str(answer.status))
