"""From a worker's SIGABRT to the next token of its streams, with a spare worker and without.

Two servers that differ in `memory.spare` alone take turns; before each death the spare is ready.
The bars are set against what no recovery can do without, measured in between in a process that has
imported mlx-lm: the model's bare load, and the prefill of each stream's prompt and tokens so far.
Every stream must end whole and with the text of an undisturbed run. Then a crowd meets a death, see
`tests.bench.crowd`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Exchange, Load
from tests.bench.crowd import (
    PROMPT_TOKENS,
    bench_deaths,
    decode_step,
    long_requests,
    make_model,
    meet_a_death,
)
from tests.bench.crowd import SLACK as SLACK_OF_CROWD
from tests.bench.crowd import STREAMS as STREAMS_OF_CROWD
from tests.bench.harness import Bulkhead

STREAMS = (1, 32)
SLACK = {1: 0.100, 32: 0.500}
"""Seconds that a recovery may take above 1.1 times the bare work."""
_MODEL, _CROWD = "tiny", "long"
_PROMPT = "word " * 40
_TOKENS = 256
_KILL_AT = 64
"""Pieces that the first stream has when its worker is killed."""
_DEADLINE = 120.0


@dataclass(slots=True)
class Taken:
    """Seconds of each round."""

    on: list[float] = field(default_factory=list)
    """To the last stream's next token, with a spare."""
    off: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    """The part of `bare` that is the load's."""


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    rounds = {1: 1, 32: 1} if short else {1: 15, 32: 5}
    model = harness.make_model(folder / "model", seed=1)
    models = {_MODEL: model, _CROWD: make_model(folder / "long")}
    with ExitStack() as stack:
        on, off = (
            stack.enter_context(
                harness.bulkhead(
                    folder / spare,
                    models,
                    settings=f"[memory]\nspare = {spare}\n",
                    recovery="resume",
                )
            )
            for spare in ("true", "false")
        )
        taken = {}
        for streams in STREAMS:
            taken[streams] = _rounds(on, off, model, streams, rounds[streams])
        crowd = _crowd(on, models[_CROWD], 1 if short else 5)
    _tell(report, taken)
    _tell_crowd(report, crowd)
    report.figures["deaths"] = bench_deaths(report, folder)


@dataclass(slots=True)
class Crowd:
    """Eight streams with long prompts; seconds of each round."""

    last: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    step: float = 0.0
    """Of an undisturbed stream."""


def _crowd(server: Bulkhead, model: Path, rounds: int) -> Crowd:
    server.warm_up(_CROWD)
    alone = client.exchange_all(server.port, long_requests(_CROWD), _DEADLINE)
    undisturbed = [exchange.answer().text() for exchange in alone]
    crowd = Crowd(step=decode_step(alone))
    for _ in range(rounds):
        server.warm_up(_CROWD)
        _await_spare(server)
        recovered = meet_a_death(server, _CROWD, undisturbed)
        crowd.last.append(recovered.last)
        crowd.gap.append(recovered.gap)
        crowd.bare.append(sum(_bare(model, recovered.lengths)))
    return crowd


def _tell_crowd(report: harness.Report, crowd: Crowd) -> None:
    last, gap, bare = map(harness.median, (crowd.last, crowd.gap, crowd.bare))
    limit, silence = 1.2 * bare + SLACK_OF_CROWD, 3 * max(0.100, 2 * crowd.step)
    claim = f"{STREAMS_OF_CROWD} streams of {PROMPT_TOKENS} tokens: the last is back after"
    report.bar(last <= limit, f"{claim} {last:.2f} s <= {limit:.2f} s", speed=True)
    claim = f"the longest gap of one that is back {gap * 1000:.0f} ms"
    report.bar(gap <= silence, f"{claim} <= three slices, {silence * 1000:.0f} ms", speed=True)
    report.figures["crowd"] = {
        "last_seconds": crowd.last,
        "gap_seconds": crowd.gap,
        "bare_seconds": crowd.bare,
    }


