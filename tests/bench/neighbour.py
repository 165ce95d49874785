"""What the streams of one model notice while the worker of another dies once a second.

The neighbour is a scripted engine that makes 50 tokens a second for each of 8 streams, by its own
clock. The other model is a real one under load, its worker gets a SIGABRT every second, wherever it
is: in service, or in the import of mlx-lm or the load that the last death has made necessary. Quiet
phases, with the neighbour alone, and those with deaths take turns. The times between tokens are
taken when the kernel has them for the client.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Connection, Exchange, Load, Stamped
from tests.bench.harness import Bulkhead
from tests.helpers.fakes.engine import Script, text_of

STREAMS, RATE = 8, 50
"""Of the neighbour; tokens a second of each."""
BAR_SECONDS = 0.015
"""What deaths may add to the p99 of the times between tokens."""
DEATH_SECONDS = 1.0
_NEAR, _HIT = "near", "hit"
_HIT_STREAMS = 4
_ENDLESS_TOKENS = 3500
"""More than a phase lasts, and within the model's context."""
_DEADLINE = 120.0
# The model dies on purpose, and for longer than any that is worth trying again.
_SETTINGS = """max_restarts = 1000000
max_recoveries = 1000000
[memory]
spare = true
"""
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


@dataclass(slots=True)
class Seen:
    """What a phase has shown. Times in seconds."""

    gaps: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """From the kernel to the client."""
    deaths: Counter[str] = field(default_factory=Counter)
    """By the state in which they came."""
    faults: list[str] = field(default_factory=list)
    """Streams of the neighbour that were not what they should be."""

    def quantiles(self) -> dict[str, float]:
        """Of the times between tokens."""
        return {name: harness.quantile(self.gaps, share) for name, share in SHARES.items()}


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    rounds, seconds = (1, 3) if short else (5, 10)
    models = {
        _NEAR: Script(tokens_per_second=RATE).write(folder / _NEAR),
        _HIT: harness.make_model(folder / _HIT, seed=1),
    }
    quiet: list[Seen] = []
    stormy: list[Seen] = []
    with harness.bulkhead(
        folder / "b", models, settings=_SETTINGS, recovery="resume", scripted=True
    ) as server:
        gateway = server.gateway()
        spawned = 0
        for _ in range(rounds):
            quiet.append(_quiet(server, seconds))
            before = _settle(server)
            stormy.append(_stormy(server, seconds))
            spawned += _settle(server) - before
        gateways = 1 + (server.gateway() != gateway)
    _tell(report, quiet, stormy, spawned, gateways)


def _settle(server: Bulkhead) -> int:
    """Return once both models answer and a spare is ready: how often the one that dies was
    started."""
    server.warm_up(_NEAR, _HIT)
    deadline = time.monotonic() + _DEADLINE
    while (health := server.health())["memory"]["spare"] != "ready":
        if time.monotonic() > deadline:
            raise Failed("there is no spare worker")
        time.sleep(0.1)
    generations = {model["name"]: model["generation"] for model in health["cached_models"]}
    return int(generations[_HIT])


def _quiet(server: Bulkhead, seconds: float) -> Seen:
    _settle(server)
    phase = _Phase(server, seconds)
    try:
        return phase.run()
    finally:
        phase.close()


def _stormy(server: Bulkhead, seconds: float) -> Seen:
    phase = _Phase(server, seconds)
    try:
        phase.load_the_other()
        return phase.run(deaths=True)
    finally:
        phase.close()


