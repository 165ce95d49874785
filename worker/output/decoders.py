"""From tokens to their text, as it stands behind the prompt.

mlx-lm's streaming detokenizers are not used: they take what follows the prompt for the beginning of
a text, of which they drop the first space. Here the text of a prompt with its output is that of the
prompt and that of the output, one after the other.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from worker.output.token_bytes import UNKNOWN, TokenBytes
from worker.prompt.tokenizer import ModelTokenizer

_CONTEXT = 8
"""Tokens that may change the text of what follows them."""
_LONGEST = 16
"""Tokens that one character may be cut into; what is longer is no character any more."""


class TokenDecoder(Protocol):
    """The text of one output. The same tokens give the same text, however they come; a token that
    the vocabulary does not have has none."""

    def push(self, token: int) -> str:
        """The text that this token completes; "" while a character is cut in half."""

    def finish(self) -> str:
        """What of a character has come, now that nothing follows it: U+FFFD."""


class TokenDecoders:
    """Makes the decoders of one model's outputs."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = TokenBytes(tokenizer)

    def behind(self, prompt: Sequence[int]) -> TokenDecoder:
        """The decoder of what follows `prompt`."""
        if self._tokenizer.spelling == "other":
            return ContextDecoder(self._tokenizer, prompt)
        return BytesDecoder(self._bytes)


class BytesDecoder:
    """A `TokenDecoder` of vocabularies where each token stands for bytes of its own."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._bytes.raw(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class ContextDecoder:
    """A `TokenDecoder` that asks the tokenizer: a token's text is what the text behind its
    neighbours grows by."""

    def __init__(self, tokenizer: ModelTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._before = list(prompt[-_CONTEXT:])
        """The last tokens whose text is known."""
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        self._waiting.append(token)
        try:
            text = self._grown()
        except UNKNOWN:
            self._waiting.pop()
            return ""
        if text.endswith("\ufffd") and len(self._waiting) < _LONGEST:
            return ""
        return self._told(text)

    def finish(self) -> str:
        return self._told(self._grown()) if self._waiting else ""

    def _grown(self) -> str:
        before = self._tokenizer.text(self._before)
        return self._tokenizer.text(self._before + self._waiting)[len(before) :]

    def _told(self, text: str) -> str:
        if text or len(self._waiting) >= _LONGEST:
            self._before = [*self._before, *self._waiting][-_CONTEXT:]
            self._waiting = []
        return text