def _rounds(on: Bulkhead, off: Bulkhead, model: Path, streams: int, rounds: int) -> Taken:
    taken = Taken()
    undisturbed = _texts(off, streams)
    for _ in range(rounds):
        seconds, lengths = _round(on, streams, undisturbed)
        taken.on.append(seconds)
        load, prefill = _bare(model, lengths)
        taken.load.append(load)
        taken.bare.append(load + prefill)
        taken.off.append(_round(off, streams, undisturbed)[0])
    return taken


def _requests(streams: int) -> list[bytes]:
    return [
        client.chat(_MODEL, f"{number} {_PROMPT}", _TOKENS, ignore_eos=True)
        for number in range(streams)
    ]


def _texts(server: Bulkhead, streams: int) -> list[str]:
    server.warm_up(_MODEL)
    exchanges = client.exchange_all(server.port, _requests(streams), _DEADLINE)
    return [exchange.answer().text() for exchange in exchanges]


def _round(server: Bulkhead, streams: int, undisturbed: list[str]) -> tuple[float, list[int]]:
    """One death under `streams` streams. Returns the seconds from the kill to the last stream's
    next token, and each stream's length in tokens then."""
    server.warm_up(_MODEL)
    _await_spare(server)
    pid = server.workers()[_MODEL]
    exchanges = [Exchange(request) for request in _requests(streams)]
    connections = client.connect(server.port, streams)
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
    resumed = [
        _resumed(exchange, killed, text)
        for exchange, text in zip(exchanges, undisturbed, strict=True)
    ]
    return max(at for at, _ in resumed) - killed, [length for _, length in resumed]


def _resumed(exchange: Exchange, killed: float, text: str) -> tuple[float, int]:
    """When the first token of the next worker came, which is after the longest pause, and how many
    tokens, prompt included, there were by then."""
    answer = exchange.answer()
    if not answer.done or answer.text() != text:
        raise Failed(f"a stream was not carried on: {answer.status} {exchange.fault}")
    times = [event.at for event in answer.contents]
    if b": recoveries 1" not in answer.body:
        raise Failed("a stream was not in the worker that was killed")
    pauses = [(later - at, i) for i, (at, later) in enumerate(itertools.pairwise(times))]
    _, last = max(pause for pause in pauses if times[pause[1] + 1] > killed)
    return times[last + 1], answer.usage()["prompt_tokens"] + last + 1


def _await_spare(server: Bulkhead) -> None:
    deadline = time.monotonic() + _DEADLINE
    while server.health()["memory"]["spare"] not in ("ready", "off"):
        if time.monotonic() > deadline:
            raise Failed("there is no spare worker")
        time.sleep(0.1)


def _bare(model: Path, lengths: list[int]) -> tuple[float, float]:
    """Seconds of the load and of all prefills, one after another."""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "MLX_DISABLE_COMPILE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bare", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        cwd=harness.ROOT,
        env=environ,
    )
    try:
        harness.read_line(process, _DEADLINE)
        assert process.stdin is not None
        process.stdin.write(json.dumps(lengths).encode() + b"\n")
        load, prefill = json.loads(harness.read_line(process, _DEADLINE))
        return load, prefill
    finally:
        harness.end(process)


def _tell(report: harness.Report, taken: dict[int, Taken]) -> None:
    header = ["streams", "bare load", "+ prefills", "spare", "no spare", "limit"]
    rows: list[list[str]] = []
    figures: dict[str, object] = {}
    limits: dict[int, float] = {}
    for streams, each in taken.items():
        bare = harness.median(each.bare)
        limit = limits[streams] = 1.1 * bare + SLACK[streams]
        found = [harness.median(each.load), bare, harness.median(each.on), harness.median(each.off)]
        rows.append([str(streams), *(f"{seconds * 1000:.0f} ms" for seconds in [*found, limit])])
        figures[str(streams)] = {
            "spare_seconds": each.on,
            "no_spare_seconds": each.off,
            "bare_seconds": each.bare,
        }
    print(harness.table(header, rows))
    for streams, each in taken.items():
        limit = limits[streams]
        median = harness.median(each.on)
        claim = f"{streams} streams: SIGABRT to the last one's next token {median * 1000:.0f} ms"
        report.bar(median <= limit, f"{claim} <= {limit * 1000:.0f} ms", speed=True)
    report.figures = figures


if __name__ == "__main__":
    harness.run("recovery", (__doc__ or "").partition("\n")[0], bench)
