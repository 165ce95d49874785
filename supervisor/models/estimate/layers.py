"""How mlx-lm caches each layer of a model, by architecture: what `make_cache` of its modules says.

Everything counts elements of one sequence; `estimate.model` turns them into bytes. The formulas
are those of mlx-lm 0.32:

| layer | kept |
|---|---|
| full attention | per token 2 · kv_heads · head_dim |
| sliding window | the same for the last `window` tokens |
| MLA, compressed | per token kv_lora_rank + qk_rope_head_dim (deepseek_v3 and its kin) |
| MLA, expanded | per token heads · (qk_nope + qk_rope + v) (deepseek_v2, minicpm3, youtu_llm) |
| sparse MLA | compressed, and 2 · index_head_dim per token for the indexer |
| gated delta net | (kernel - 1)·(2·k_heads·k_dim + v_heads·v_dim), in float32 v_heads·v_dim·k_dim |
| Mamba 2 | (kernel - 1) · (heads·dim + 2·groups·state), and in float32 heads·dim·state |
| Mamba 1 | inner · (kernel - 1), and inner · state |
| short convolution | (kernel - 1) · hidden |
| KV-shared | nothing: they read another layer's |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.models.estimate.facts import Facts


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps of one sequence, in elements.

    `per_token` for each token, or for the last `window` of them; `state` whatever the length, in
    the activations' type; `state32` in float32; `scan` in the type that Mamba 1 computes in.
    """

    per_token: int = 0
    window: int | None = None
    state: int = 0
    state32: int = 0
    scan: int = 0


def full(elements: int) -> Layer:
    return Layer(elements)


def sliding(elements: int, window: int) -> Layer:
    return Layer(elements, window)


def heads_and_dim(f: Facts) -> tuple[int, int, int]:
    """Attention heads, KV heads and the width of each."""
    heads = f.positive("num_attention_heads", "n_heads", "n_head", "num_heads")
    kv_heads = f.positive("num_key_value_heads", "num_kv_heads", "n_kv_heads", default=heads)
    hidden = f.integer("hidden_size", "n_embd", "d_model", "hidden_dim", "model_dim", default=0)
    return heads, kv_heads, f.positive("head_dim", default=hidden // heads)


def kv(f: Facts) -> int:
    """Elements per token of plain attention."""
    _, kv_heads, head_dim = heads_and_dim(f)
    return 2 * kv_heads * head_dim


def dense(f: Facts) -> list[Layer]:
    return [full(kv(f))] * f.layers()


def layer_types(f: Facts, default: Sequence[str]) -> list[str]:
    given = f.items("layer_types")
    if given is not None:
        return [str(kind) for kind in given]
    count = f.layers()
    return [default[i % len(default)] for i in range(count)]


def latent(f: Facts) -> int:
    """Elements per token of compressed MLA; the heads share them."""
    return f.positive("kv_lora_rank", default=512) + f.integer("qk_rope_head_dim", default=64)
