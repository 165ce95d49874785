"""What a death costs a crowd, the second half of `tests.bench.recovery`.

* Eight streams with prompts of 4,000 tokens meet one SIGABRT. Each is back as soon as its own
  prompt is prefilled again, and goes on while the others' are.
* A worker that aborts for memory above three sequences, and one that does and does not say why,
  meets six streams. A smaller crowd comes back, and all are answered.
* One of sixteen requests kills every worker that it meets. It is found, and fifteen are answered.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Exchange, Load
from tests.bench.harness import Bulkhead
from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.fakes.worker import CROWD, ENDS, POISON, ROWS_MAX

STREAMS = 8
PROMPT_TOKENS = 4000
SLACK = 0.500
"""Seconds that the last one may take above 1.2 times the bare work."""
_TOKENS = 240
_KILL_AT = 16
_CONTEXT = 16384
_DEADLINE = 600.0
_POISON = 7
_MODEL = "crowd"


# ── long prompts ─────────────────────────────────────────────────────────────────────────────────


def make_model(folder: Path) -> Path:
    """One that holds the prompts, and prefills all of them before the first stream has ended."""
    return harness.make_model(folder, seed=1, context=_CONTEXT, heads=1)


def long_requests(model: str) -> list[bytes]:
    return [
        client.chat(model, f"{number} {'x' * PROMPT_TOKENS}", _TOKENS, ignore_eos=True)
        for number in range(STREAMS)
    ]


class Recovered:
    """Eight streams across one death."""

    def __init__(self, exchanges: list[Exchange], killed: float, undisturbed: list[str]) -> None:
        self.last = 0.0
        """Seconds from the death to the last stream's next token."""
        self.gap = 0.0
        """The longest silence of a stream that is back."""
        self.lengths: list[int] = []
        """Tokens of each, prompt included, when it was back."""
        ways = []
        for exchange, text in zip(exchanges, undisturbed, strict=True):
            answer = exchange.answer()
            if not answer.done or answer.text() != text:
                raise Failed(f"a stream was not carried on: {answer.status} {exchange.fault}")
            times = [event.at for event in answer.contents]
            if b": recoveries 1" not in answer.body:
                raise Failed("a stream was not in the worker that was killed")
            pauses = [(later - at, i) for i, (at, later) in enumerate(itertools.pairwise(times))]
            _, back = max(pause for pause in pauses if times[pause[1] + 1] > killed)
            self.lengths.append(answer.usage()["prompt_tokens"] + back + 1)
            ways.append(times[back + 1 :])
        last = max(way[0] for way in ways)
        self.last = last - killed
        for way in ways:
            among = [at for at in way if at <= last]
            gaps = [later - at for at, later in itertools.pairwise(among)]
            self.gap = max([self.gap, *gaps])


def meet_a_death(server: Bulkhead, model: str, undisturbed: list[str]) -> Recovered:
    """Kill the model's worker under eight streams."""
    pid = server.workers()[model]
    exchanges = [Exchange(request) for request in long_requests(model)]
    connections = client.connect(server.port, STREAMS)
    try:
        load = Load()
        for connection, exchange in zip(connections, exchanges, strict=True):
            load.start(connection, exchange)
        deadline = time.monotonic() + _DEADLINE
        while min(len(exchange.pieces) for exchange in exchanges) < _KILL_AT:
            load.step(0.1)
            if time.monotonic() > deadline or not load.running:
                raise Failed("the streams did not come to where the worker is killed")
        killed = time.perf_counter()
        os.kill(pid, signal.SIGABRT)
        load.run(_DEADLINE)
    finally:
        for connection in connections:
            connection.close()
    return Recovered(exchanges, killed, undisturbed)


def decode_step(exchanges: list[Exchange]) -> float:
    """Seconds for each token of one of eight undisturbed streams, the median. Several tokens may
    come in one piece, and the last prompts are prefilled beside the first tokens."""
    steps = []
    for exchange in exchanges:
        times = [event.at for event in exchange.answer().contents]
        half = len(times) // 2
        steps.append((times[-1] - times[half]) / (len(times) - 1 - half))
    return harness.median(steps)


# ── counted deaths ───────────────────────────────────────────────────────────────────────────────


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def count_deaths(folder: Path, environ: Mapping[str, str], prompts: list[list[int]]) -> int:
    """How many deaths it takes until all have been answered, whole or, who kills, with 422."""
    model = Script(generations=()).write(folder / "model")
    with (
        _environment(environ),
        harness.bulkhead(
            folder / "server", {_MODEL: model}, recovery="resume", scripted=True
        ) as server,
    ):
        requests = [
            client.post(
                "/v1/completions",
                {"model": _MODEL, "prompt": prompt, "max_tokens": 60, "temperature": 0},
            )
            for prompt in prompts
        ]
        exchanges = client.exchange_all(server.port, requests, _DEADLINE)
        for prompt, exchange in zip(prompts, exchanges, strict=True):
            answer = exchange.answer()
            if _POISON in prompt:
                if answer.status != 422:
                    raise Failed(f"who kills gets {answer.status}")
            elif answer.status != 200 or answer.json()["choices"][0]["text"] != text_of(60):
                raise Failed(f"one of the others gets {answer.status} {answer.body[-300:]!r}")
        known = {each["name"]: each["deaths"] for each in server.health()["models"]}
        return int(known[_MODEL])


def bench_deaths(report: harness.Report, folder: Path) -> dict[str, int]:
    """The bars on numbers of deaths."""
    six, sixteen = [[40 + n, 41, 42] for n in range(6)], [[40 + n, 41, 42] for n in range(16)]
    sixteen[6] = [50, _POISON, 51]
    together = {ROWS_MAX: "3", CROWD: str(len(six))}
    kinds: dict[str, tuple[Mapping[str, str], list[list[int]], int]] = {
        "six streams, memory for three": ({**together, ENDS: "memory " * 9}, six, 2),
        "six streams, an abort above three": (together, six, 2),
        "sixteen, one kills in its prefill": ({POISON: f"{_POISON} 0"}, sixteen, 4),
        "sixteen, one kills at its 20th token": ({POISON: f"{_POISON} 20"}, sixteen, 4),
    }
    counted = {}
    for number, (name, (environ, prompts, most)) in enumerate(kinds.items()):
        deaths = counted[name] = count_deaths(folder / f"deaths{number}", environ, prompts)
        report.bar(0 < deaths <= most, f"{name}: {deaths} deaths, of at most {most}; all served")
    return counted
