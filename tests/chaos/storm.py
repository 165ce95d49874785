"""Load, faults, and the comparison of what came out."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import Plan, plan, strike, wait_until
from tests.chaos.traffic import make, said
from tests.fakes import orders
from tests.serving import Answer, Server, serving
from tests.tiny import make_llama

STREAMS = 32
STALL_SECONDS = 2
_ANSWER_SECONDS = 300.0
_PHASE_SECONDS = 120.0
_HEALTH_SECONDS = 0.2
CONFIG = """
[server]
port = 0
[memory]
load_stall_seconds = 20
[recovery]
stall_seconds = {stall}
[models.one]
source = "{one}"
[models.two]
source = "{two}"
[models.demo]
source = "demo"
"""
COMMON = ("plain", "seeded", "penalised", "several", "structured")
KINDS = {"one": COMMON, "two": COMMON, "demo": (*COMMON, "calling", "reasoning")}


@dataclass(slots=True)
class Tally:
    """What a storm has shown."""

    struck: Counter[str] = field(default_factory=Counter)
    """Faults that hit, by kind and phase."""
    answers: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Answers that asked to be tried again, and were."""
    recovered: int = 0
    """Answers that say that they were."""
    wrong: list[str] = field(default_factory=list)
    """Requests that got another answer than without faults, a refusal, or none."""
    healths: int = 0
    unhealthy: list[str] = field(default_factory=list)
    gateways: int = 1
    convicted: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One of those that are asked for again and again, and its answer when nothing happens."""

    path: str
    body: dict[str, Any]
    answer: Any

    @property
    def model(self) -> str:
        return str(self.body["model"])


def storm(folder: Path, faults: int, seed: int, *, each: int = 2, tokens: int = 60) -> Tally:
    """Let so many faults happen to three models under 32 streams. `each` is how many requests of
    every kind there are; the random choices are functions of `seed`."""
    dice = random.Random(seed)
    (folder / "orders").mkdir(parents=True)
    one, two = (make_llama(folder / f"model{i}", seed=i) for i in (1, 2))
    config = CONFIG.format(one=one, two=two, stall=STALL_SECONDS)
    environ = {orders.VARIABLE: str(folder / "orders")}
    tally = Tally()
    with serving(folder / "state", config=config, scripted=True, environ=environ) as server:
        wanted = [
            make(kind, model, tokens, dice)
            for model, kinds in KINDS.items()
            for kind in kinds
            for _ in range(each)
        ]
        requests = _undisturbed(server, wanted)
        gateway = server.gateway.pid
        weather = _Weather(server, requests, folder / "orders", tally)
        begun = time.monotonic()
        weather.run(dice, faults)
        tally.seconds = time.monotonic() - begun
        tally.gateways += server.gateway.pid != gateway
        tally.convicted = server.log().count("alone kills the worker")
    return tally


def _undisturbed(server: Server, wanted: list[tuple[str, dict[str, Any]]]) -> list[Request]:
    def ask(request: tuple[str, dict[str, Any]]) -> Request:
        path, body = request
        answer = said(server.request("POST", path, body, seconds=_ANSWER_SECONDS))
        return Request(path, body, answer)

    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(ask, wanted))
    texts = [json.dumps(request.answer) for request in requests]
    # Models that say the same to all would prove nothing.
    assert len(set(texts)) > 0.9 * len(texts), "the undisturbed answers are too much alike"
    return requests


class _Weather:
    """A storm that goes on: clients, faults, and a look at the server's health."""

    def __init__(self, server: Server, requests: list[Request], folder: Path, tally: Tally) -> None:
        self._server = server
        self._requests = requests
        self._folder = folder
        self._tally = tally
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._heard: Counter[str] = Counter()
        """Pieces of streams that have come, by model: none comes without a token."""

    def run(self, dice: random.Random, faults: int) -> None:
        with ThreadPoolExecutor(STREAMS + 1) as pool:
            clients = [
                pool.submit(self._client, random.Random(dice.random())) for _ in range(STREAMS)
            ]
            doctor = pool.submit(self._doctor)
            try:
                last: Plan | None = None
                for _ in range(faults):
                    last = self._fault(plan(dice, tuple(KINDS), last))
            finally:
                self._over.set()
            for client in clients:
                client.result(_ANSWER_SECONDS)
            doctor.result(_ANSWER_SECONDS)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────

    def _fault(self, wanted: Plan) -> Plan:
        """Wait for the phase, then for the moment, and strike. Returns what was struck."""
        pid = self._phase(wanted.model, wanted.phase)
        time.sleep(wanted.delay)  # the moment is random
        if strike(wanted.fault, pid, self._folder):
            self._tally.struck[f"{wanted.fault} in {wanted.phase}"] += 1
            gone = wait_until(lambda: self._pid(wanted.model)[0] != pid, _PHASE_SECONDS)
            assert gone, f"{wanted} did not end process {pid}"
        return wanted

    def _phase(self, model: str, phase: str) -> int:
        """Wait until the model is being loaded, or until a worker has made a token; its pid."""
        found: list[int] = []
        heard: dict[int, int] = {}

        def reached() -> bool:
            pid, state = self._pid(model)
            if pid is None:
                return False
            if phase == "serve":
                before = heard.setdefault(pid, self._heard[model])
                if state != "ready" or self._heard[model] == before:
                    return False
            found.append(pid)
            return True

        assert wait_until(reached, _PHASE_SECONDS, 0.03), f"{model} did not come to {phase}"
        return found[0]

    def _pid(self, model: str) -> tuple[int | None, str]:
        entry = self._server.loaded(model)
        return entry.get("pid"), str(entry.get("state", "")).lower()

    # ── clients ──────────────────────────────────────────────────────────────────────────────────

    def _client(self, dice: random.Random) -> None:
        while not self._over.is_set():
            request = dice.choice(self._requests)
            fault = self._ask(request)
            if fault is not None:
                with self._lock:
                    self._tally.wrong.append(f"{request.path} {request.body}: {fault}")

    def _ask(self, request: Request) -> str | None:
        """Make a request; what is wrong with the answer, if anything is."""
        try:
            answer = self._read(request)
            while answer.status == 503 and answer.headers.get("x-should-retry") != "false":
                # Of a load that stands still those are told who came for it. Every SDK tries again.
                with self._lock:
                    self._tally.refused[answer.json["error"]["code"]] += 1
                answer = self._read(request)
            got = said(answer)
        except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        with self._lock:
            self._tally.answers += 1
            self._tally.recovered += (
                "x-bulkhead-recoveries" in answer.headers or b": recoveries " in answer.body
            )
        return None if got == request.answer else f"got {got}\n  expected {request.answer}"

    def _read(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._server.port, timeout=_ANSWER_SECONDS
        )
        body = b""
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", request.path, json.dumps(request.body), headers)
            response = connection.getresponse()
            while piece := response.read1(65536):
                body += piece
                if b"data: " in piece:
                    with self._lock:
                        self._heard[request.model] += 1
        finally:
            connection.close()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body)

    # ── health ───────────────────────────────────────────────────────────────────────────────────

    def _doctor(self) -> None:
        while not self._over.wait(_HEALTH_SECONDS):
            try:
                status = self._server.request("GET", "/health").status
            except (OSError, http.client.HTTPException) as error:
                self._tally.unhealthy.append(f"{type(error).__name__}: {error}")
                continue
            self._tally.healths += 1
            if status != 200:
                self._tally.unhealthy.append(str(status))


def verdict(tally: Tally) -> list[str]:
    """What must not be."""
    found = [f"wrong: {fault}" for fault in tally.wrong]
    found += [f"/health: {fault}" for fault in tally.unhealthy]
    if tally.gateways != 1:
        found.append("the gateway was started again")
    if set(tally.refused) - {"model_loading"}:
        found.append(f"refused: {dict(tally.refused)}")
    if tally.convicted:
        found.append(f"{tally.convicted} innocent requests were convicted")
    if not tally.recovered:
        found.append("no answer was ever recovered: the storm missed them all")
    return found


def told(tally: Tally) -> str:
    """A line for people."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.struck.items()))
    return (
        f"{sum(tally.struck.values())} faults ({kinds}); {tally.answers} answers, "
        f"{tally.recovered} of them recovered; {tally.refused.total()} tried again; {len(tally.wrong)} wrong; "
        f"{tally.healths} looks at /health; {tally.seconds:.0f} s"
    )
