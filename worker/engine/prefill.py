"""Prompt processing: mlx-lm's `PromptProcessingBatch`, less a copy before every first token."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class _Base:
        """What is used of mlx-lm's class, which has no types."""

        uids: list[int]

        def split(self, indices: list[int]) -> Any: ...
else:
    from mlx_lm.generate import PromptProcessingBatch as _Base

_PER_SEQUENCE = (
    "uids",
    "prompt_cache",
    "tokens",
    "samplers",
    "logits_processors",
    "stop_sequences",
    "max_tokens",
)


class PrefillBatch(_Base):
    """Replaces `mlx_lm.generate.PromptProcessingBatch`.

    Where all prompts are done at once, which is the rule, their caches are handed over to the
    decoding batch; mlx-lm copies them and cuts both copies down.
    """

    def split(self, indices: list[int]) -> Any:
        """Take the sequences `indices` out into a batch of their own."""
        if len(indices) < len(self.uids):
            return super().split(indices)
        whole = self.__class__.__new__(self.__class__)
        whole.__dict__.update(self.__dict__)
        for name in _PER_SEQUENCE:
            setattr(self, name, [])
        return whole


def install() -> None:
    """Make every `BatchGenerator` of this process use it."""
    module: Any = importlib.import_module("mlx_lm.generate")
    module.PromptProcessingBatch = PrefillBatch
