"""Tokens a second and time to first token of each dialect, beside chat completions.

One server and one model; at 1 and 8 streams all dialects take turns, in another order in every
round. The same prompts, greedy, every stream forced to full length, and the texts
must be equal. Rates are over the time from the first request sent to the last stream's end; TTFT
is the median over the streams, from the request to the first event that has text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Connection, Exchange

STREAMS = (1, 8)
CHAT = "chat completions"
BAR = 0.05
"""How far the others may stay behind."""
_DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text is asked for, and where an event of the answer has it."""

    path: str
    body: Callable[[str, int], dict[str, object]]
    """Of a prompt and a number of tokens."""
    text: Callable[[Any], str]
    tokens: Callable[[Sequence[Any]], int]
    """What the events say was made."""


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _chat_body(prompt: str, tokens: int) -> dict[str, object]:
    usage = {"include_usage": True}
    return {"messages": _messages(prompt), "max_tokens": tokens, "stream_options": usage}


def _chat_text(event: Any) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _text_delta(event: Any) -> str:
    return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""


def _block_delta(event: Any) -> str:
    is_text = event["type"] == "content_block_delta" and event["delta"]["type"] == "text_delta"
    return str(event["delta"]["text"]) if is_text else ""


DIALECTS: Mapping[str, Dialect] = {
    CHAT: Dialect(
        "/v1/chat/completions",
        _chat_body,
        _chat_text,
        lambda events: events[-1]["usage"]["completion_tokens"],
    ),
    "completions": Dialect(
        "/v1/completions",
        lambda prompt, tokens: {
            "prompt": f"<|im_start|>user\n{prompt}",
            "max_tokens": tokens,
            "stream_options": {"include_usage": True},
        },
        lambda event: "".join(choice["text"] for choice in event["choices"]),
        lambda events: events[-1]["usage"]["completion_tokens"],
    ),
    "responses": Dialect(
        "/v1/responses",
        lambda prompt, tokens: {"input": _messages(prompt), "max_output_tokens": tokens},
        _text_delta,
        lambda events: events[-1]["response"]["usage"]["output_tokens"],
    ),
    "messages": Dialect(
        "/v1/messages",
        lambda prompt, tokens: {"messages": _messages(prompt), "max_tokens": tokens},
        _block_delta,
        lambda events: events[-2]["usage"]["output_tokens"],
    ),
    "ollama": Dialect(
        "/api/chat",
        lambda prompt, tokens: {
            "messages": _messages(prompt),
            "options": {"num_predict": tokens, "temperature": 0},
        },
        lambda event: event["message"]["content"],
        lambda events: events[-1]["eval_count"],
    ),
}
OTHER_PROMPT = frozenset({"completions"})
"""Whose prompts pass no chat template, so that their texts are others."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of some streams: tokens a second, median TTFT in seconds, what was generated."""

    rate: float
    ttft: float
    texts: list[str]


@dataclass(slots=True)
class Row:
    """All rounds of one dialect at one number of streams."""

    samples: list[Sample] = field(default_factory=list)


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    tokens, rounds = (64, 3) if short else (256, 40)
    model = harness.make_model(folder / "model", seed=1)
    print(f"{tokens} tokens a stream, {rounds} rounds, medians", flush=True)
    rows = {(streams, name): Row() for streams in STREAMS for name in DIALECTS}
    with harness.bulkhead(folder / "b", {"tiny": model}) as server:
        server.warm_up("tiny")
        connections = client.connect(server.port, max(STREAMS))
        try:
            for number in range(-1, rounds):
                for streams in STREAMS:
                    prompts = [f"{i} sea {number}" for i in range(streams)]
                    samples = _round(connections[:streams], prompts, tokens, number)
                    if number >= 0:  # the first was for warming up
                        for name, sample in samples.items():
                            rows[streams, name].samples.append(sample)
        finally:
            for connection in connections:
                connection.close()
    _tell(report, rows)


def _round(
    connections: Sequence[Connection], prompts: Sequence[str], tokens: int, number: int
) -> dict[str, Sample]:
    names = list(DIALECTS)
    order = random.Random(number).sample(names, len(names))
    samples = {name: _sample(connections, DIALECTS[name], prompts, tokens) for name in order}
    alike = [samples[name].texts for name in names if name not in OTHER_PROMPT]
    if any(texts != alike[0] for texts in alike):
        raise Failed("the dialects gave different texts")
    return samples


def _sample(
    connections: Sequence[Connection], dialect: Dialect, prompts: Sequence[str], tokens: int
) -> Sample:
    exchanges = []
    for prompt in prompts:
        body = {"model": "tiny", "temperature": 0, "stream": True, **dialect.body(prompt, tokens)}
        if dialect.path == "/api/chat":
            del body["temperature"]
        exchanges.append(Exchange(client.post(dialect.path, body)))
    client.run_on(connections, exchanges, _DEADLINE)
    firsts, texts = [], []
    for exchange in exchanges:
        answer = exchange.answer()
        if answer.status != 200 or not answer.whole:
            raise Failed(f"{dialect.path}: {answer.status} {answer.body[-300:]!r}")
        events = [(e.at, json.loads(e.data)) for e in answer.events if e.data != b"[DONE]"]
        told = [(at, dialect.text(event)) for at, event in events]
        if (made := dialect.tokens([event for _, event in events])) != tokens:
            raise Failed(f"{dialect.path}: {made} tokens instead of {tokens}")
        firsts.append(next(at for at, text in told if text) - exchange.sent)
        texts.append("".join(text for _, text in told))
    seconds = max(e.ended for e in exchanges) - min(e.sent for e in exchanges)
    return Sample(tokens * len(prompts) / seconds, harness.median(firsts), texts)


def _tell(report: harness.Report, rows: Mapping[tuple[int, str], Row]) -> None:
    lines = []
    for (streams, name), row in rows.items():
        beside = rows[streams, CHAT].samples
        pairs = list(zip(row.samples, beside, strict=True))
        rate = harness.median([own.rate / chat.rate for own, chat in pairs])
        ttft = harness.median([own.ttft / chat.ttft for own, chat in pairs])
        figures = {
            "rate": harness.median([sample.rate for sample in row.samples]),
            "ttft_ms": harness.median([sample.ttft for sample in row.samples]) * 1000,
            "rate_ratio": rate,
            "ttft_ratio": ttft,
        }
        report.figures.setdefault(name, {})[streams] = figures
        lines.append(
            [
                f"{streams} x {name}",
                f"{figures['rate']:.0f}",
                f"{rate:.3f}",
                f"{figures['ttft_ms']:.1f}",
                f"{ttft:.3f}",
            ]
        )
    print(harness.table(["streams", "tok/s", "of chat", "TTFT, ms", "of chat"], lines))
    for streams, name in rows:
        figures = report.figures[name][streams]
        claim = f"{streams} x {name}: {figures['rate_ratio']:.3f} of chat's tok/s"
        report.bar(figures["rate_ratio"] >= 1 - BAR, claim, speed=True)
        claim = f"{streams} x {name}: {figures['ttft_ratio']:.3f} of chat's TTFT"
        report.bar(figures["ttft_ratio"] <= 1 + BAR, claim, speed=True)


if __name__ == "__main__":
    harness.run("dialects", (__doc__ or "").partition("\n")[0], bench)
