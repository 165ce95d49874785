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
| gated delta net | (kernel - 1) · (2·k_heads·k_dim + v_heads·v_dim), and in float32 v_heads·v_dim·k_dim |
| Mamba 2 | (kernel - 1) · (heads·dim + 2·groups·state), and in float32 heads·dim·state |
| Mamba 1 | inner · (kernel - 1), and inner · state |
| short convolution | (kernel - 1) · hidden |
| KV-shared | nothing: they read another layer's |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from supervisor.estimate.facts import EstimateError, Facts


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps of one sequence, in elements.

    `per_token` for each token, or for the last `window` of them; `state` whatever the length, in
    the activations' type; `state32` in float32; `scan` in the type that Mamba 1 computes in.
    `quantizable`: whether mlx-lm can quantize this cache; of those it has, the plain one alone.
    """

    per_token: int = 0
    window: int | None = None
    state: int = 0
    state32: int = 0
    scan: int = 0
    quantizable: bool = False


def full(elements: int) -> Layer:
    return Layer(elements, quantizable=True)


def sliding(elements: int, window: int) -> Layer:
    return Layer(elements, window)


Family = Callable[[Facts], list[Layer]]


def layers_of(config: Facts) -> tuple[list[Layer], bool]:
    """The layers of the model that `config` describes, and whether its architecture is known.

    One that is not is taken for full attention throughout, which is what mlx-lm does itself
    without `make_cache`. Raises EstimateError when the config lacks what the formula needs.
    """
    name = architecture(config)
    family = FAMILIES.get(name)
    text = config if name in _FLAT else config.merged("text_config")
    return (family or dense)(text), family is not None


def architecture(config: Facts) -> str:
    """The module of mlx-lm that serves this model."""
    name = config.text("model_type")
    return _RENAMED.get(name, name)


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


def _typed(f: Facts, default: Sequence[str] = ("full_attention",)) -> list[Layer]:
    """`layer_types` tells each layer; `default` repeats where the config is silent."""
    types = _types(f, default)
    window = f.positive("sliding_window") if "sliding_attention" in types else 0
    each = {"full_attention": full(kv(f)), "sliding_attention": sliding(kv(f), window)}
    return [each.get(kind, full(kv(f))) for kind in types]


def _types(f: Facts, default: Sequence[str]) -> list[str]:
    given = f.items("layer_types")
    if given is not None:
        return [str(kind) for kind in given]
    count = f.layers()
    return [default[i % len(default)] for i in range(count)]


def _alternating(f: Facts) -> list[Layer]:
    return _typed(f, ("sliding_attention", "full_attention"))


def _one_in_four(f: Facts) -> list[Layer]:
    return _typed(f, ("sliding_attention",) * 3 + ("full_attention",))


def _every(default_pattern: int, default_window: int) -> Family:
    """Every `sliding_window_pattern`th layer sees everything. mlx-lm ignores `layer_types` here."""

    def layers(f: Facts) -> list[Layer]:
        pattern = f.positive("sliding_window_pattern", default=default_pattern)
        near = sliding(kv(f), f.positive("sliding_window", default=default_window))
        far = full(kv(f))
        return [far if i % pattern == pattern - 1 else near for i in range(f.layers())]

    return layers


def _lettered(f: Facts) -> list[Layer]:
    """exaone4: "LLLG" repeated; no pattern, no windows."""
    pattern = f.items("sliding_window_pattern") or "G"
    near = sliding(kv(f), f.positive("sliding_window", default=1))
    return [near if pattern[i % len(pattern)] == "L" else full(kv(f)) for i in range(f.layers())]


def _gemma3n(f: Facts) -> list[Layer]:
    return _typed(f)[: f.layers() - f.integer("num_kv_shared_layers", default=0)]


def _gemma4(f: Facts) -> list[Layer]:
    count = f.positive("num_hidden_layers", default=35)
    pattern = f.positive("sliding_window_pattern", default=5)
    types = _types(f, ("sliding_attention",) * (pattern - 1) + ("full_attention",))[:count]
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


def latent(f: Facts) -> int:
    """Elements per token of compressed MLA; the heads share them."""
    return f.positive("kv_lora_rank", default=512) + f.integer("qk_rope_head_dim", default=64)


def _mla(f: Facts) -> list[Layer]:
    return [full(latent(f))] * f.layers()


def _mla_indexed(f: Facts) -> list[Layer]:
    """The indexer's values are unused, but allocated as large as its keys."""
    index = 2 * f.positive("index_head_dim", default=128)
    return [Layer(latent(f) + index)] * f.layers()


