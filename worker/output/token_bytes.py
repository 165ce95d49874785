"""The bytes that single tokens stand for: a token may be a part of a character."""

from __future__ import annotations

import re

from worker.prompt.tokenizer import ModelTokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How sentencepiece vocabularies write bytes that have no token of their own."""
_SPACE = "\u2581"


class TokenBytes:
    """Tokens of one model as bytes."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._letters = tokenizer.byte_letters

    def raw(self, token: int) -> bytes:
        """The token's bytes; none for an id that the vocabulary does not have."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._letters and all(letter in self._letters for letter in piece):
            return bytes(self._letters[letter] for letter in piece)
        if byte := _BYTE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return str(piece).replace(_SPACE, " ").encode("utf-8", "replace")
