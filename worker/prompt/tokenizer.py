"""A model's tokenizer as the rest of the worker sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any


class ModelTokenizer:
    """mlx-lm's `TokenizerWrapper` with, under names of our own, what it keeps private.

    Every other public attribute is the wrapper's, which in turn has those of the transformers
    tokenizer. `worker.engine.mlx_lm_compat` makes it, so that prompts, output and grammars need no
    mlx-lm.
    """

    __slots__ = (
        "byte_letters",
        "clock_at",
        "inner",
        "python_template",
        "rewrites_text",
        "wrapper",
    )

    def __init__(
        self,
        wrapper: Any,
        *,
        inner: Any,
        python_template: Callable[..., str] | None,
        byte_letters: Mapping[str, int],
        rewrites_text: bool,
        clock_at: Callable[[float], AbstractContextManager[None]],
    ) -> None:
        self.wrapper = wrapper
        self.inner = inner
        """The transformers tokenizer."""
        self.python_template = python_template
        """The chat template, if mlx-lm has one in Python for this model."""
        self.byte_letters = byte_letters
        """Of byte-level vocabularies, the byte that each letter stands for; empty of others."""
        self.rewrites_text = rewrites_text
        """Whether text is changed before or after tokenizing, so that tokens tell another one."""
        self.clock_at = clock_at
        """Within this context chat templates are told the given time (seconds since 1970)."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # theirs, which is the engine's business alone
            raise AttributeError(name)
        return getattr(self.wrapper, name)

    def __len__(self) -> int:
        return len(self.wrapper)
