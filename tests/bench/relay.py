"""Tokens a second through gateway and sockets, beside an aiohttp handler that writes the same bytes.

The engine is scripted and makes tokens as fast as it is asked, at 1, 32 and 256 streams, one event
a token. The handler runs in a process like the gateway's and has nothing to do but to write the
chunks that Bulkhead's answer had; both have the same client, and take turns. All requests are there
before the first token, and the rate counts from that one to the last byte. A second handler gives
each chunk a turn of its event loop, as tokens that come one at a time have.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Exchange
from tests.bench.harness import Bulkhead
from tests.bench.relay_parts import engine_rate
from tests.helpers.fakes.engine import Script

STREAMS = (1, 32, 256)
OURS, BARE, TURNS = "Bulkhead", "bare handler", "bare, a turn each"
BAR = 0.4
"""Of the bare handler's tokens a second."""
_DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of some streams: tokens a second, and microseconds of CPU time a token, of user and
    of kernel, by process."""

    rate: float
    cpu: dict[str, tuple[float, float]]


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    total, rounds = (4096, 1) if short else (65536, 5)
    tokens = {streams: total // streams for streams in STREAMS}
    print(f"{total} tokens in all, {rounds} rounds, medians", flush=True)
    engine = {streams: engine_rate(streams, tokens[streams]) for streams in STREAMS}
    rows: dict[tuple[int, str], list[Sample]] = {}
    with _server(folder, total) as server:
        server.warm_up(_model(1))
        answers = {}
        for streams in STREAMS:
            exchanges = _exchange(server.port, streams, tokens[streams])
            answers[tokens[streams]] = _chunks(exchanges[0], tokens[streams])
        file = folder / "answers.json"
        file.write_text(json.dumps(answers))
        with _bare_handler(file) as (pid, port):
            processes = {OURS: _pids(server), BARE: {"handler": pid}, TURNS: {"handler": pid}}
            for number in range(-1, rounds):
                for streams in STREAMS:
                    for name, pids in processes.items():
                        more = {"x_turns": "1"} if name == TURNS else {}
                        at = server.port if name == OURS else port
                        sample = _run(at, streams, tokens[streams], pids, more)
                        if number >= 0:  # the first was for warming up
                            rows.setdefault((streams, name), []).append(sample)
    _tell(report, engine, rows)


def _model(streams: int) -> str:
    return f"crowd{streams:03}"


@contextmanager
def _server(folder: Path, total: int) -> Iterator[Bulkhead]:
    """With a scripted model for each number of streams."""
    text = ""
    for streams in STREAMS:
        name = _model(streams)
        source = Script(crowd=streams, context=2 * total).write(folder / name)
        text += f'[models.{name}]\nsource = "{source}"\nmax_concurrency = {streams}\n'
    with harness.bulkhead(folder / "b", {}, settings=text, scripted=True) as server:
        yield server


def _pids(server: Bulkhead) -> dict[str, int]:
    return {"gateway": server.gateway(), **server.workers()}


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


def _exchange(port: int, streams: int, tokens: int, **headers: str) -> list[Exchange]:
    body = {
        "model": _model(streams),
        "messages": [{"role": "user", "content": "on"}],
        "max_tokens": tokens,
        "stream": True,
    }
    request = client.post("/v1/chat/completions", body, x_crowd=str(streams), **headers)
    return client.exchange_all(port, [request] * streams, _DEADLINE)


def _chunks(exchange: Exchange, tokens: int) -> list[str]:
    """The events of an answer, the last ones together, as they are written."""
    answer = exchange.answer()
    if answer.status != 200 or not answer.done or len(answer.contents) != tokens:
        raise Failed(f"a bad answer: {answer.status} {answer.body[-300:]!r}")
    events = answer.body.decode().split("\n\n")[:-1]
    return [f"{event}\n\n" for event in events[:tokens]] + ["\n\n".join([*events[tokens:], ""])]


def _run(
    port: int, streams: int, tokens: int, pids: dict[str, int], headers: dict[str, str]
) -> Sample:
    before = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    exchanges = _exchange(port, streams, tokens, **headers)
    after = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
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
        for name in (OURS, BARE, TURNS):
            samples = rows[streams, name]
            rate = harness.median([sample.rate for sample in samples])
            cpu = {
                process: [harness.median([s.cpu[process][i] for s in samples]) for i in (0, 1)]
                for process in samples[0].cpu
            }
            told = [f"{p} {u:.1f} + {k:.1f}" for p, (u, k) in cpu.items() if u + k > 0.05]
            of = "" if name == OURS else f"{ratio(streams, name):.2f}"
            lines.append([f"{streams} x {name}", f"{rate:.0f}", of, ", ".join(told)])
            report.figures[f"{streams} {name}"] = {
                "tokens_per_second": rate,
                "bulkhead_over_it": ratio(streams, name),
                "cpu_us": cpu,
            }
    header = ["streams", "tokens/s", "Bulkhead/it", "CPU, us a token: user + kernel"]
    print(harness.table(header, lines))
    for streams in STREAMS:
        got = ratio(streams, BARE)
        claim = f"{streams} streams: {got:.2f} of the bare handler, >= {BAR}"
        report.bar(got >= BAR, claim, speed=True)


if __name__ == "__main__":
    harness.run("relay", (__doc__ or "").partition("\n")[0], bench)
