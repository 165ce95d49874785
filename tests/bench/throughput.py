"""Tokens a second, time to first token and between tokens: the bare engine, Bulkhead and
mlx_lm.server.

One run, the three alternating at 1, 8, 32 and 128 streams; the same tiny model, the same prompts,
greedy, every stream forced to full length, which is a quarter at 128 streams. Rates count the
tokens of `usage` over the time from the first request sent to the last stream's end; TTFT is over
the streams, the times between tokens are over all of them. The bare engine's time includes
rendering and tokenizing the prompts, as the servers' does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.engine import CONCURRENCY, Engine

STREAMS = (1, 8, 32, 128)
_MANY = 128
BARE, OURS, THEIRS = "bare engine", "Bulkhead", "mlx_lm.server"
BAR = 0.9
"""Of the bare engine's tokens a second."""
_DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of some streams: tokens a second; seconds to the first token of each stream, and
    between tokens; what was generated."""

    rate: float
    ttfts: list[float]
    gaps: list[float]
    prompt_tokens: list[int]
    texts: list[str]


@dataclass(slots=True)
class Row:
    """All rounds of one contestant at one number of streams."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return harness.median([sample.rate for sample in self.samples])

    def ttft(self, share: float) -> float:
        """The median round's TTFT that this share of its streams are not above."""
        return harness.median([harness.quantile(sample.ttfts, share) for sample in self.samples])

    @property
    def gap(self) -> float:
        """The median round's p99 between tokens."""
        return harness.median([harness.quantile(sample.gaps, 0.99) for sample in self.samples])


Contestant = Callable[[Sequence[str], int], Sample]


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    tokens, rounds = (64, 3) if short else (512, 5)
    model = harness.make_model(folder / "model", seed=1)
    print(f"{tokens} tokens a stream, {rounds} rounds, medians", flush=True)
    rows = {(streams, name): Row() for streams in STREAMS for name in (BARE, OURS, THEIRS)}
    with ExitStack() as stack:
        server = stack.enter_context(harness.bulkhead(folder / "b", {"tiny": model}))
        port = stack.enter_context(harness.mlx_lm_server(folder / "m", model, CONCURRENCY))
        contestants: dict[str, Contestant] = {
            BARE: partial(_bare, stack.enter_context(Engine(model))),
            OURS: partial(_served, server.port, "tiny", ours=True),
            THEIRS: partial(_served, port, "default_model", ours=False),
        }
        for contestant in contestants.values():
            contestant(_prompts("warm", 32), tokens)
        for number in range(rounds):
            # Many streams take as long as all others together.
            for streams in STREAMS if number % 2 == 0 else STREAMS[:-1]:
                length = tokens // 4 if streams == _MANY else tokens
                prompts = _prompts(f"sea {number}", streams)
                samples = {name: run(prompts, length) for name, run in contestants.items()}
                _check_same(samples)
                for name, sample in samples.items():
                    rows[streams, name].samples.append(sample)
    _tell(report, rows)


def _prompts(salt: str, streams: int) -> list[str]:
    """Distinct from the first character, so that no server's prompt cache helps it."""
    return [f"{i} {salt}" for i in range(streams)]


def _bare(engine: Engine, prompts: Sequence[str], tokens: int) -> Sample:
    run = engine.run(prompts, tokens, _DEADLINE)
    _check_counts(BARE, run.completion_tokens, tokens)
    rate = sum(run.completion_tokens) / run.seconds
    return Sample(rate, run.first, run.gaps, run.prompt_tokens, run.texts)


