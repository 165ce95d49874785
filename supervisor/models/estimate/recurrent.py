"""Architectures with recurrent layers: linear attention, state spaces, short convolutions."""

from __future__ import annotations

from supervisor.models.estimate.facts import EstimateError, Facts
from supervisor.models.estimate.layers import Layer, full, kv, latent, layer_types


def delta_net(f: Facts) -> Layer:
    key_dim, value_dim = f.positive("linear_key_head_dim"), f.positive("linear_value_head_dim")
    keys = f.positive("linear_num_key_heads") * key_dim
    value_heads = f.positive("linear_num_value_heads")
    kernel = f.positive("linear_conv_kernel_dim", default=4)
    return Layer(
        state=(kernel - 1) * (2 * keys + value_heads * value_dim),
        state32=value_heads * value_dim * key_dim,
    )


def delta_hybrid(f: Facts) -> list[Layer]:
    interval = f.positive("full_attention_interval", default=4)
    linear, attention = delta_net(f), full(kv(f))
    return [linear if (i + 1) % interval else attention for i in range(f.layers())]


def olmo_hybrid(f: Facts) -> list[Layer]:
    types = layer_types(f, ("linear_attention",) * 3 + ("full_attention",))
    return [delta_net(f) if kind == "linear_attention" else full(kv(f)) for kind in types]


def kimi_linear(f: Facts) -> list[Layer]:
    linear = f.table("linear_attn_config")
    if linear is None:
        raise EstimateError("config.json: linear_attn_config is missing")
    width = linear.positive("num_heads") * linear.positive("head_dim")
    kernel = linear.positive("short_conv_kernel_size", default=4)
    delta = Layer(state=3 * (kernel - 1) * width, state32=width * linear.positive("head_dim"))
    near = set(linear.integers("kda_layers") or ())
    return [delta if i + 1 in near else full(latent(f)) for i in range(f.layers())]


def state_space(*, inner: int, groups: int, state: int, kernel: int) -> Layer:
    return Layer(state=(kernel - 1) * (inner + 2 * groups * state), state32=inner * state)


def granite(f: Facts) -> list[Layer]:
    types = layer_types(f, ("attention",))
    mamba = Layer()
    if "mamba" in types:
        heads = f.positive("mamba_n_heads")
        mamba = state_space(
            inner=heads * f.positive("mamba_d_head"),
            groups=f.positive("mamba_n_groups"),
            state=f.positive("mamba_d_state"),
            kernel=f.positive("mamba_d_conv"),
        )
    return [mamba if kind == "mamba" else full(kv(f)) for kind in types]


def falcon_h1(f: Facts) -> list[Layer]:
    """Both in each layer, side by side."""
    mamba = state_space(
        inner=f.positive("mamba_d_ssm", default=1536),
        groups=f.positive("mamba_n_groups", default=1),
        state=f.positive("mamba_d_state", default=128),
        kernel=f.positive("mamba_d_conv", default=4),
    )
    both = Layer(kv(f), state=mamba.state, state32=mamba.state32)
    return [both] * f.layers()


def nemotron_h(f: Facts) -> list[Layer]:
    """Layers of feed-forward alone keep nothing."""
    kinds = f.items("hybrid_override_pattern")
    kinds = kinds or f.items("layers_block_type") or f.items("layer_types")
    if kinds is None:
        raise EstimateError("config.json: hybrid_override_pattern is missing")
    heads = f.positive("mamba_num_heads")
    mamba = state_space(
        inner=heads * f.positive("mamba_head_dim"),
        groups=f.positive("n_groups"),
        state=f.positive("ssm_state_size"),
        kernel=f.positive("conv_kernel"),
    )
    each = dict.fromkeys(("M", "mamba", "linear_attention", "conv"), mamba)
    each |= dict.fromkeys(("*", "attention", "full_attention"), full(kv(f)))
    return [each[str(kind)] for kind in kinds if str(kind) in each]


def mamba2(f: Facts) -> list[Layer]:
    heads = f.positive("num_heads")
    layer = state_space(
        inner=heads * f.positive("head_dim"),
        groups=f.positive("n_groups"),
        state=f.positive("ssm_state_size", "state_size"),
        kernel=f.positive("conv_kernel"),
    )
    return [layer] * f.layers()


def mamba1(inner: int, state: int, kernel: int) -> Layer:
    return Layer(state=inner * (kernel - 1), scan=inner * state)


def mamba(f: Facts) -> list[Layer]:
    inner = f.positive("intermediate_size", "d_inner")
    state = f.positive("state_size", "d_state")
    return [mamba1(inner, state, f.positive("conv_kernel", "d_conv"))] * f.layers()


def jamba(f: Facts) -> list[Layer]:
    inner = f.positive("mamba_expand") * f.positive("hidden_size")
    mamba = mamba1(inner, f.positive("mamba_d_state"), f.positive("mamba_d_conv"))
    types = f.items("layers_block_type")
    if types is None:
        period, offset = f.positive("attn_layer_period"), f.integer("attn_layer_offset")
        types = ["attention" if i % period == offset else "mamba" for i in range(f.layers())]
    return [full(kv(f)) if kind == "attention" else mamba for kind in types]


def lfm2(f: Facts) -> list[Layer]:
    conv = Layer(state=(f.positive("conv_L_cache") - 1) * f.positive("hidden_size"))
    attention = f.integers("full_attn_idxs")
    if attention is None:
        types = f.items("layer_types") or ()
        attention = [i for i, kind in enumerate(types) if kind == "full_attention"]
    return [full(kv(f)) if i in attention else conv for i in range(f.layers())]
