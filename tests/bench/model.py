"""A tiny Llama for benchmarks, made by a process of its own:
`python -m tests.bench.model FOLDER SEED [CONTEXT]`.

Benchmarks need streams of a known length from servers that cannot ignore the end of sequence, and
one character a token. The rows of the (tied) embedding that belong to anything but printable ASCII
are therefore zero: their logits are zero, and greedy decoding always finds something above.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx

from tests.helpers.tiny_llama import Shape, make_llama

_EMBEDDING = "model.embed_tokens.weight"


def make(folder: Path, seed: int, context: int = 4096, heads: int = 4) -> None:
    """Write the model to `folder`. With one head it has one layer, too: where long prompts matter
    and not what is done with them, they take a tenth of the time."""
    layers, hidden = (2, 128) if heads > 1 else (1, 64)
    shape = Shape(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        intermediate_size=256,
        head_dim=hidden // heads,
        max_position_embeddings=context,
    )
    make_llama(folder, shape=shape, seed=seed)
    file = folder / "model.safetensors"
    loaded = mx.load(str(file))
    assert isinstance(loaded, dict)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    shown = [0.0] * loaded[_EMBEDDING].shape[0]
    for token, number in vocabulary.items():
        shown[number] = float(len(token) == 1 and "!" <= token <= "~")
    loaded[_EMBEDDING] = loaded[_EMBEDDING] * mx.array(shown)[:, None]
    mx.save_safetensors(str(file), loaded, metadata={"format": "mlx"})


if __name__ == "__main__":
    make(Path(sys.argv[1]), *map(int, sys.argv[2:]))
