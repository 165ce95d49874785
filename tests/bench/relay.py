"""Tokens a second through gateway and sockets, beside a handler that only writes the same bytes.

The engine is scripted and makes tokens as fast as it is asked, at 1, 32 and 256 streams, one event
a token. The handler, aiohttp's in a process like the gateway's, only writes the chunks that
Bulkhead's answer had; both have the same client, and take turns. All requests are there before the
first token, and rates and CPU time count from that one to the last byte. The second handler gives
each chunk a turn of its event loop. Last, an engine with a clock makes a few thousand tokens a
second, so that each is on its way alone: what one costs then, and which part of that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Exchange
from tests.bench.harness import Bulkhead
from tests.bench.relay_parts import engine_rate, parts
from tests.helpers.fakes.engine import Script

STREAMS = (1, 32, 256)
PACES = {1: 500, 32: 60, 256: 15}
"""Tokens a second of each stream, by how many there are."""
OURS, BARE, TURNS, PACED = "Bulkhead", "bare handler", "bare, a turn each", "Bulkhead, paced"
BAR = 0.4
"""Of the bare handler's tokens a second."""
_DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of some streams: tokens a second, and microseconds of CPU time a token, of user and
    of kernel, by process."""

    rate: float
    cpu: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Contest:
    """What answers, how often how much is asked of it, and whose CPU time counts."""

    port: int
    request: bytes
    streams: int
    tokens: int
    pids: dict[str, int]


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    total, paced_seconds, rounds = (4096, 1, 1) if short else (65536, 4, 5)
    print(f"{total} tokens in all, {rounds} rounds, medians", flush=True)
    engine = {streams: engine_rate(streams, total // streams) for streams in STREAMS}
    rows: dict[tuple[int, str], list[Sample]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(_server(folder, total))
        contests: dict[tuple[int, str], Contest] = {}
        answers = {}
        for streams in STREAMS:
            tokens = total // streams
            for name, asked in ((OURS, tokens), (PACED, PACES[streams] * paced_seconds)):
                model = _model(streams, name)
                request = _request(model, streams, asked)
                _load(server, model)
                pids = {"gateway": server.gateway(), "worker": server.workers()[model]}
                contests[streams, name] = Contest(server.port, request, streams, asked, pids)
            request = contests[streams, OURS].request
            exchanges = client.exchange_all(server.port, [request] * streams, _DEADLINE)
            answers[tokens] = _chunks(exchanges[0], tokens)
        file = folder / "answers.json"
        file.write_text(json.dumps(answers))
        pid, port = stack.enter_context(_bare_handler(file))
        for streams in STREAMS:
            for name, more in ((BARE, {}), (TURNS, {"x_turns": "1"})):
                ours = contests[streams, OURS]
                request = _request("", streams, ours.tokens, **more)
                contests[streams, name] = Contest(
                    port, request, streams, ours.tokens, {"handler": pid}
                )
                _run(contests[streams, name])
        for number in range(rounds):
            for (streams, name), contest in contests.items():
                if name != PACED or number == 0:
                    rows.setdefault((streams, name), []).append(_run(contest))
    _tell(report, engine, rows)


def _model(streams: int, name: str) -> str:
    return f"{'paced' if name == PACED else 'crowd'}{streams:03}"


@contextmanager
def _server(folder: Path, total: int) -> Iterator[Bulkhead]:
    """With a scripted model for each number of streams and pace."""
    text = ""
    for streams in STREAMS:
        for name, pace in ((OURS, 0), (PACED, PACES[streams])):
            model = _model(streams, name)
            script = Script(crowd=streams, context=2 * total, tokens_per_second=pace)
            source = script.write(folder / model)
            text += f'[models.{model}]\nsource = "{source}"\nmax_concurrency = {streams}\n'
    with harness.bulkhead(folder / "b", {}, settings=text, scripted=True, imports=False) as server:
        yield server


def _load(server: Bulkhead, model: str) -> None:
    request = client.post(f"/admin/models/{model}/load", {})
    (exchange,) = client.exchange_all(server.port, [request], _DEADLINE)
    answer = exchange.answer()
    if answer.status != 200:
        raise Failed(f"{model} is not loaded: {answer.status} {answer.body!r}")


@contextmanager
def _bare_handler(answers: Path) -> Iterator[tuple[int, int]]:
    """Its pid and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bare_handler", str(answers)],
        stdout=subprocess.PIPE,
        cwd=harness.ROOT,
    )
    try:
        yield process.pid, int(harness.read_line(process, _DEADLINE))
    finally:
        harness.end(process)


