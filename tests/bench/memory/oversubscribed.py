"""A batch whose KV cache is twice what the budget leaves for it, on three architectures: every
answer is what it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench import client, harness
from tests.bench.memory import models
from tests.bench.memory.sampler import sampling
from tests.bench.memory.scene import DEADLINE, Findings, mb, one_by_one, prompt, run, texts

ROOM_TOKENS = 2048
"""What every load is charged for."""

KINDS: dict[str, dict[str, Any]] = {
    "llama": {**models.FAT, "num_hidden_layers": 2},
    # Two layers in three see the last 128 tokens alone.
    "gemma3_text": {
        **models.FAT,
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 512,
        "sliding_window": 128,
        "sliding_window_pattern": 3,
    },
    # State space layers around two of attention.
    "granitemoehybrid": {
        "hidden_size": 512,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "attention", "attention", "mamba"],
        "mamba_d_head": 128,
        "max_position_embeddings": 65_536,
    },
}
"""64, 32 and 8 KiB of KV cache a token."""


def play(findings: Findings, folder: Path, short: bool) -> None:
    """Each architecture by itself."""
    rows, tokens, words = (5, 240, 4) if short else (12, 520, 48)
    for kind in ("gemma3_text",) if short else KINDS:
        findings.scene(f"oversubscribed, {kind}")
        _play(findings, folder / kind, kind, rows, tokens, words)


def _play(findings: Findings, folder: Path, kind: str, rows: int, tokens: int, words: int) -> None:
    model = models.make(folder / "m", kind, KINDS[kind])
    # Of very different lengths, in which no one is another's beginning.
    lengths = [tokens if row % 3 else tokens // 4 for row in range(rows)]
    requests = [
        client.chat("m", prompt(row, length), words + row, ignore_eos=True, seed=row)
        for row, length in enumerate(lengths)
    ]
    # In one state directory, so that the second server knows what the model takes.
    with harness.bulkhead(folder / "b", {"m": model}) as server:
        server.warm_up("m")
        base = int(server.health()["cached_models"][0]["charge_bytes"])
        alone = one_by_one(server.port, requests)
    need = sum(models.cache_bytes(model, length + words + 40) for length in lengths)
    budget = max(base, base - models.cache_bytes(model, ROOM_TOKENS) + need // 2)
    there = budget - base + models.cache_bytes(model, ROOM_TOKENS)
    findings.bar("KV wanted", mb(need), f"> {mb(there)}", need > there, need)
    settings = f'[memory]\nbudget = "{budget // 1000}KB"\n'
    with harness.bulkhead(folder / "b", {"m": model}, settings=settings) as server:
        server.warm_up("m")
        with sampling(folder / "s", server.port) as samples:
            crowd = client.exchange_all(server.port, requests, DEADLINE)
    refused = sum(each.answer().status != 200 for each in crowd)
    findings.bar("refused", f"{refused} of {rows}", "0", refused == 0, refused)
    equal = sum(one == other for one, other in zip(texts(crowd), alone, strict=True))
    findings.bar("answers as alone", f"{equal} of {rows}", "all", equal == rows, equal)
    findings.bar(
        "different answers", str(len(set(alone))), "all", len(set(alone)) == rows, len(set(alone))
    )
    findings.invariants(kind, samples)


if __name__ == "__main__":
    run("oversubscribed", __doc__, play)
