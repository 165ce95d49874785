"""Two models with fat KV caches are asked in turn, under a budget that holds the weights of both
and 1 GB: neither has to go for the other."""

from __future__ import annotations

from pathlib import Path

from supervisor.models.estimate import estimate
from tests.bench import client, harness
from tests.bench.memory import models
from tests.bench.memory.sampler import sampling
from tests.bench.memory.scene import DEADLINE, Findings, run, texts

SPARE = 1_000_000_000
_SETTINGS = '[memory]\nbudget = "{}MB"\nmin_residency = 0\n'
"""No minimum residency: where they don't fit together, every request makes the other one go."""


def play(findings: Findings, folder: Path, short: bool) -> None:
    """One request a switch."""
    findings.scene("two models in turn")
    switches = 4 if short else 100
    made = {
        name: models.make(folder / name, "llama", models.HALF_FAT, seed)
        for seed, name in enumerate(("one", "two"))
    }
    budget = sum(estimate(each).loaded for each in made.values()) + SPARE
    settings = _SETTINGS.format(-(-budget // 10**6))
    with harness.bulkhead(folder / "b", made, settings=settings) as server:
        generations = dict.fromkeys(made, 0)
        with sampling(folder / "s", server.port) as samples:
            for switch in range(switches + 1):
                name = ("one", "two")[switch % 2]
                request = client.chat(name, f"{switch} turns", 4, ignore_eos=True)
                (exchange,) = client.exchange_all(server.port, [request], DEADLINE)
                texts([exchange])
                generations[name] = int(exchange.worker.partition("#")[2])
    reloads = sum(generations.values()) - len(made)
    findings.bar("reloads", f"{reloads} in {switches} switches", "0", reloads == 0, reloads)
    findings.invariants("two models", samples)


if __name__ == "__main__":
    run("alternating", __doc__, play)
