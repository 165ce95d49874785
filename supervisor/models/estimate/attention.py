"""Architectures of attention alone: full, sliding, chunked, compressed, shared between layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from supervisor.models.estimate.facts import Facts
from supervisor.models.estimate.layers import (
    Layer,
    full,
    heads_and_dim,
    kv,
    latent,
    layer_types,
    sliding,
)

Family = Callable[[Facts], list[Layer]]


def typed(f: Facts, default: Sequence[str] = ("full_attention",)) -> list[Layer]:
    """`layer_types` tells each layer; `default` repeats where the config is silent."""
    types = layer_types(f, default)
    window = f.positive("sliding_window") if "sliding_attention" in types else 0
    each = {"full_attention": full(kv(f)), "sliding_attention": sliding(kv(f), window)}
    return [each.get(kind, full(kv(f))) for kind in types]


def alternating(f: Facts) -> list[Layer]:
    return typed(f, ("sliding_attention", "full_attention"))


def one_in_four(f: Facts) -> list[Layer]:
    return typed(f, ("sliding_attention",) * 3 + ("full_attention",))


def every(pattern: int, window: int, *, kv_heads: int, head_dim: int) -> Family:
    """Every `sliding_window_pattern`th layer sees everything; mlx-lm ignores `layer_types` here.

    The arguments are mlx-lm's defaults: published configs leave out what equals them.
    """

    def layers(f: Facts) -> list[Layer]:
        every = f.positive("sliding_window_pattern", default=pattern)
        heads = f.positive("num_key_value_heads", default=kv_heads)
        elements = 2 * heads * f.positive("head_dim", default=head_dim)
        near = sliding(elements, f.positive("sliding_window", default=window))
        return [full(elements) if i % every == every - 1 else near for i in range(f.layers())]

    return layers


def lettered(f: Facts) -> list[Layer]:
    """exaone4: "LLLG" repeated; no pattern, no windows."""
    pattern = f.items("sliding_window_pattern") or "G"
    near = sliding(kv(f), f.positive("sliding_window", default=1))
    return [near if pattern[i % len(pattern)] == "L" else full(kv(f)) for i in range(f.layers())]


def gemma3n(f: Facts) -> list[Layer]:
    return typed(f)[: f.layers() - f.integer("num_kv_shared_layers", default=0)]


def gemma4(f: Facts) -> list[Layer]:
    count = f.positive("num_hidden_layers", default=35)
    pattern = f.positive("sliding_window_pattern", default=5)
    types = layer_types(f, ("sliding_attention",) * (pattern - 1) + ("full_attention",))[:count]
    kv_heads = f.positive("num_key_value_heads", default=1)
    far_heads = kv_heads
    if f.flag("attention_k_eq_v"):
        far_heads = f.positive("num_global_key_value_heads", default=kv_heads)
    near_dim = f.positive("head_dim", default=256)
    far_dim = f.integer("global_head_dim", default=512) or near_dim
    near = sliding(2 * kv_heads * near_dim, f.positive("sliding_window", default=512))
    far = full(2 * far_heads * far_dim)
    kept = count - f.integer("num_kv_shared_layers", default=20)
    return [far if kind == "full_attention" else near for kind in types[:kept]]


def mla(f: Facts) -> list[Layer]:
    return [full(latent(f))] * f.layers()


def mla_indexed(f: Facts) -> list[Layer]:
    """The indexer's values are unused, but allocated as large as its keys."""
    index = 2 * f.positive("index_head_dim", default=128)
    return [Layer(latent(f) + index)] * f.layers()


def mla_double(f: Facts) -> list[Layer]:
    """longcat: two attentions in each layer."""
    return [Layer(2 * latent(f))] * f.layers()


def mla_expanded(f: Facts) -> list[Layer]:
    heads = f.positive("num_attention_heads", default=32)
    keys = f.integer("qk_nope_head_dim", default=128) + f.integer("qk_rope_head_dim", default=64)
    return [full(heads * (keys + f.positive("v_head_dim", default=128)))] * f.layers()


def minicpm3(f: Facts) -> list[Layer]:
    heads = f.positive("num_attention_heads")
    keys = f.integer("qk_nope_head_dim") + f.integer("qk_rope_head_dim")
    return [full(heads * (keys + f.positive("hidden_size") // heads))] * f.layers()


def llama4(f: Facts) -> list[Layer]:
    """Three layers in four attend within chunks. They keep one, and grow by 256 before they cut."""
    chunk = sliding(kv(f), f.positive("attention_chunk_size") + 256)
    return [chunk if (i + 1) % 4 else full(kv(f)) for i in range(f.layers())]


def mimo_v2(f: Facts) -> list[Layer]:
    far = f.positive("num_key_value_heads") * (f.positive("head_dim") + f.positive("v_head_dim"))
    near = f.positive("swa_num_key_value_heads") * (
        f.positive("swa_head_dim") + f.positive("swa_v_head_dim")
    )
    window = f.positive("sliding_window_size")
    pattern = f.integers("hybrid_layer_pattern") or ()
    return [sliding(near, window) if i == 1 else full(far) for i in pattern]


def step3p5(f: Facts) -> list[Layer]:
    dim = f.positive("head_dim")
    other = f.table("attention_other_setting") or f
    near = sliding(2 * other.positive("num_attention_groups") * dim, f.positive("sliding_window"))
    far = full(2 * f.positive("num_attention_groups") * dim)
    types = layer_types(f, ("sliding_attention", "full_attention"))[: f.layers()]
    return [near if kind == "sliding_attention" else far for kind in types]


def afm7(f: Facts) -> list[Layer]:
    """The last layers reuse the last cache but one."""
    return [full(kv(f))] * (f.layers() - f.integer("num_kv_reuse_layers"))


def openelm(f: Facts) -> list[Layer]:
    dim = f.positive("head_dim")
    return [full(2 * heads * dim) for heads in f.integers("num_kv_heads") or ()]


def nemotron_nas(f: Facts) -> list[Layer]:
    """Of each block its own number of KV heads, or no attention at all."""
    heads = f.positive("num_attention_heads")
    dim = f.positive("hidden_size") // heads
    layers = []
    for block in f.items("block_configs") or ():
        attention = Facts(block).table("attention") if isinstance(block, dict) else None
        if attention and not (attention.flag("no_op") or attention.flag("replace_with_linear")):
            layers.append(full(2 * (heads // attention.positive("n_heads_in_group")) * dim))
    return layers


def dbrx(f: Facts) -> list[Layer]:
    attention = f.table("attn_config") or f
    dim = f.positive("d_model") // f.positive("n_heads")
    return [full(2 * attention.positive("kv_n_heads") * dim)] * f.layers()


def gpt_bigcode(f: Facts) -> list[Layer]:
    heads, _, dim = heads_and_dim(f)
    return [full(2 * (1 if f.flag("multi_query", True) else heads) * dim)] * f.layers()
