"""A model's tokenizer as the rest of the worker sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


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
    byte_letters: Mapping[str, int]
    """Of byte-level vocabularies, the byte that each letter stands for; empty of others."""
    rewrites_text: bool
    """Whether text is changed before or after tokenizing, so that tokens tell another one."""
    clock_at: Callable[[float], AbstractContextManager[None]]
    """Within this context chat templates are told the given time (seconds since 1970)."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # theirs, which is the engine's business alone
            raise AttributeError(name)
        return getattr(self.wrapper, name)

    def __len__(self) -> int:
        return len(self.wrapper)


def template_text(tokenizer: ModelTokenizer) -> str:
    """The text of all of a tokenizer's Jinja templates: some have one of their own for tools."""
    template = tokenizer.chat_template
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)
