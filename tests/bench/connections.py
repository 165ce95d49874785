"""Many connections, a dead gateway, and the time that Bulkhead adds before the first token.

1. 500 streams, all running at the same moment, on a server started with 256 files allowed.
2. The gateway is killed; 500 connections made while it is dead are all answered, no model unloads.
3. TTFT through Bulkhead less the bare engine's in the same run, one request at a time and in
   bursts.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Connection, Exchange
from tests.bench.engine import Engine, Run

MANY = 500
SOFT_FILES = 256
BURST = 32
BARS_MS = {1: 1.5, BURST: 5.0}
"""Added TTFT in milliseconds, p50, by requests at a time."""
_LONG = 200
"""Tokens of each of the many streams: eight join at a step, and the first must outlast that."""
_TOKENS = 4
"""Of a request whose TTFT is measured."""
_DEADLINE = 300.0


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    _allow_files(MANY + 100)
    model = harness.make_model(folder / "model", seed=1)
    # Every stream decodes at once; with the default of 32 the others would only wait.
    settings = f'[models.tiny]\nsource = "{model}"\nmax_concurrency = {MANY}\n'
    with harness.bulkhead(folder / "b", {}, settings=settings, soft_files=SOFT_FILES) as server:
        server.warm_up("tiny")
        _many_streams(report, server.port)
        _dead_gateway(report, server)
    with harness.bulkhead(folder / "c", {"tiny": model}) as server, Engine(model) as engine:
        server.warm_up("tiny")
        _added_ttft(report, server.port, engine, (20, 5) if short else (200, 30))


def _allow_files(count: int) -> None:
    """For this process, whose own limit may be as low as a shell's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))


# ── many streams ─────────────────────────────────────────────────────────────────────────────────


def _many_streams(report: harness.Report, port: int) -> None:
    requests = [client.chat("tiny", f"{i}", _LONG, ignore_eos=True) for i in range(MANY)]
    exchanges = client.exchange_all(port, requests, _DEADLINE)
    good, spans, problem = 0, [], ""
    for exchange in exchanges:
        try:
            answer = exchange.answer()
            if answer.whole and answer.done and answer.usage()["completion_tokens"] == _LONG:
                good += 1
                spans.append((answer.contents[0].at, exchange.ended))
            else:
                problem = f"{answer.status} {exchange.fault} {answer.body[-200:]!r}"
        except Failed as failure:
            problem = str(failure)
    if problem:
        print(f"  one of the failures: {problem}")
    seconds = max(e.ended for e in exchanges) - min(e.sent for e in exchanges)
    together = _overlap(spans)
    print(
        f"{MANY} streams of {_LONG} tokens: {seconds:.1f} s, {good * _LONG / seconds:.0f} "
        f"tokens/s, {together} between their first token and their end at one moment"
    )
    report.bar(good == MANY, f"{good} of {MANY} streams without an error, ulimit -n {SOFT_FILES}")
    report.bar(together == MANY, f"{together} of {MANY} streams running at one moment")
    report.figures["streams"] = {"good": good, "together": together, "seconds": seconds}


def _overlap(spans: Sequence[tuple[float, float]]) -> int:
    """The largest number of spans that cover one moment."""
    changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


# ── the gateway dies ─────────────────────────────────────────────────────────────────────────────


def _dead_gateway(report: harness.Report, server: harness.Bulkhead) -> None:
    gateway, workers = server.gateway(), server.workers()
    request = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    exchanges = [Exchange(request) for _ in range(MANY)]
    connections: list[Connection] = []
    refused = 0
    begun = time.perf_counter()
    os.kill(gateway, signal.SIGKILL)
    try:
        for _ in exchanges:
            try:
                connections.append(Connection(server.port))
            except OSError:
                refused += 1
        connected = time.perf_counter()
        del exchanges[len(connections) :]
        client.run_on(connections, exchanges, _DEADLINE)
    finally:
        for connection in connections:
            connection.close()
    answered = sum(1 for exchange in exchanges if _is_ok(exchange))
    first = min((e.pieces[0][0] for e in exchanges if e.begun), default=begun)
    last = max((exchange.ended for exchange in exchanges), default=begun)
    times = [connected - begun, first - begun, last - begun]
    print(
        "gateway killed: the last connection after {:.3f} s, the first answer after {:.3f} s, "
        "the last after {:.3f} s".format(*times)
    )
    report.bar(refused == 0, f"{refused} of {MANY} connections refused while the gateway was dead")
    report.bar(connected < first, "all connections were made before the next gateway answered")
    report.bar(answered == MANY, f"{answered} of {MANY} answered 200")
    report.bar(server.gateway() != gateway, "there is a new gateway")
    report.bar(server.workers() == workers, f"the models' pids are unchanged: {workers}")
    report.figures["dead gateway"] = {
        "refused": refused,
        "answered": answered,
        "connected_seconds": times[0],
        "first_answer_seconds": times[1],
        "last_answer_seconds": times[2],
    }


