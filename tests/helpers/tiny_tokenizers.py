"""Tokenizers of every kind that decodes in a way of its own, loaded as the worker loads them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from worker.engine.mlx_lm_compat import model_tokenizer
from worker.prompt.tokenizer import ModelTokenizer

_WORDS = ("a", "b", "é", "模", "def", "world", "Hello", ".", ",", "'s", "\n", "  ", "    ")
_SPECIAL = ("<s>", "</s>", "[INST]")
_CUT = "é模😀".encode()

LLAMA: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(parts)}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
DECODERS: dict[str, dict[str, Any]] = {
    "bytes": BYTES,
    "bytes-sequence": _sequence(BYTES),
    "llama": _sequence(*LLAMA, STRIP),
    "gemma": _sequence(*LLAMA),
    "metaspace-always": _sequence({"type": "ByteFallback"}, _metaspace("always")),
    "metaspace-first": _sequence({"type": "ByteFallback"}, _metaspace("first")),
    "metaspace-never": _sequence({"type": "ByteFallback"}, _metaspace("never")),
    "wordpiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "wordpiece-raw": {"type": "WordPiece", "prefix": "##", "cleanup": False},
    "suffixes": {"type": "BPEDecoder", "suffix": "</w>"},
}
"""By name, the `decoder` of tokenizer.json."""


@cache
def tiny_tokenizer(kind: str) -> ModelTokenizer:
    """A tokenizer with the `kind` of decoder. Its configuration asks for a clean-up of spaces."""
    from mlx_lm import tokenizer_utils

    pieces = [*_SPECIAL, *_pieces(kind)]
    vocabulary = {piece: token for token, piece in enumerate(dict.fromkeys(pieces))}
    words = kind.startswith("wordpiece")
    model: dict[str, Any] = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "a"}
    if words:
        model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "a",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}  # fmt: skip
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token, "content": text, **flags, "special": text != "[INST]"}
        for token, text in enumerate(_SPECIAL)
    ]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": DECODERS[kind], "model": model}  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": True,
    }
    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(content))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        load: Any = tokenizer_utils.load
        return model_tokenizer(load(Path(folder)))


def _pieces(kind: str) -> list[str]:
    from mlx_lm.tokenizer_utils import _byte_decoder

    spaced = [*_WORDS, *(f" {word}" for word in _WORDS)]
    if kind.startswith("bytes"):
        letters = {byte: letter for letter, byte in _byte_decoder().items()}
        whole = ["".join(letters[byte] for byte in word.encode()) for word in spaced]
        return [*whole, *(letters[byte] for byte in _CUT)]
    if kind.startswith("wordpiece"):
        return [*_WORDS[:-3], *(f"##{word}" for word in _WORDS[:-3])]
    if kind == "suffixes":
        return [*_WORDS[:-3], *(f"{word}</w>" for word in _WORDS[:-3])]
    whole = [word.replace(" ", "▁") for word in (*spaced, " ")]
    return [*whole, *(f"<0x{byte:02X}>" for byte in sorted(set(_CUT)))]
