"""A model for evaluations: random, with a token for each printable character, and a first token
that its tokenizer puts before every text, as those of most models do."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.tiny_llama import EOS, make_llama

_CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))


def make_evaluated(folder: Path) -> Path:
    """Write it to `folder`, and return that."""
    import mlx.core as mx

    make_llama(folder)
    size = _write_tokenizer(folder)
    weights: dict[str, mx.array] = mx.load(str(folder / "model.safetensors"))  # type: ignore[assignment]
    name = "model.embed_tokens.weight"
    # Closer to each other than noise is, so that no answer is certain.
    weights[name] = weights[name][:size] * 0.3
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights}, metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    config.update(vocab_size=size, eos_token_id=size - 1, bos_token_id=size - 1)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write_tokenizer(folder: Path) -> int:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [letters.pre_tokenize_str(each)[0][0] for each in _CHARACTERS]
    tokenizer = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(spelled)}, merges=[]))
    tokenizer.pre_tokenizer = letters
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, len(spelled))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["bos_token"] = EOS
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(spelled) + 1
