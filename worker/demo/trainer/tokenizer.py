"""The byte-level tokenizer: trained on the corpus, written with the files that loaders expect."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from worker.demo.trainer.chat import DOCUMENT_END, END, SPECIAL_TOKENS, TEMPLATE

_PIECES: Final = (
    r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Digits stand alone and line ends stay together, so a prompt's tokens begin the dialogue's."""

LONGEST_ANSWER: Final = 2048
"""Tokens. A small model sometimes repeats itself without an end, and its context is long."""


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of ``size`` tokens: every byte string has an encoding, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_added(token) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _added(token: str) -> AddedToken:
    """Control tokens are special (skipped in text); thought and tool marks are to be seen."""
    return AddedToken(token, normalized=False, special=token.startswith("<|"))


def save(tokenizer: Tokenizer, out: Path, positions: int) -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json."""
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)
    (out / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "eos_token": END,
        "pad_token": DOCUMENT_END,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", config)
    ends = [tokenizer.token_to_id(END), tokenizer.token_to_id(DOCUMENT_END)]
    generation = {
        "do_sample": False,
        "eos_token_id": ends,
        "pad_token_id": ends[1],
        "max_answer_tokens": LONGEST_ANSWER,
    }
    write_json(out / "generation_config.json", generation)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
