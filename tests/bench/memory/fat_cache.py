"""Long prompts in turn, with a fat KV cache, every second client gone amid its prefill: the death
of an `mlx_lm.server` on a Mac with 48 GB, scaled down, and `mlx_lm.server` beside it.

There ten cached prompts held 26 GB of cache, more than half of the machine. Here ten hold as much
in proportion to the budget. Needs /proc.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.bench import client, harness
from tests.bench.client import Exchange, Load
from tests.bench.memory import models
from tests.bench.memory.sampler import Samples, sampling
from tests.bench.memory.scene import DEADLINE, Findings, mb, prompt, run, texts

BUDGET = 1_200_000_000


def play(findings: Findings, folder: Path, short: bool) -> None:
    """Bulkhead, then the other; in short Bulkhead alone, for all bars are its own."""
    prompts, tokens = (3, 120) if short else (20, 640)
    findings.scene("fat KV, clients that leave")
    model = models.make(folder / "m", "llama", models.FAT)
    cache = models.cache_bytes(model, tokens + 40)
    wanted = f"{prompts} x {mb(cache)}"
    findings.note("KV of the prompts", wanted, prompts * cache)
    settings = f'[memory]\nbudget = "{BUDGET // 10**6}MB"\n'
    with harness.bulkhead(folder / "b", {"m": model}, settings=settings) as server:
        server.warm_up("m")
        with sampling(folder / "s", server.port) as samples:
            left = _in_turn(server.port, "m", prompts, tokens)
        deaths = sum(each["deaths"] for each in server.health()["models"])
    findings.note("clients that left", str(left), left)
    findings.bar("deaths", str(deaths), "0", deaths == 0, deaths)
    ours = _growth(samples, max(samples.held("m#1")))
    findings.bar(
        "Bulkhead's worker at most",
        mb(ours[1]),
        f"<= {mb(BUDGET)}",
        ours[1] <= BUDGET,
        ours[1],
    )
    findings.invariants("Bulkhead", samples)
    if not short:
        _beside(findings, folder, model, prompts, tokens, ours)


def _beside(
    findings: Findings,
    folder: Path,
    model: Path,
    prompts: int,
    tokens: int,
    ours: tuple[int, int],
) -> None:
    """The same with the other, which has no bar."""
    with harness.mlx_lm_server(folder / "t", model, concurrency=8) as port:
        pid = harness.listener(port)
        warm = client.chat(str(model), "warm up", 8)
        texts(client.exchange_all(port, [warm], DEADLINE))
        with sampling(folder / "s", 0, pid) as samples:
            _in_turn(port, str(model), prompts, tokens)
    theirs = _growth(samples, max(samples.held(str(pid))))
    findings.note("mlx_lm.server", f"{mb(theirs[0])} before, {mb(theirs[1])} at most", list(theirs))
    findings.note(
        "growth, Bulkhead and mlx_lm.server",
        f"{mb(ours[1] - ours[0])} and {mb(theirs[1] - theirs[0])}",
    )


def _growth(samples: Samples, highest: int) -> tuple[int, int]:
    """Bytes at the beginning, and at most."""
    return samples.footprints[0].size, highest


def _in_turn(port: int, model: str, prompts: int, tokens: int) -> int:
    """Ask one after the other; every second client leaves in the middle of what the last prefill
    took. How many have."""
    left, took = 0, 0.0
    for number in range(prompts):
        exchange = Exchange(client.chat(model, prompt(number, tokens), 4))
        (connection,) = client.connect(port, 1)
        load = Load()
        begun = time.monotonic()
        load.start(connection, exchange)
        leaves = number % 2 == 1
        end = begun + (took / 2 if leaves else DEADLINE)
        while load.running and (rest := end - time.monotonic()) > 0:
            load.step(rest)
        if leaves and load.running:
            load.leave(exchange)
            left += 1
        elif not leaves:
            texts([exchange])
            took = time.monotonic() - begun
        connection.close()
    return left


if __name__ == "__main__":
    run("fat_cache", __doc__, play)
