"""A model's tokenizer as the rest of the worker sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

Spelling = Literal["bytes", "pieces", "other"]
"""How a vocabulary spells text. "bytes": a letter a byte. "pieces": SentencePiece's, where U+2581
is a space and <0xNN> a byte. In both each token has a text of its own; in "other" ones only the
tokenizer knows it, and of several tokens together."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelTokenizer:
    """mlx-lm's `TokenizerWrapper` with, under names of our own, what it keeps private.

    Every other public attribute is the wrapper's, which in turn has those of the transformers
    tokenizer. `worker.engine.mlx_lm_compat` makes it, so that prompts, output and grammars need no
    mlx-lm.
    """

    wrapper: Any
    inner: Any
    """The transformers tokenizer."""
    python_template: Callable[..., str] | None
    """The chat template, if mlx-lm has one in Python for this model."""
    spelling: Spelling
    byte_letters: Mapping[str, int]
    """Where a letter is a byte, the byte that each letter stands for; empty of others."""
    rewrites_text: bool
    """Whether text is changed before or after tokenizing, so that tokens tell another one."""
    clock_at: Callable[[float], AbstractContextManager[None]]
    """Within this context chat templates are told the given time (seconds since 1970)."""
    encode: Callable[..., list[int]]
    """The ids of a text, as the wrapper's own `encode` gives them. Of transformers' options it
    takes `add_special_tokens` alone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # theirs, which is the engine's business alone
            raise AttributeError(name)
        return getattr(self.wrapper, name)

    def __len__(self) -> int:
        return len(self.wrapper)

    def text(self, tokens: Sequence[int]) -> str:
        """What `tokens` stand for, to the letter: without the clean-up that some tokenizers ask
        for, which takes spaces away. Raises what the tokenizer raises."""
        cleans = getattr(self.inner, "clean_up_tokenization_spaces", False)
        options = {"clean_up_tokenization_spaces": False} if cleans else {}
        return str(self.inner.decode(list(tokens), **options))


def template_text(tokenizer: ModelTokenizer) -> str:
    """The text of all of a tokenizer's Jinja templates: some have one of their own for tools."""
    template = tokenizer.chat_template
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)