def _request(model: str, streams: int, tokens: int, **headers: str) -> bytes:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "on"}],
        "max_tokens": tokens,
        "stream": True,
    }
    return client.post("/v1/chat/completions", body, x_crowd=str(streams), **headers)


def _chunks(exchange: Exchange, tokens: int) -> list[str]:
    """The events of an answer, the last ones together, as they are written."""
    answer = exchange.answer()
    if answer.status != 200 or not answer.done or len(answer.contents) != tokens:
        raise Failed(f"a bad answer: {answer.status} {answer.body[-300:]!r}")
    events = answer.body.decode().split("\n\n")[:-1]
    return [f"{event}\n\n" for event in events[:tokens]] + ["\n\n".join([*events[tokens:], ""])]


def _run(contest: Contest) -> Sample:
    streams, tokens, pids = contest.streams, contest.tokens, contest.pids
    exchanges = [Exchange(contest.request) for _ in range(streams)]
    connections = client.connect(contest.port, streams)
    try:
        load = client.Load()
        for connection, exchange in zip(connections, exchanges, strict=True):
            load.start(connection, exchange)
        deadline = time.monotonic() + _DEADLINE
        while load.running and not any(map(_has_content, exchanges)):
            load.step(max(0.0, deadline - time.monotonic()))
        before = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
        load.run(_DEADLINE)
        after = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    finally:
        for connection in connections:
            connection.close()
    firsts = [_check(exchange, tokens) for exchange in exchanges]
    seconds = max(exchange.ended for exchange in exchanges) - min(firsts)
    each = 1e6 / (streams * tokens)
    cpu = {
        name: (
            (after[name].user - before[name].user) * each,
            (after[name].system - before[name].system) * each,
        )
        for name in pids
    }
    return Sample(streams * tokens / seconds, cpu)


def _has_content(exchange: Exchange) -> bool:
    return any(b"data: " in data for _, data in exchange.pieces)


def _check(exchange: Exchange, tokens: int) -> float:
    """When the first event came. Raises Failed unless there is one for each token."""
    raw = b"".join(data for _, data in exchange.pieces)
    events = raw.count(b'"finish_reason":null}]}\n\n')
    if exchange.fault or events != tokens or not raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        raise Failed(f"{events} events for {tokens} tokens: {exchange.fault} {raw[-300:]!r}")
    return next(at for at, data in exchange.pieces if b"data: " in data)


def _tell(
    report: harness.Report,
    engine: dict[int, float],
    rows: dict[tuple[int, str], list[Sample]],
) -> None:
    def ratio(streams: int, of: str) -> float:
        """The median of the rounds' own."""
        pairs = zip(rows[streams, OURS], rows[streams, of], strict=True)
        return harness.median([ours.rate / other.rate for ours, other in pairs])

    lines: list[Sequence[str]] = []
    for streams in STREAMS:
        lines.append([f"{streams} x engine alone", f"{engine[streams]:.0f}", "", ""])
        for name in (OURS, BARE, TURNS, PACED):
            samples = rows[streams, name]
            rate = harness.median([sample.rate for sample in samples])
            cpu = {
                process: [harness.median([s.cpu[process][i] for s in samples]) for i in (0, 1)]
                for process in samples[0].cpu
            }
            told = ", ".join(f"{each} {u:.1f} + {k:.1f}" for each, (u, k) in cpu.items())
            of = f"{ratio(streams, name):.2f}" if name in (BARE, TURNS) else ""
            lines.append([f"{streams} x {name}", f"{rate:.0f}", of, told])
            report.figures[f"{streams} {name}"] = {"tokens_per_second": rate, "cpu_us": cpu}
            if of:
                report.figures[f"{streams} {name}"]["bulkhead_over_it"] = ratio(streams, name)
    header = ["streams", "tokens/s", "Bulkhead/it", "CPU, us a token: user + kernel"]
    print(harness.table(header, lines))
    report.figures["parts_us"] = costs = {name: cost * 1e6 for name, cost in parts().items()}
    print("us a token, by themselves: " + ", ".join(f"{n} {cost:.2f}" for n, cost in costs.items()))
    for streams in STREAMS:
        got = ratio(streams, BARE)
        claim = f"{streams} streams: {got:.2f} of the bare handler, >= {BAR}"
        report.bar(got >= BAR, claim, speed=True)


if __name__ == "__main__":
    harness.run("relay", (__doc__ or "").partition("\n")[0], bench)
