"""What streams notice of each other's prompts: a long one beside four that decode, and the reverse.

One run, Bulkhead and mlx_lm.server alternating; the same tiny model, prompts that no cache knows.
A long prompt comes while four streams decode: the longest time between two of their tokens until
the prompt's first, beside the median before it came; and how long the prompt takes, beside alone.
A short prompt comes behind a long one. Times between the tokens of 8 and of 32 streams. And a
request of one choice beside one of 32, which Bulkhead alone serves. Times are those of the kernel's
stamps on the client's sockets.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench import client, harness
from tests.bench.answers import Failed
from tests.bench.client import Exchange, Load, Stamped

CONCURRENCY = 32
NEIGHBOURS = 4
CHOICES = 32
CONTEXT = 20_000
GAP_SECONDS, GAP_STEPS = 0.15, 3
"""The bar on a neighbour's longest gap: the larger of the two, in seconds and in its own steps."""
LATER = 1.15
"""Of its time alone, a long prompt's beside others."""
OURS, THEIRS = "Bulkhead", "mlx_lm.server"
_DEADLINE = 600.0
_ENDLESS_TOKENS = 15_000
"""More than a stream gets to, and within the context."""

Figures = dict[str, list[float]]


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    long, tokens, rounds = (600, 16, 1) if short else (16_000, 512, 3)
    model = harness.make_model(folder / "model", 1, CONTEXT)
    print(f"a prompt of {long} tokens, {rounds} rounds, medians", flush=True)
    figures: dict[str, Figures] = {OURS: defaultdict(list), THEIRS: defaultdict(list)}
    with ExitStack() as stack:
        server = stack.enter_context(harness.bulkhead(folder / "b", {"tiny": model}))
        port = stack.enter_context(harness.mlx_lm_server(folder / "m", model, CONCURRENCY))
        clients = {
            OURS: partial(_Client, server.port, "tiny", {"ignore_eos": True}),
            THEIRS: partial(_Client, port, "default_model", {}),
        }
        for number in range(0 if short else -1, rounds):  # round -1 is not counted
            for name, make in clients.items():
                size = 300 if number < 0 else long
                seen = _round(make, f"{number} {name}", size, tokens, ours=name == OURS)
                for figure, values in seen.items() if number >= 0 else ():
                    figures[name][figure] += values
    _tell(report, figures)


def _round(
    make: Callable[[], _Client], salt: str, long: int, tokens: int, *, ours: bool
) -> Figures:
    """One contestant's figures, in seconds."""
    seen: Figures = {}
    with make() as alone:
        seen["long alone"] = [alone.first(alone.begin(_text(f"alone {salt}", long), 2))]
    with make() as both:
        streams = [both.begin(f"{i} {salt}", _ENDLESS_TOKENS) for i in range(NEIGHBOURS)]
        both.until(lambda: all(len(each.pieces) > 20 for each in streams))
        prompt = both.begin(_text(f"beside {salt}", long), 2)
        seen["long beside"] = [both.first(prompt)]
        begun, ended = prompt.sent, prompt.sent + seen["long beside"][0]
        both.leave(streams)
        before = [gap for each in streams for at, gap in _gaps(each) if at <= begun]
        during = [gap for each in streams for at, gap in _gaps(each) if begun < at <= ended]
        seen["own step"], seen["longest gap"] = [harness.median(before)], [max(during)]
    with make() as behind:
        first = behind.begin(_text(f"first {salt}", long), 2)
        begun = time.monotonic()
        behind.until(lambda: time.monotonic() > begun + seen["long alone"][0] / 10)
        seen["short behind long"] = [behind.first(behind.begin(f"short {salt}", 2))]
        behind.leave([first])
    texts: list[list[str]] = []
    for count in (8, 32):
        with make() as many:
            crowd = [many.begin(f"{i} {salt}", tokens) for i in range(count)]
            many.until_ended(crowd)
            texts.append([each.answer().text() for each in crowd[:8]])
            gaps = [gap for each in crowd for _, gap in _gaps(each)]
            seen[f"p99 of {count}"] = [harness.quantile(gaps, 0.99)]
    if ours and texts[0] != texts[1]:
        raise Failed("the texts of 8 streams are others among 32")
    if ours:
        with make() as beside:
            all_choices = beside.begin(f"all {salt}", tokens, n=CHOICES)
            beside.until(lambda: len(all_choices.pieces) > 1)
            seen["one beside many"] = [beside.first(beside.begin(f"one {salt}", 2))]
            beside.until_ended([all_choices])
            seen["the many"] = [all_choices.ended - all_choices.sent]
    return seen