def _served(port: int, model: str, prompts: Sequence[str], tokens: int, *, ours: bool) -> Sample:
    more = {"ignore_eos": True} if ours else {}
    requests = [client.chat(model, prompt, tokens, **more) for prompt in prompts]
    exchanges = client.exchange_all(port, requests, _DEADLINE)
    begun = min(exchange.sent for exchange in exchanges)
    seconds = max(exchange.ended for exchange in exchanges) - begun
    answers = [exchange.answer() for exchange in exchanges]
    for answer in answers:
        if answer.status != 200 or not answer.whole or not answer.done:
            raise Failed(f"a bad answer: {answer.status} {answer.body[-300:]!r}")
        if ours and len(answer.contents) != tokens:
            raise Failed(f"{len(answer.contents)} chunks for {tokens} tokens")
    counts = [answer.usage()["completion_tokens"] for answer in answers]
    _check_counts(OURS if ours else THEIRS, counts, tokens)
    return Sample(
        sum(counts) / seconds,
        [exchange.first_content() for exchange in exchanges],
        [after.at - before.at for answer in answers for before, after in pairwise(answer.contents)],
        [answer.usage()["prompt_tokens"] for answer in answers],
        [answer.text() for answer in answers],
    )


def _check_counts(name: str, counts: Sequence[int], tokens: int) -> None:
    if any(count != tokens for count in counts):
        raise Failed(f"{name} generated {sorted(set(counts))} tokens instead of {tokens}")


def _check_same(samples: dict[str, Sample]) -> None:
    """All did the same work."""
    bare = samples[BARE]
    if any(sample.prompt_tokens != bare.prompt_tokens for sample in samples.values()):
        raise Failed("the prompts were tokenized differently")
    if bare.texts != samples[OURS].texts:
        raise Failed("the bare engine and Bulkhead generated different texts")


def _tell(report: harness.Report, rows: dict[tuple[int, str], Row]) -> None:
    def ratio(streams: int, of: str) -> float:
        """Bulkhead's rate over another's: the median of the rounds' own ratios, since what else
        the machine does changes from round to round."""
        pairs = zip(rows[streams, OURS].samples, rows[streams, of].samples, strict=True)
        return harness.median([ours.rate / other.rate for ours, other in pairs])

    lines = [
        [
            f"{streams} x {name}",
            f"{row.rate:.0f}",
            f"{min(sample.rate for sample in row.samples):.0f}",
            f"{max(sample.rate for sample in row.samples):.0f}",
            f"{row.ttft(0.5) * 1000:.1f}",
            f"{row.ttft(0.99) * 1000:.1f}",
            f"{row.gap * 1000:.1f}",
            "" if name == OURS else f"{ratio(streams, name):.2f}",
        ]
        for (streams, name), row in rows.items()
    ]
    columns = ["TTFT ms p50", "p99", "inter-token p99"]
    print(harness.table(["streams", "tokens/s", "min", "max", *columns, "Bulkhead/it"], lines))
    for streams in STREAMS:
        if 1 < streams < _MANY:
            got = ratio(streams, BARE)
            claim = f"{streams} streams: {got:.2f} of the bare engine, >= {BAR}"
            report.bar(got >= BAR, claim, speed=True)
        got = ratio(streams, THEIRS)
        report.bar(got > 1, f"{streams} streams: {got:.2f} x mlx_lm.server, ahead", speed=True)
        ours, theirs = rows[streams, OURS], rows[streams, THEIRS]
        times = [("inter-token p99", ours.gap, theirs.gap)] if streams > 1 else []
        if streams == _MANY:
            times += [(f"TTFT p{p}", ours.ttft(p / 100), theirs.ttft(p / 100)) for p in (50, 99)]
        for name, own, other in times:
            claim = f"{streams} streams: {name} {own * 1000:.1f} ms <= {other * 1000:.1f} of theirs"
            report.bar(own <= other, claim, speed=True)
    report.figures = {
        f"{streams} {name}": {
            "tokens_per_second": row.rate,
            "ttft_seconds": {"p50": row.ttft(0.5), "p99": row.ttft(0.99)},
            "inter_token_p99_seconds": row.gap,
            "rates": [sample.rate for sample in row.samples],
            "bulkhead_over_it": ratio(streams, name),
        }
        for (streams, name), row in rows.items()
    }


if __name__ == "__main__":
    harness.run("throughput", (__doc__ or "").partition("\n")[0], bench)
