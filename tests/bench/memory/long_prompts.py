"""16 prompts of 8,000 tokens at once, on a real tiny Llama: what the worker holds beside its
charge."""

from __future__ import annotations

from pathlib import Path

from tests.bench import client, harness
from tests.bench.memory import models
from tests.bench.memory.sampler import sampling
from tests.bench.memory.scene import DEADLINE, Findings, prompt, run, texts


def play(findings: Findings, folder: Path, short: bool) -> None:
    """All at once."""
    prompts, tokens = (8, 600) if short else (16, 8000)
    findings.scene(f"{prompts} prompts of {tokens:,} tokens")
    model = models.make(folder / "m", "llama", {"max_position_embeddings": 16_384})
    with harness.bulkhead(folder / "b", {"m": model}) as server:
        server.warm_up("m")
        with sampling(folder / "s", server.port) as samples:
            requests = [
                client.chat("m", prompt(number, tokens), 16, ignore_eos=True)
                for number in range(prompts)
            ]
            texts(client.exchange_all(server.port, requests, DEADLINE))
    findings.invariants("tiny Llama", samples)


if __name__ == "__main__":
    run("long_prompts", __doc__, play)
