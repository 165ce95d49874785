"""Models whose KV cache weighs more than they do, made by a process of its own:
`python -m tests.bench.memory.models FOLDER ARCHITECTURE SEED CONFIG`, the last as JSON.

What they say is random, but with greedy decoding the same each time. One byte is one token.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from supervisor.models.estimate import estimate
from tests.bench import harness

_MAKE_SECONDS = 120.0

FAT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 512,
    "max_position_embeddings": 65_536,
}
"""128 KiB of KV cache a token, as much as a Llama-3-8B's, over 18 MB of weights. Attention costs
what its cache weighs, so prompts are short."""

HALF_FAT: dict[str, Any] = {**FAT, "num_key_value_heads": 4}
"""64 KiB a token."""


def make(folder: Path, architecture: str, config: dict[str, Any], seed: int = 1) -> Path:
    """Write such a model to `folder`, and return it: one of `tiny_llama.ARCHITECTURES`, with what
    `config` has in place of its own."""
    encoded = json.dumps(config)
    subprocess.run(
        [sys.executable, "-m", __name__, str(folder), architecture, str(seed), encoded],
        cwd=harness.ROOT,
        check=True,
        timeout=_MAKE_SECONDS,
    )
    return folder


def cache_bytes(folder: Path, tokens: int) -> int:
    """What one sequence of so many tokens takes of KV cache, rounded up to 256 of them."""
    return estimate(folder).kv(tokens)


if __name__ == "__main__":
    from tests.helpers.tiny_llama import make_model

    made = json.loads(sys.argv[4])
    make_model(Path(sys.argv[1]), sys.argv[2], seed=int(sys.argv[3]), more=made)
