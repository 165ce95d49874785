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
_DENSE = (
    "Klear apertus bailing_moe bitnet cohere deepseek dots1 ernie4_5 ernie4_5_moe exaone gemma"
    " gemma2 glm glm4 glm4_moe gpt2 gpt_neox granite granitemoe helium hunyuan hunyuan_v1_dense"
    " internlm2"
    " internlm3 mimo minicpm minimax mixtral nanochat nemotron olmo olmo2 olmoe phi phi3 phi3small"
    " phimoe phixtral pixtral plamo qwen qwen2 qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl"
    " qwen3_vl_moe seed_oss smollm3 solar_open stablelm starcoder2"
)
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    dict.fromkeys(_DENSE.split(), dense)
    | {
        "llama": attention.typed,
        "mistral3": attention.typed,
        "ministral3": attention.typed,
        "afmoe": attention.typed,
        "laguna": attention.typed,
        "mellum": attention.typed,
        "muse_glimmer": attention.typed,
        "spark2_5": attention.typed,
        "exaone_moe": attention.typed,
        "gpt_oss": attention.alternating,
        "olmo3": attention.one_in_four,
        "gemma3": attention.every(6, 512, kv_heads=4, head_dim=256),
        "gemma3_text": attention.every(6, 512, kv_heads=1, head_dim=256),
        "cohere2": attention.every(4, 4096, kv_heads=8, head_dim=128),
        "exaone4": attention.lettered,
        "gemma3n": attention.gemma3n,
        "gemma4": attention.gemma4,
        "gemma4_text": attention.gemma4,
        "deepseek_v3": attention.mla,
        "glm4_moe_lite": attention.mla,
        "mistral4": attention.mla,
        "kimi_vl": attention.mla,
        "kimi_k25": attention.mla,
        "deepseek_v32": attention.mla_indexed,
        "glm_moe_dsa": attention.mla_indexed,
        "longcat_flash": attention.mla_double,
        "deepseek_v2": attention.mla_expanded,
        "youtu_llm": attention.mla_expanded,
        "minicpm3": attention.minicpm3,
        "qwen3_next": recurrent.delta_hybrid,
        "qwen3_5": recurrent.delta_hybrid,
        "qwen3_5_moe": recurrent.delta_hybrid,
        "olmo_hybrid": recurrent.olmo_hybrid,
        "kimi_linear": recurrent.kimi_linear,
        "granitemoehybrid": recurrent.granite,
        "falcon_h1": recurrent.falcon_h1,
        "nemotron_h": recurrent.nemotron_h,
        "mamba": recurrent.mamba,
        "mamba2": recurrent.mamba2,
        "jamba": recurrent.jamba,
        "lfm2": recurrent.lfm2,
        "lfm2-vl": recurrent.lfm2,
        "lfm2_moe": recurrent.lfm2,
        "llama4": attention.llama4,
        "mimo_v2_flash": attention.mimo_v2,
        "step3p5": attention.step3p5,
        "afm7": attention.afm7,
        "openelm": attention.openelm,
        "nemotron-nas": attention.nemotron_nas,
        "dbrx": attention.dbrx,
        "gpt_bigcode": attention.gpt_bigcode,
    }
)
"""By mlx-lm's module."""
