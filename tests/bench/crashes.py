"""Worker deaths seen from outside: what clients of the dead worker get, and what neighbours notice.

Two models, so two worker processes. In every round both hold 16 streams, one worker gets a SIGABRT
at a random moment (some before the first byte), and it is loaded again while the neighbour still
generates. Recovery is off: every request that was hit must end in exactly one typed error, soon,
and the neighbour's texts must be those of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Answer, Failed
from tests.bench.client import Connection, Exchange, Load

STREAMS, FEW = 16, 4
"""On each of the two workers; in the short form."""
BAR_SECONDS = 0.050
"""From the death to the last byte of a request that was in it, p99."""
_ENDLESS_TOKENS = 3500
"""For the streams that are cut: far more than they live for, and within the model's context."""
_CODE = "worker_crashed"
_DEADLINE = 60.0


@dataclass(slots=True)
class Tally:
    """All rounds together. Latencies in seconds, from the kill() call."""

    latencies: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    hit: int = 0
    """Requests that ran when their worker was killed."""
    later: int = 0
    """Requests that had not come to the worker when it was killed, and got the next one."""
    neighbours: int = 0
    reloads: list[float] = field(default_factory=list)


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    deaths = 1 if short else 200
    streams, tokens = (FEW, 96) if short else (STREAMS, 192)
    models = {
        name: harness.make_model(folder / name, seed) for seed, name in enumerate(("hit", "near"))
    }
    tally, dice = Tally(), random.Random(0)
    with harness.bulkhead(folder / "b", models) as server:
        server.warm_up(*models)
        near = [client.chat("near", f"{i} n", tokens, ignore_eos=True) for i in range(streams)]
        undisturbed, seconds = _undisturbed(server.port, near, tokens)
        pid = server.workers()["near"]
        for number in range(deaths):
            _round(server, near, undisturbed, dice.uniform(0, 0.5 * seconds), tally)
            if (number + 1) % 20 == 0:
                print(f"{number + 1} deaths", flush=True)
        if server.workers().get("near") != pid:
            tally.faults.append("the neighbour's worker is not the one it was")
    _tell(report, deaths, streams, tally)


def _undisturbed(port: int, requests: list[bytes], tokens: int) -> tuple[list[str], float]:
    """The neighbour's texts when nothing dies, and how long they take with nobody else there."""
    begun = time.perf_counter()
    exchanges = client.exchange_all(port, requests, _DEADLINE)
    seconds = time.perf_counter() - begun
    answers = [exchange.answer() for exchange in exchanges]
    for answer in answers:
        if not (answer.whole and answer.done) or answer.usage()["completion_tokens"] != tokens:
            raise Failed(f"the undisturbed run: {answer.status} {answer.body[-300:]!r}")
    texts = [answer.text() for answer in answers]
    # A model that repeats itself, or says the same to all, would prove nothing.
    if len(set(texts)) != len(texts) or min(len(set(text)) for text in texts) < 16:
        raise Failed("the undisturbed texts are too much alike")
    return texts, seconds


def _round(
    server: harness.Bulkhead, near: list[bytes], undisturbed: list[str], delay: float, tally: Tally
) -> None:
    """One death, `delay` seconds after the requests were sent."""
    pid, worker = server.worker("hit")
    victims = [
        Exchange(client.chat("hit", f"{i} h", _ENDLESS_TOKENS, ignore_eos=True))
        for i in range(len(near))
    ]
    neighbours = [Exchange(request) for request in near]
    reload = Exchange(client.chat("hit", "again", 4, ignore_eos=True))
    connections = client.connect(server.port, 2 * len(near) + 1)
    try:
        load = Load()
        for connection, exchange in zip(connections, [*victims, *neighbours], strict=False):
            load.start(connection, exchange)
        _step_for(load, delay)
        # On a machine that stands still for a while, some may have come to their end.
        running = [victim for victim in victims if not victim.ended]
        killed = time.perf_counter()
        os.kill(pid, signal.SIGABRT)
        _step_until_ended(load, victims, worker)
        for victim in victims:
            load.leave(victim)  # it is with the next worker, for as long as that lives
        load.start(connections[-1], reload)
        load.run(_DEADLINE)
    finally:
        _close(connections)
    for victim in running:
        if victim.worker not in ("", worker):
            tally.later += 1
            continue
        tally.hit += 1
        tally.latencies.append(victim.ended - killed)
        _judge_victim(victim, tally)
    for exchange, text in zip(neighbours, undisturbed, strict=True):
        _judge_neighbour(exchange, text, tally)
    answer = reload.answer()
    if not answer.done:
        raise Failed(f"after a death the model did not come back: {answer.body[-300:]!r}")
    tally.reloads.append(reload.ended - killed)


