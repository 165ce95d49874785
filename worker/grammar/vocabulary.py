"""A model's tokens as llguidance knows them, and masks over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from supervisor.errors import UnsupportedValue
from worker.prompt.tokenizer import ModelTokenizer

Mask = NDArray[np.int32]
"""Packed: int32 [words], least significant bit first; bit i says that token i may come next."""

_THREADS = 4


class Vocabulary:
    """What one model's grammars share. `words` int32 words hold a mask."""

    def __init__(self, tokenizer: ModelTokenizer, size: int) -> None:
        """`size` is the width of the logits. Takes 1.4 s for 150,000 tokens, outside the GIL.
        Raises UnsupportedValue."""
        self._compiled = _tokenizer(tokenizer, size)
        self.eos = sorted(int(token) for token in tokenizer.eos_token_ids if 0 <= token < size)
        self.size = size
        self.words = (size + 31) // 32
        self._executor = llguidance.LLExecutor(num_threads=_THREADS)
        self._tokens = range(min(len(tokenizer), size))
        self.ending = self.mask(self.eos)
        self.text = self.mask(self._tokens) & ~self.ending
        self.blanks = frozenset(
            token
            for token in self._tokens
            if not (text := self._compiled.decode_bytes([token])).strip(b" \n\r\t")
            and 0 < len(text) <= 4
            and not self._compiled.is_special_token(token)
        )
        self.blank = self.mask(self.blanks)
        self._masks: dict[frozenset[int], Mask] = {}

    def mask(self, tokens: Iterable[int]) -> Mask:
        """A mask that allows `tokens`."""
        bits = np.zeros(self.words * 32, np.uint8)
        bits[list(tokens)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def kept_mask(self, tokens: frozenset[int]) -> Mask:
        """A mask that is made once. For the few sets that tokens' texts make."""
        found = self._masks.get(tokens)
        if found is None:
            found = self._masks[tokens] = self.mask(tokens)
        return found

    def matcher(self, grammar: str, limits: llguidance.LLParserLimits) -> llguidance.LLMatcher:
        """A matcher, perhaps in an error state."""
        return llguidance.LLMatcher(self._compiled, grammar, log_level=0, limits=limits)

    def fill_masks(self, matchers: Sequence[tuple[llguidance.LLMatcher, int]], masks: Mask) -> None:
        """Write each matcher's mask to its row of `masks`, int32 [rows, `width`]."""
        if len(matchers) == 1:
            matcher, row = matchers[0]
            llguidance.numpy.fill_next_token_bitmask(matcher, masks, row)
        elif matchers:
            llguidance.numpy.fill_next_token_bitmask_par(self._executor, list(matchers), masks)

    def next_mask(self, matcher: llguidance.LLMatcher) -> Mask:
        """One matcher's mask."""
        rows = np.zeros((1, self.width), np.int32)
        self.fill_masks([(matcher, 0)], rows)
        return self.trimmed(rows[0])

    def trimmed(self, row: Mask) -> Mask:
        """A copy of a row that llguidance has written, without tokens that have no logit."""
        mask = row[: self.words].copy()
        if self.size % 32:
            mask[-1] &= np.int32((1 << self.size % 32) - 1)
        return mask

    @property
    def width(self) -> int:
        """Words of a mask as llguidance writes it: its vocabulary may be larger than the logits."""
        return (self._compiled.vocab_size + 31) // 32


class MaskSource(Protocol):
    """What `fill_masks` asks of a constraint."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def active_matcher(self) -> llguidance.LLMatcher | None:
        """The matcher whose mask counts now, if any does."""

    def finish_mask(self, mask: Mask) -> None:
        """Turn the matcher's mask in place into that of the whole output; all zero without one."""


def fill_masks(constraints: Sequence[MaskSource], words: int) -> Mask:
    """The masks of one model's constraints: int32 [constraints, words], least significant bit
    first.

    A bit says that the token may come next; those beyond the vocabulary are 0. At least one token
    of every row is allowed. All are computed at the same time, without the GIL.
    """
    if not constraints:
        return np.zeros((0, words), np.int32)
    vocabulary = constraints[0].vocabulary
    written = np.zeros((len(constraints), vocabulary.width), np.int32)
    matchers = [
        (matcher, row)
        for row, constraint in enumerate(constraints)
        if (matcher := constraint.active_matcher()) is not None
    ]
    vocabulary.fill_masks(matchers, written)
    result = np.zeros((len(constraints), words), np.int32)
    known = min(vocabulary.words, words)
    for row, constraint in enumerate(constraints):
        mask = vocabulary.trimmed(written[row])
        constraint.finish_mask(mask)
        result[row, :known] = mask[:known]
    return result


def _tokenizer(tokenizer: ModelTokenizer, size: int) -> llguidance.LLTokenizer:
    inner = tokenizer.inner
    why = "it is not of the fast kind (tokenizer.json)"
    if hasattr(inner, "backend_tokenizer") and not tokenizer.rewrites_text:
        try:
            return llguidance.hf.from_tokenizer(
                inner, n_vocab=max(size, len(tokenizer)), eos_token=sorted(tokenizer.eos_token_ids)
            )
        except BaseException as error:
            # A panic in Rust is no Exception: a token of 1,000 characters causes one.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            why = type(error).__name__
    raise UnsupportedValue(
        f"Structured output is not available: the model's tokenizer can't be used for it ({why}).",
        param="response_format",
    )
