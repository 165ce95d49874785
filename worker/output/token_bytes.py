"""The bytes that single tokens stand for: a token may be a part of a character."""

from __future__ import annotations

import re

from worker.prompt.tokenizer import SPACE, ModelTokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece's vocabularies write bytes that have no token of their own."""
UNKNOWN = (IndexError, KeyError, TypeError, OverflowError)
"""What tokenizers raise for an id that is not theirs: a vocabulary may have holes, and a model more
rows than it."""


class TokenBytes:
    """Tokens of one model as bytes."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._letters = tokenizer.byte_letters
        self._known: dict[int, bytes] = {}

    def raw(self, token: int) -> bytes:
        """The token's bytes; none for an id that the vocabulary does not have."""
        raw = self._known.get(token)
        if raw is None:
            try:
                raw = self._known[token] = self._look_up(token)
            except UNKNOWN:
                return b""
        return raw

    def _look_up(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._letters and all(letter in self._letters for letter in piece):
            return bytes(self._letters[letter] for letter in piece)
        if self._tokenizer.spelling == "other":
            text = self._tokenizer.text([token])
            return (piece if "\ufffd" in text else text).encode("utf-8", "replace")
        if self._letters:
            return str(piece).encode("utf-8", "replace")
        if byte := _BYTE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return str(piece).replace(SPACE, " ").encode("utf-8", "replace")