def _step_for(load: Load, seconds: float) -> None:
    deadline = time.perf_counter() + seconds
    while (left := deadline - time.perf_counter()) > 0:
        load.step(left)


def _step_until_ended(load: Load, exchanges: list[Exchange], worker: str) -> None:
    """Whoever was not in `worker` yet when it died waits for the next one and is served by it."""
    deadline = time.perf_counter() + _DEADLINE
    while time.perf_counter() < deadline and not all(
        exchange.ended or exchange.worker not in ("", worker) for exchange in exchanges
    ):
        load.step(0.1)


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


def _judge_victim(exchange: Exchange, tally: Tally) -> None:
    """Exactly one typed end: an event inside the stream, or a status before it."""
    try:
        answer = exchange.answer()
        how = _end_of(answer)
    except Failed as failure:
        tally.ends["broken"] += 1
        tally.faults.append(f"a request that was hit: {failure}")
        return
    tally.ends[how] += 1
    if how not in ("event", "503"):
        tally.faults.append(f"a request that was hit ended with {how}: {answer.body[-300:]!r}")


def _end_of(answer: Answer) -> str:
    """ "event", "503" or a description of what is wrong."""
    if not answer.whole:
        return "a torn body"
    if answer.status == 503:
        retry = answer.headers.get("retry-after", "")
        if answer.json()["error"]["code"] != _CODE:
            return "a 503 of another code"
        if not (retry.isdigit() and 1 <= int(retry) <= 59):
            return f"a 503 with Retry-After {retry!r}"
        return "503" if answer.headers.get("x-should-retry") == "true" else "a 503 without retry"
    if answer.status != 200:
        return f"status {answer.status}"
    errors = [chunk for chunk in answer.objects() if "error" in chunk]
    if len(errors) != 1:
        return f"{len(errors)} error events"
    if answer.done or b"[DONE]" in answer.body:
        return "an error and [DONE]"
    if "error" not in answer.objects()[-1]:
        return "something after its error"
    if answer.usages() or b'"finish_reason":"' in answer.body:
        return "an error and an orderly end"
    return "event" if errors[0]["error"]["code"] == _CODE else "an event of another code"


def _judge_neighbour(exchange: Exchange, text: str, tally: Tally) -> None:
    try:
        answer = exchange.answer()
        intact = answer.status == 200 and answer.whole and answer.done and answer.text() == text
    except Failed:
        intact = False
    if intact:
        tally.neighbours += 1
    else:
        tally.faults.append(f"a neighbour's stream was disturbed: {exchange.fault}")


def _tell(report: harness.Report, deaths: int, each: int, tally: Tally) -> None:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found = {name: harness.quantile(tally.latencies, share) for name, share in shares.items()}
    header = ["death to last byte, ms", *found]
    row = [f"{len(tally.latencies)} requests", *(f"{v * 1000:.1f}" for v in found.values())]
    print(harness.table(header, [row]))
    ends = ", ".join(f"{count} by {how}" for how, count in sorted(tally.ends.items()))
    reloaded = harness.median(tally.reloads)
    print(
        f"{tally.later} requests came to the next worker; ends: {ends}; "
        f"death to the reloaded model's answer: median {reloaded:.2f} s"
    )
    for fault in tally.faults[:10]:
        print(f"  {fault}")
    hit, streams = tally.hit, deaths * each
    report.bar(hit >= 0.9 * streams, f"{hit} of {streams} requests ran when their worker died")
    typed = tally.ends["event"] + tally.ends["503"]
    report.bar(typed == hit, f"{typed} of {hit} requests that were hit got one typed end")
    report.bar(
        tally.neighbours == streams,
        f"{tally.neighbours} of {streams} neighbour streams byte-identical",
    )
    report.bar(not tally.faults, f"{len(tally.faults)} faults")
    report.bar(
        found["p99"] <= BAR_SECONDS,
        f"death to last byte, p99: {found['p99'] * 1000:.1f} ms <= {BAR_SECONDS * 1000:.0f} ms",
        speed=True,
    )
    report.figures = {
        "deaths": deaths,
        "latency_seconds": found,
        "ends": dict(tally.ends),
        "neighbours_intact": tally.neighbours,
        "faults": tally.faults[:50],
        "reload_seconds": reloaded,
    }


if __name__ == "__main__":
    harness.run("crashes", (__doc__ or "").partition("\n")[0], bench)