class _Phase:
    """So many seconds of the neighbour's streams, on one thread with everything else."""

    def __init__(self, server: Bulkhead, seconds: float) -> None:
        self._server = server
        self._tokens = int(seconds * RATE)
        self._load = Load()
        self._connections: list[Connection] = []
        self._hit: list[Exchange] = []
        self._health: Exchange | None = None
        """Under way, to tell whom to kill."""
        self._seen = Seen()

    def run(self, *, deaths: bool = False) -> Seen:
        """The neighbour's streams, from their start to their end."""
        request = client.chat(_NEAR, "on and on", self._tokens)
        lines = [Stamped(self._server.port) for _ in range(STREAMS)]
        streams = [self._begin(request, line) for line in lines]
        due = time.monotonic() + DEATH_SECONDS / 2
        deadline = time.monotonic() + _DEADLINE
        while not all(stream.ended for stream in streams):
            self._load.step(min(0.1, max(0.0, due - time.monotonic())))
            if deaths and time.monotonic() >= due:
                due += DEATH_SECONDS
                self._ask()
            self._kill()
            if time.monotonic() > deadline:
                raise Failed("the neighbour's streams did not end")
        for stream in streams:
            self._judge(stream)
        self._seen.late = [late for line in lines for late in line.late]
        return self._seen

    def load_the_other(self) -> None:
        """Return once the model that is going to die makes tokens."""
        for number in range(_HIT_STREAMS):
            request = client.chat(_HIT, f"{number} h", _ENDLESS_TOKENS, ignore_eos=True)
            self._hit.append(self._begin(request, Connection(self._server.port)))
        deadline = time.monotonic() + _DEADLINE
        while not all(len(stream.pieces) > 2 for stream in self._hit):
            self._load.step(0.1)
            if time.monotonic() > deadline:
                raise Failed(f"{_HIT} makes no tokens")

    def close(self) -> None:
        """Leave whatever still runs."""
        self._load.give_up()
        for connection in self._connections:
            connection.close()

    def _begin(self, request: bytes, connection: Connection) -> Exchange:
        self._connections.append(connection)
        exchange = Exchange(request)
        self._load.start(connection, exchange)
        return exchange

    def _ask(self) -> None:
        """Ask for the pid of the one that dies next, without keeping the streams waiting."""
        self._health = self._begin(client.get_request("/health"), Connection(self._server.port))

    def _kill(self) -> None:
        """Once the answer is there, end the worker of the other model, whatever it is at."""
        if self._health is None or not self._health.ended:
            return
        health, self._health = self._health.answer().json(), None
        for model in health["cached_models"]:
            if model["name"] == _HIT and model["pid"] is not None:
                os.kill(model["pid"], signal.SIGABRT)
                self._seen.deaths[model["state"].lower()] += 1

    def _judge(self, stream: Exchange) -> None:
        try:
            answer = stream.answer()
            times = [event.at for event in answer.contents]
            whole = answer.status == 200 and answer.whole and answer.done
            if not whole or len(times) != self._tokens or answer.text() != text_of(self._tokens):
                raise Failed(f"{answer.status}, {len(times)} chunks, {answer.body[-300:]!r}")
        except Failed as failure:
            self._seen.faults.append(f"{stream.fault} {failure}")
            return
        self._seen.gaps += [later - at for at, later in itertools.pairwise(times)]


def _tell(
    report: harness.Report,
    quiet: Sequence[Seen],
    stormy: Sequence[Seen],
    spawned: int,
    gateways: int,
) -> None:
    kinds = {"alone": quiet, "beside deaths": stormy}
    faults = [fault for phases in kinds.values() for phase in phases for fault in phase.faults]
    for fault in faults[:10]:
        print(f"  {fault}")
    streams = STREAMS * (len(quiet) + len(stormy))
    report.bar(not faults, f"{streams - len(faults)} of {streams} streams whole, a chunk a token")
    report.bar(gateways == 1, "the gateway is the one it was")
    report.figures = {"faults": faults[:50], "spawned": spawned}
    if not all(phase.gaps for phases in kinds.values() for phase in phases):
        return
    rows = [
        [
            f"{number + 1}, {name}",
            *(f"{seconds * 1000:.1f}" for seconds in phases[number].quantiles().values()),
            f"{harness.quantile(late, 0.99) * 1000:.1f}" if (late := phases[number].late) else "",
        ]
        for number in range(len(quiet))
        for name, phases in kinds.items()
    ]  # fmt: skip
    print(harness.table(["between tokens, ms", *SHARES, "client's own p99"], rows))
    deaths = sum((phase.deaths for phase in stormy), Counter[str]())
    told = ", ".join(f"{count} {state}" for state, count in sorted(deaths.items()))
    added = harness.median(
        [
            after.quantiles()["p99"] - before.quantiles()["p99"]
            for before, after in zip(quiet, stormy, strict=True)
        ]
    )
    print(f"{deaths.total()} deaths ({told}), after which {spawned} workers were started")
    report.bar(
        deaths["ready"] > 0 and spawned >= deaths.total(),
        "every death was followed by a new worker",
    )
    report.bar(
        added <= BAR_SECONDS,
        f"deaths add {added * 1000:.1f} ms <= {BAR_SECONDS * 1000:.0f} ms to the p99 of gaps",
        speed=True,
    )
    report.figures |= {
        "deaths": dict(deaths),
        "added_p99_seconds": added,
        "gap_seconds": {name: [phase.quantiles() for phase in p] for name, p in kinds.items()},
    }


if __name__ == "__main__":
    harness.run("neighbour", (__doc__ or "").partition("\n")[0], bench)
