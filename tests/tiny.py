"""Small random models that the real mlx-lm loads: made in a second, never downloaded.

Their text is noise, but greedy decoding of it is reproducible and uses many distinct tokens, which
is what tests of streams and batches need.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EOS = "<|end|>"


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's dimensions; the default has about 0.4 M parameters, 1.5 MB in float32."""

    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 4096


def make_llama(folder: Path, *, shape: Shape | None = None, seed: int = 0) -> Path:
    """Write a random float32 Llama with a byte-level tokenizer to `folder` and return it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.models.llama import Model, ModelArgs

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": vocabulary - 1,
        "torch_dtype": "float32",
        **asdict(shape or Shape()),
    }
    mx.random.seed(seed)
    make_args: Any = ModelArgs.from_dict
    model = Model(make_args(config))
    # Larger weights than a real model's initial ones: the output then wanders over many tokens
    # instead of repeating one.
    weights = tree_map(
        lambda array: (
            mx.random.normal(array.shape, scale=0.25, dtype=mx.float32)
            if array.ndim > 1
            else mx.ones(array.shape, dtype=mx.float32)
        ),
        model.parameters(),
    )
    flat = dict(tree_flatten(weights))
    mx.save_safetensors(str(folder / "model.safetensors"), flat, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    return folder


def _write_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer in which every byte is a token; returns the vocabulary's size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
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