def _is_ok(exchange: Exchange) -> bool:
    try:
        answer = exchange.answer()
    except Failed:
        return False
    return answer.status == 200 and answer.whole


# ── added TTFT ───────────────────────────────────────────────────────────────────────────────────


def _added_ttft(report: harness.Report, port: int, engine: Engine, rounds: tuple[int, int]) -> None:
    """Bulkhead's clock runs from the request's first byte, on a kept-alive connection as SDKs have
    it, to the first token's event; the engine's from having the same messages, which it too must
    render and tokenize, to the first decoded token. What it would be from the call of `insert`,
    with the prompts tokenized beforehand, is in the last column."""
    connections = client.connect(port, BURST)
    rows = []
    try:
        for at_once, count in zip(BARS_MS, rounds, strict=True):
            bare: list[list[float]] = []
            whole: list[list[float]] = []
            ours: list[list[float]] = []
            for number in range(-2, count):
                prompts = [f"{i} t{number}" for i in range(at_once)]
                run = engine.run(prompts, _TOKENS, _DEADLINE)
                seen = _ttft(connections[:at_once], prompts, run)
                if number >= 0:  # the others were for warming up
                    bare.append([first - run.prepared for first in run.first])
                    whole.append(run.first)
                    ours.append(seen)
            rows.append(_row(report, at_once, bare, whole, ours))
    finally:
        for connection in connections:
            connection.close()
    header = [
        "TTFT, ms; requests at a time",
        "engine p50",
        "Bulkhead p50",
        "added p50",
        "added mean",
    ]
    print(harness.table([*header, "over insert p50"], rows))
    for at_once, bar in BARS_MS.items():
        added = report.figures["added ttft"][at_once]["added_ms"]
        claim = f"added TTFT, {at_once} at a time: {added:.2f} ms <= {bar} ms"
        report.bar(added <= bar, claim, speed=True)


def _ttft(connections: Sequence[Connection], prompts: Sequence[str], run: Run) -> list[float]:
    exchanges = [
        Exchange(client.chat("tiny", prompt, _TOKENS, ignore_eos=True)) for prompt in prompts
    ]
    client.run_on(connections, exchanges, _DEADLINE)
    answers = [exchange.answer() for exchange in exchanges]
    if [answer.text() for answer in answers] != run.texts:
        raise Failed("the bare engine and Bulkhead generated different texts")
    return [exchange.first_content() for exchange in exchanges]


def _row(
    report: harness.Report,
    at_once: int,
    bare: list[list[float]],
    whole: list[list[float]],
    ours: list[list[float]],
) -> list[str]:
    """One line of the table. Differences are taken round by round, since the machine's other work
    varies, and their median is told. p50 and mean are over the requests of a round: in a burst the
    engine prefills eight prompts at a time, so p50 alone moves by whole groups."""
    p50s = [[harness.median(values) for values in side] for side in (bare, whole, ours)]
    means = [[statistics.fmean(values) for values in side] for side in (whole, ours)]
    figures = {
        "engine_ms": harness.median(p50s[1]) * 1000,
        "bulkhead_ms": harness.median(p50s[2]) * 1000,
        "added_ms": _difference(p50s[2], p50s[1]),
        "added_mean_ms": _difference(means[1], means[0]),
        "added_over_insert_ms": _difference(p50s[2], p50s[0]),
    }
    report.figures.setdefault("added ttft", {})[at_once] = figures
    return [str(at_once), *(f"{value:.2f}" for value in figures.values())]


def _difference(more: Sequence[float], less: Sequence[float]) -> float:
    """Median of the pairs' differences, in milliseconds."""
    return harness.median([m - n for m, n in zip(more, less, strict=True)]) * 1000


if __name__ == "__main__":
    harness.run("connections", (__doc__ or "").partition("\n")[0], bench)