def _mla_double(f: Facts) -> list[Layer]:
    """longcat: two attentions in each layer."""
    return [Layer(2 * latent(f))] * f.layers()


def _mla_expanded(f: Facts) -> list[Layer]:
    heads = f.positive("num_attention_heads", default=32)
    keys = f.integer("qk_nope_head_dim", default=128) + f.integer("qk_rope_head_dim", default=64)
    return [full(heads * (keys + f.positive("v_head_dim", default=128)))] * f.layers()


def _minicpm3(f: Facts) -> list[Layer]:
    heads = f.positive("num_attention_heads")
    keys = f.integer("qk_nope_head_dim") + f.integer("qk_rope_head_dim")
    return [full(heads * (keys + f.positive("hidden_size") // heads))] * f.layers()


def delta_net(f: Facts) -> Layer:
    key_dim, value_dim = f.positive("linear_key_head_dim"), f.positive("linear_value_head_dim")
    keys = f.positive("linear_num_key_heads") * key_dim
    value_heads = f.positive("linear_num_value_heads")
    kernel = f.positive("linear_conv_kernel_dim", default=4)
    return Layer(
        state=(kernel - 1) * (2 * keys + value_heads * value_dim),
        state32=value_heads * value_dim * key_dim,
    )


def _delta_hybrid(f: Facts) -> list[Layer]:
    interval = f.positive("full_attention_interval", default=4)
    linear, attention = delta_net(f), full(kv(f))
    return [linear if (i + 1) % interval else attention for i in range(f.layers())]


def _olmo_hybrid(f: Facts) -> list[Layer]:
    types = _types(f, ("linear_attention",) * 3 + ("full_attention",))
    return [delta_net(f) if kind == "linear_attention" else full(kv(f)) for kind in types]


def _kimi_linear(f: Facts) -> list[Layer]:
    linear = f.table("linear_attn_config")
    if linear is None:
        raise EstimateError("config.json: linear_attn_config is missing")
    width = linear.positive("num_heads") * linear.positive("head_dim")
    kernel = linear.positive("short_conv_kernel_size", default=4)
    delta = Layer(state=3 * (kernel - 1) * width, state32=width * linear.positive("head_dim"))
    near = set(linear.integers("kda_layers") or ())
    return [delta if i + 1 in near else full(latent(f)) for i in range(f.layers())]


def mamba2(*, inner: int, groups: int, state: int, kernel: int) -> Layer:
    return Layer(state=(kernel - 1) * (inner + 2 * groups * state), state32=inner * state)


def _granite(f: Facts) -> list[Layer]:
    types = _types(f, ("attention",))
    mamba = Layer()
    if "mamba" in types:
        heads = f.positive("mamba_n_heads")
        mamba = mamba2(
            inner=heads * f.positive("mamba_d_head"),
            groups=f.positive("mamba_n_groups"),
            state=f.positive("mamba_d_state"),
            kernel=f.positive("mamba_d_conv"),
        )
    return [mamba if kind == "mamba" else full(kv(f)) for kind in types]


def _falcon_h1(f: Facts) -> list[Layer]:
    """Both in each layer, side by side."""
    mamba = mamba2(
        inner=f.positive("mamba_d_ssm", default=1536),
        groups=f.positive("mamba_n_groups", default=1),
        state=f.positive("mamba_d_state", default=128),
        kernel=f.positive("mamba_d_conv", default=4),
    )
    both = Layer(kv(f), state=mamba.state, state32=mamba.state32)
    return [both] * f.layers()


def _nemotron_h(f: Facts) -> list[Layer]:
    """Layers of feed-forward alone keep nothing."""
    kinds = f.items("hybrid_override_pattern")
    kinds = kinds or f.items("layers_block_type") or f.items("layer_types")
    if kinds is None:
        raise EstimateError("config.json: hybrid_override_pattern is missing")
    heads = f.positive("mamba_num_heads")
    mamba = mamba2(
        inner=heads * f.positive("mamba_head_dim"),
        groups=f.positive("n_groups"),
        state=f.positive("ssm_state_size"),
        kernel=f.positive("conv_kernel"),
    )
    each = dict.fromkeys(("M", "mamba", "linear_attention", "conv"), mamba)
    each |= dict.fromkeys(("*", "attention", "full_attention"), full(kv(f)))
    return [each[str(kind)] for kind in kinds if str(kind) in each]


def _mamba2(f: Facts) -> list[Layer]:
    heads = f.positive("num_heads")
    layer = mamba2(
        inner=heads * f.positive("head_dim"),
        groups=f.positive("n_groups"),
        state=f.positive("ssm_state_size", "state_size"),
        kernel=f.positive("conv_kernel"),
    )
    return [layer] * f.layers()


def mamba1(inner: int, state: int, kernel: int) -> Layer:
    return Layer(state=inner * (kernel - 1), scan=inner * state)


def _mamba(f: Facts) -> list[Layer]:
    inner = f.positive("intermediate_size", "d_inner")
    state = f.positive("state_size", "d_state")
    return [mamba1(inner, state, f.positive("conv_kernel", "d_conv"))] * f.layers()


def _jamba(f: Facts) -> list[Layer]:
    inner = f.positive("mamba_expand") * f.positive("hidden_size")
    mamba = mamba1(inner, f.positive("mamba_d_state"), f.positive("mamba_d_conv"))
    types = f.items("layers_block_type")
    if types is None:
        period, offset = f.positive("attn_layer_period"), f.integer("attn_layer_offset")
        types = ["attention" if i % period == offset else "mamba" for i in range(f.layers())]
    return [full(kv(f)) if kind == "attention" else mamba for kind in types]


def _lfm2(f: Facts) -> list[Layer]:
    conv = Layer(state=(f.positive("conv_L_cache") - 1) * f.positive("hidden_size"))
    attention = f.integers("full_attn_idxs")
    if attention is None:
        types = f.items("layer_types") or ()
        attention = [i for i, kind in enumerate(types) if kind == "full_attention"]
    return [full(kv(f)) if i in attention else conv for i in range(f.layers())]


def _llama4(f: Facts) -> list[Layer]:
    """Three layers in four attend within chunks. They keep one, and grow by 256 before they cut."""
    chunk = sliding(kv(f), f.positive("attention_chunk_size") + 256)
    return [chunk if (i + 1) % 4 else full(kv(f)) for i in range(f.layers())]


def _mimo_v2(f: Facts) -> list[Layer]:
    far = f.positive("num_key_value_heads") * (f.positive("head_dim") + f.positive("v_head_dim"))
    near = f.positive("swa_num_key_value_heads") * (
        f.positive("swa_head_dim") + f.positive("swa_v_head_dim")
    )
    window = f.positive("sliding_window_size")
    pattern = f.integers("hybrid_layer_pattern") or ()
    return [sliding(near, window) if i == 1 else full(far) for i in pattern]


def _step3p5(f: Facts) -> list[Layer]:
    dim = f.positive("head_dim")
    other = f.table("attention_other_setting") or f
    near = sliding(2 * other.positive("num_attention_groups") * dim, f.positive("sliding_window"))
    far = full(2 * f.positive("num_attention_groups") * dim)
    types = _types(f, ("sliding_attention", "full_attention"))[: f.layers()]
    return [near if kind == "sliding_attention" else far for kind in types]


def _afm7(f: Facts) -> list[Layer]:
    """The last layers reuse the last cache but one."""
    return [full(kv(f))] * (f.layers() - f.integer("num_kv_reuse_layers"))


def _openelm(f: Facts) -> list[Layer]:
    dim = f.positive("head_dim")
    return [full(2 * heads * dim) for heads in f.integers("num_kv_heads") or ()]


def _nemotron_nas(f: Facts) -> list[Layer]:
    """Of each block its own number of KV heads, or no attention at all."""
    heads = f.positive("num_attention_heads")
    dim = f.positive("hidden_size") // heads
    layers = []
    for block in f.items("block_configs") or ():
        attention = Facts(block).table("attention") if isinstance(block, dict) else None
        if attention and not (attention.flag("no_op") or attention.flag("replace_with_linear")):
            layers.append(full(2 * (heads // attention.positive("n_heads_in_group")) * dim))
    return layers


def _dbrx(f: Facts) -> list[Layer]:
    attention = f.table("attn_config") or f
    dim = f.positive("d_model") // f.positive("n_heads")
    return [full(2 * attention.positive("kv_n_heads") * dim)] * f.layers()


def _gpt_bigcode(f: Facts) -> list[Layer]:
    heads, _, dim = heads_and_dim(f)
    return [full(2 * (1 if f.flag("multi_query", True) else heads) * dim)] * f.layers()


_RENAMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mistral": "llama",
        "llava": "mistral3",
        "phi-msft": "phixtral",
        "falcon_mamba": "mamba",
        "joyai_llm_flash": "deepseek_v3",
        "kimi_k2": "deepseek_v3",
        "qwen2_5_vl": "qwen2_vl",
        "minimax_m2": "minimax",
        "iquestcoder": "llama",
        "xverse": "llama",
        "gemma4_unified": "gemma4",
        "qwen3_5_text": "qwen3_5",
    }
)
"""mlx-lm's own table."""
_FLAT: Final = frozenset({"gemma3n_text"})
_DENSE = (
    "Klear apertus bailing_moe bitnet cohere deepseek dots1 ernie4_5 ernie4_5_moe exaone gemma gemma2"
    " glm glm4 glm4_moe gpt2 gpt_neox granite granitemoe helium hunyuan hunyuan_v1_dense internlm2"
    " internlm3 mimo minicpm minimax mixtral nanochat nemotron olmo olmo2 olmoe phi phi3 phi3small"
    " phimoe phixtral pixtral plamo qwen qwen2 qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl"
    " qwen3_vl_moe seed_oss smollm3 solar_open stablelm starcoder2"
)
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    dict.fromkeys(_DENSE.split(), dense)
    | {
        "llama": _typed,
        "mistral3": _typed,
        "ministral3": _typed,
        "afmoe": _typed,
        "laguna": _typed,
        "mellum": _typed,
        "exaone_moe": _typed,
        "gpt_oss": _alternating,
        "olmo3": _one_in_four,
        "gemma3": _every(6, 512),
        "gemma3_text": _every(6, 512),
        "cohere2": _every(4, 4096),
        "exaone4": _lettered,
        "gemma3n": _gemma3n,
        "gemma4": _gemma4,
        "gemma4_text": _gemma4,
        "deepseek_v3": _mla,
        "glm4_moe_lite": _mla,
        "mistral4": _mla,
        "kimi_vl": _mla,
        "kimi_k25": _mla,
        "deepseek_v32": _mla_indexed,
        "glm_moe_dsa": _mla_indexed,
        "longcat_flash": _mla_double,
        "deepseek_v2": _mla_expanded,
        "youtu_llm": _mla_expanded,
        "minicpm3": _minicpm3,
        "qwen3_next": _delta_hybrid,
        "qwen3_5": _delta_hybrid,
        "qwen3_5_moe": _delta_hybrid,
        "olmo_hybrid": _olmo_hybrid,
        "kimi_linear": _kimi_linear,
        "granitemoehybrid": _granite,
        "falcon_h1": _falcon_h1,
        "nemotron_h": _nemotron_h,
        "mamba": _mamba,
        "mamba2": _mamba2,
        "jamba": _jamba,
        "lfm2": _lfm2,
        "lfm2-vl": _lfm2,
        "lfm2_moe": _lfm2,
        "llama4": _llama4,
        "mimo_v2_flash": _mimo_v2,
        "step3p5": _step3p5,
        "afm7": _afm7,
        "openelm": _openelm,
        "nemotron-nas": _nemotron_nas,
        "dbrx": _dbrx,
        "gpt_bigcode": _gpt_bigcode,
    }
)
"""By mlx-lm's module."""
