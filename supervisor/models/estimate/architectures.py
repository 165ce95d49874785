"""Which formula an architecture has, by mlx-lm's module."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from supervisor.models.estimate import attention, recurrent
from supervisor.models.estimate.attention import Family
from supervisor.models.estimate.facts import EstimateError, Facts
from supervisor.models.estimate.layers import Layer, dense


def layers_of(config: Facts) -> list[Layer]:
    """The layers of the model that `config` describes.

    An architecture without a formula is taken for full attention throughout, which is what mlx-lm
    does itself without `make_cache`; when its config lacks the usual figures there are no layers.
    Raises EstimateError when the config of a known one lacks what its formula needs.
    """
    text = config.merged("text_config")
    family = FAMILIES.get(architecture(config))
    if family is not None:
        return family(text)
    try:
        return dense(text)
    except EstimateError:
        return []


def architecture(config: Facts) -> str:
    """The module of mlx-lm that serves this model."""
    name = config.text("model_type")
    return _RENAMED.get(name, name)


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
    }
)
"""mlx-lm's own table."""
_MODULES: Final[Mapping[Family, str]] = MappingProxyType(
    {
        dense: "Klear apertus bailing_moe bitnet cohere deepseek dots1 ernie4_5 ernie4_5_moe exaone"
        " gemma gemma2 glm glm4 glm4_moe gpt2 gpt_neox granite granitemoe helium hunyuan"
        " hunyuan_v1_dense internlm2 internlm3 mimo minicpm minimax mixtral nanochat nemotron olmo"
        " olmo2 olmoe phi phi3 phi3small phimoe phixtral pixtral plamo qwen qwen2 qwen2_moe"
        " qwen2_vl qwen3 qwen3_moe qwen3_vl qwen3_vl_moe seed_oss solar_open stablelm starcoder2",
        attention.typed: "llama mistral3 ministral3 afmoe laguna mellum muse_glimmer spark2_5"
        " exaone_moe smollm3",
        attention.alternating: "gpt_oss",
        attention.one_in_four: "olmo3",
        attention.every(6, 512, kv_heads=4, head_dim=256): "gemma3",
        attention.every(6, 512, kv_heads=1, head_dim=256): "gemma3_text",
        attention.every(4, 4096, kv_heads=8, head_dim=128): "cohere2",
        attention.lettered: "exaone4",
        attention.gemma3n: "gemma3n",
        attention.gemma4: "gemma4 gemma4_text",
        attention.mla: "deepseek_v3 glm4_moe_lite mistral4 kimi_vl kimi_k25",
        attention.mla_indexed: "deepseek_v32 glm_moe_dsa",
        attention.mla_double: "longcat_flash",
        attention.mla_expanded: "deepseek_v2 youtu_llm",
        attention.minicpm3: "minicpm3",
        attention.llama4: "llama4",
        attention.mimo_v2: "mimo_v2_flash",
        attention.step3p5: "step3p5",
        attention.afm7: "afm7",
        attention.openelm: "openelm",
        attention.nemotron_nas: "nemotron-nas",
        attention.dbrx: "dbrx",
        attention.gpt_bigcode: "gpt_bigcode",
        recurrent.delta_hybrid: "qwen3_next qwen3_5 qwen3_5_moe",
        recurrent.olmo_hybrid: "olmo_hybrid",
        recurrent.kimi_linear: "kimi_linear",
        recurrent.granite: "granitemoehybrid",
        recurrent.falcon_h1: "falcon_h1",
        recurrent.nemotron_h: "nemotron_h",
        recurrent.mamba: "mamba",
        recurrent.mamba2: "mamba2",
        recurrent.jamba: "jamba",
        recurrent.lfm2: "lfm2 lfm2-vl lfm2_moe",
    }
)
"""The modules of mlx-lm that each formula is for."""
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {module: family for family, modules in _MODULES.items() for module in modules.split()}
)
"""By mlx-lm's module."""
