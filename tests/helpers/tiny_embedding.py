"""Small random embedding models: a decoder with the files of sentence-transformers beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.tiny_llama import Shape, make_llama

HIDDEN = 64
SHAPE = Shape(
    hidden_size=HIDDEN, intermediate_size=96, head_dim=HIDDEN // 4, max_position_embeddings=8192
)


def make_embedding(
    folder: Path, *, pooling: str = "lasttoken", shape: Shape = SHAPE, appended: bool = True
) -> Path:
    """Write a random Llama that pools as `pooling` says to `folder` and return it.

    With `appended`, the tokenizer ends every text with a token of its own, as Qwen3-Embedding's
    does.
    """
    make_llama(folder, shape=shape)
    say(folder, pooling)
    if appended:
        append_special(folder)
    return folder


def say(folder: Path, pooling: str, **more: Any) -> None:
    """Write the sentence-transformers files."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for i, (path, kind) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    flags = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": HIDDEN, **flags, **more})
    )


def append_special(folder: Path) -> None:
    """Make the tokenizer end every text with its end-of-sequence token."""
    from tokenizers import Tokenizer, processors

    from tests.helpers.tiny_llama import EOS

    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}",
        special_tokens=[(EOS, tokenizer.token_to_id(EOS))],
    )
    tokenizer.save(str(file))