def _text(salt: str, tokens: int) -> str:
    """A prompt of about so many tokens, of which a letter is one."""
    return (salt + " ").ljust(tokens, "x")


def _gaps(exchange: Exchange) -> list[tuple[float, float]]:
    """(when it ended, seconds) of every time between two of a stream's tokens."""
    times = [event.at for event in exchange.answer().contents]
    return [(after, after - before) for before, after in itertools.pairwise(times)]


class _Client:
    """Streams of one server, on this thread; what still runs at the end is left."""

    def __init__(self, port: int, model: str, more: dict[str, object]) -> None:
        self._port, self._model, self._more = port, model, more
        self._load = Load()
        self._lines: list[Stamped] = []

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._load.give_up()
        for line in self._lines:
            line.close()

    def begin(self, content: str, tokens: int, **more: object) -> Exchange:
        """Send a request."""
        line = Stamped(self._port)
        self._lines.append(line)
        request = client.chat(self._model, content, tokens, **self._more, **more)
        exchange = Exchange(request)
        self._load.start(line, exchange)
        return exchange

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _DEADLINE
        while not holds():
            self._load.step(0.05)
            if time.monotonic() > deadline:
                raise Failed("no end before the deadline")

    def until_ended(self, exchanges: list[Exchange]) -> None:
        self.until(lambda: all(each.ended for each in exchanges))

    def first(self, exchange: Exchange) -> float:
        """Wait for the whole of a short answer: seconds to its first token."""
        self.until_ended([exchange])
        answer = exchange.answer()
        if answer.status != 200 or not answer.done:
            raise Failed(f"a bad answer: {answer.status} {answer.body[-300:]!r}")
        return exchange.first_content()

    def leave(self, exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            self._load.leave(exchange)


def _tell(report: harness.Report, figures: dict[str, Figures]) -> None:
    middle = {
        name: {figure: harness.median(values) for figure, values in each.items()}
        for name, each in figures.items()
    }
    ours, theirs = middle[OURS], middle[THEIRS]
    rows = []
    for figure in ours:
        cells = [f"{e[figure] * 1000:.1f}" if figure in e else "" for e in middle.values()]
        rows.append([f"{figure}, ms", *cells])
    print(harness.table(["", *middle], rows))

    def ratio(over: str, under: str) -> float:
        """The median of the rounds' own."""
        pairs = zip(figures[OURS][over], figures[OURS][under], strict=True)
        return harness.median([one / other for one, other in pairs])

    gap, bound = ours["longest gap"], max(GAP_SECONDS, GAP_STEPS * ours["own step"])
    later = ratio("long beside", "long alone")
    for holds, claim in (
        (gap <= bound, f"longest gap {gap * 1000:.0f} ms <= {bound * 1000:.0f} ms"),
        (gap <= theirs["longest gap"] / 2, "at most half of mlx_lm.server's longest gap"),
        (later <= LATER, f"beside others a long prompt takes {later:.2f} of alone, <= {LATER}"),
        (
            ours["short behind long"] <= theirs["short behind long"],
            "a short prompt behind a long one begins no later than in mlx_lm.server",
        ),
        *(
            (ours[each] <= theirs[each], f"{each} streams no longer than mlx_lm.server's")
            for each in ("p99 of 8", "p99 of 32")
        ),
    ):
        report.bar(holds, claim, speed=True)
    report.figures = {name: dict(each) for name, each in figures.items()}


if __name__ == "__main__":
    harness.run("fairness", (__doc__ or "").partition("\n")[0], bench)
