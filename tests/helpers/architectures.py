"""Configurations of small models, one for each way in which mlx-lm caches what it has seen.

Sizes are all different from each other, so that a formula that takes one for another shows.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

LAYERS = 8
_COMMON: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_traditional": False,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
_MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
}
_WINDOW: dict[str, Any] = {"head_dim": 16, "sliding_window": 24}
_TYPES = ["sliding_attention"] * 3 + ["full_attention"]
_MLA: dict[str, Any] = {
    **_MOE,
    "kv_lora_rank": 40,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 20,
    "v_head_dim": 12,
    "rope_scaling": {"type": "yarn", "factor": 1.0, "mscale_all_dim": 1.0},
}
_DELTA: dict[str, Any] = {
    **_MOE,
    "head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 5,
    "partial_rotary_factor": 0.5,
    "full_attention_interval": 3,
    "linear_allow_neg_eigval": True,
}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_ssm": 128,
    "mamba_d_state": 16,
    "mamba_d_conv": 5,
    "mamba_n_groups": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 0.2,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
}
_MAMBA: dict[str, Any] = {
    "state_size": 12,
    "conv_kernel": 5,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
}

SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 24},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "gemma2": {"head_dim": 24, "query_pre_attn_scalar": 16},
    "hunyuan": {
        **_MOE,
        "moe_topk": 2,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
    },
    "afm7": {
        "hidden_dim": 64,
        "num_layers": LAYERS,
        "num_kv_reuse_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 2.0,
    },
    "ministral3": {
        **_WINDOW,
        "layer_types": _TYPES * 2,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 4096,
        },
    },
    "olmo3": _WINDOW,
    "gpt_oss": {**_MOE, **_WINDOW},
    "gemma3_text": {**_WINDOW, "sliding_window_pattern": 3},
    "gemma3": {
        "text_config": {
            **_COMMON,
            **_WINDOW,
            "model_type": "gemma3_text",
            "head_dim": 20,
            "sliding_window_pattern": 4,
        }
    },
    "cohere2": {**_WINDOW, "sliding_window_pattern": 4},
    "exaone4": {
        **_WINDOW,
        "sliding_window_pattern": "LLLG",
        "rope_scaling": {"rope_type": "default", "factor": 1.0},
    },
    "gemma3n": {
        "text_config": {
            **_COMMON,
            **_WINDOW,
            "model_type": "gemma3n_text",
            "intermediate_size": [96] * LAYERS,
            "num_kv_shared_layers": 3,
            "vocab_size_per_layer_input": 48,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": _TYPES * 2,
            "activation_sparsity_pattern": [0.0] * LAYERS,
            "hidden_size_per_layer_input": 16,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
        }
    },
    "gemma4_text": {
        **_WINDOW,
        "global_head_dim": 40,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 2,
        "sliding_window_pattern": 3,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 48,
    },
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": {**_MLA, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 4096},
    "glm4_moe_lite": _MLA,
    "longcat_flash": {
        **_MLA,
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "ffn_hidden_size": 64,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 1,
        "num_layers": LAYERS,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "minicpm3": {**_MLA, "dim_model_base": 64, "scale_depth": 1.0, "scale_emb": 1.0,
        "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096,
        "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}},
    "qwen3_next": _DELTA,
    "qwen3_5": {"text_config": {**_COMMON, **_DELTA, "num_experts": 0}},
    "olmo_hybrid": _DELTA,
    "kimi_linear": {
        **_MLA,
        "head_dim": 16,
        "model_max_length": 4096,
        "linear_attn_config": {
            "kda_layers": [1, 2, 3, 5, 6, 7],
            "full_attn_layers": [4, 8],
            "num_heads": 3,
            "head_dim": 32,
            "short_conv_kernel_size": 5,
        },
    },
    "granitemoehybrid": {
        **_MAMBA2,
        "layer_types": ["mamba", "mamba", "attention", "mamba"] * 2,
        "shared_intermediate_size": 96,
    },
    "falcon_h1": {**_MAMBA2, "head_dim": 24},
    "nemotron_h": {
        **_MAMBA,
        "hybrid_override_pattern": "M-M*-M-*",
        "head_dim": 24,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "n_groups": 2,
    },
    "mamba": {**_MAMBA, "intermediate_size": 80},
    "mamba2": {
        **_MAMBA,
        "num_heads": 4,
        "head_dim": 32,
        "n_groups": 2,
        "intermediate_size": 128,
        "time_step_limit": [0.0, 100.0],
    },
    "jamba": {
        **_MOE,
        "attn_layer_offset": 2,
        "attn_layer_period": 4,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 5,
        "mamba_d_state": 12,
        "mamba_expand": 3,
    },
    "lfm2": {
        "layer_types": ["conv", "conv", "full_attention", "conv"] * 2,
        "conv_bias": False,
        "conv_L_cache": 5,
        "block_dim": 64,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "llama4": {
        "text_config": {
            **_COMMON,
            **_MOE,
            "model_type": "llama4_text",
            "head_dim": 16,
            "attention_chunk_size": 256,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "rope_scaling": None,
            "use_qk_norm": True,
        }
    },
    "mimo_v2_flash": {
        **_MOE,
        "hybrid_layer_pattern": [0, 1, 1, 1] * 2,
        "moe_layer_freq": [0] + [1] * 7,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": 24,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 1,
        "head_dim": 24,
        "v_head_dim": 16,
        "swa_head_dim": 40,
        "swa_v_head_dim": 8,
        "partial_rotary_factor": 0.5,
    },
    "step3p5": {
        **_WINDOW,
        "num_attention_groups": 2,
        "layer_types": _TYPES * 2,
        "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 3},
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 32,
    },
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": group}, "ffn": {"ffn_mult": 1.0}}
            for group in (1, 2, 4)
        ]
        + [{"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}}] * 5,
    },
    "openelm": {
        "head_dim": 16,
        "num_transformer_layers": LAYERS,
        "model_dim": 64,
        "ffn_dim_divisor": 32,
        "num_query_heads": [4] * LAYERS,
        "num_kv_heads": [1, 2] * 4,
        "ffn_multipliers": [1.0] * LAYERS,
    },
    "gpt_bigcode": {
        "n_embd": 64,
        "n_layer": LAYERS,
        "n_inner": 96,
        "n_head": 4,
        "n_positions": 4096,
    },
}  # fmt: skip
"""mlx-lm's module → what its config has above the common keys."""


def config_of(architecture: str) -> dict[str, Any]:
    config = {**_COMMON, "model_type": architecture, **SPECIAL[architecture]}
    for name in ("head_dim", "num_hidden_layers"):
        if "text_config" in config:
            config.pop(name, None)
    return config


def make_bare(folder: Path, config: dict[str, Any], dtype: Any = None) -> Any:
    """Write the weights and the config of a random model, without a tokenizer; returns it.

    It computes in float32 unless told otherwise: the CPU has no experts in anything else.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.utils import MODEL_REMAPPING

    name = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    module = importlib.import_module(f"mlx_lm.models.{name}")
    # The classes change what they are given.
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    if dtype is not None:
        model.update(tree_map(lambda array: array.astype(dtype), model.parameters()))
    model.eval()
    folder.mkdir(parents=True)
    flat: Any = tree_flatten(model.parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(flat), metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return model
