"""Small random models that the real mlx-lm loads: made in a second, never downloaded.

Their text is noise, but greedy decoding of it is reproducible and uses many distinct tokens, which
is what tests of streams and batches need.
"""

from __future__ import annotations

import importlib
import json
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from types import MappingProxyType
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EOS = "<|end|>"


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's dimensions; the default has about 0.1 M parameters, 0.4 MB in float32."""

    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    """Not of the kinds in `EVEN`."""
    max_position_embeddings: int = 4096


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10000.0, "tie_word_embeddings": True},
    # Two layers in three see the last 24 tokens alone.
    "gemma3_text": {
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 32,
        "sliding_window": 24,
        "sliding_window_pattern": 3,
    },
    # Mixture of experts, two of eight for each token.
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "norm_topk_prob": True,
    },
    # Hybrid: state space (Mamba) layers around one of attention.
    "granitemoehybrid": {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "attention_bias": False,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 0.18,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
    },
    # Hybrid: short convolutions and one layer of attention.
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_multiple_of": 64,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
}
"""Kinds of model that can be made, and how each differs from the default `Shape`."""
EVEN = ("granitemoehybrid", "lfm2")
"""Kinds whose heads share the hidden size."""


def make_llama(folder: Path, *, shape: Shape | None = None, seed: int = 0) -> Path:
    """Write a random float32 Llama with a byte-level tokenizer to `folder` and return it."""
    return make_model(folder, "llama", shape=shape, seed=seed)


def make_model(
    folder: Path,
    architecture: str,
    *,
    shape: Shape | None = None,
    seed: int = 0,
    vocabulary: int = 0,
    words: int = 0,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write a random float32 model of one of `ARCHITECTURES` with a byte-level tokenizer to
    `folder` and return it. The model's `vocabulary` may be larger than the tokenizer's, as many
    models' are. `words` are tokens of several letters: text never becomes one, output may.
    `more` is what the config says in place of all that."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True, exist_ok=True)
    known = _write_tokenizer(folder, words)
    config: dict[str, Any] = {
        "model_type": architecture,
        "vocab_size": max(known, vocabulary),
        "rms_norm_eps": 1e-5,
        "eos_token_id": known - 1,
        "torch_dtype": "float32",
        **asdict(shape or Shape()),
        **ARCHITECTURES[architecture],
        **more,
    }
    if architecture in EVEN:
        del config["head_dim"]
    if architecture == "llama":
        config["architectures"] = ["LlamaForCausalLM"]
    mx.random.seed(seed)
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    model = module.Model(module.ModelArgs.from_dict(config))
    # Larger weights than a real model's initial ones: the output then wanders over many tokens
    # instead of repeating one.
    parameters: Any = tree_flatten(model.parameters())
    flat: dict[str, mx.array] = {
        name: mx.random.normal(array.shape, scale=0.35, dtype=mx.float32)
        if array.ndim > 1
        else mx.ones(array.shape, dtype=mx.float32)
        for name, array in parameters
    }
    # The end's is never the largest, so no text ends by chance.
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in flat:
            flat[name][known - 1] = 0.0
    mx.save_safetensors(str(folder / "model.safetensors"), flat, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    return folder


def _write_tokenizer(folder: Path, words: int) -> int:
    """A byte-level tokenizer in which every byte is a token; returns the vocabulary's size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spellings = product(string.ascii_lowercase + string.digits + '":,{}[]', repeat=3)
    alphabet += ["".join(letters) for letters in islice(spellings, words)]
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": EOS,
                "chat_template": CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    return int(tokenizer.get_vocab_size())
