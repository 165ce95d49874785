"""A model's tokens by the text that they stand for, where that decides whether a call begins.

Known without llguidance: an answer with tools is watched from its first token, and most never call.
"""

from __future__ import annotations

import re

from worker.prompt.tokenizer import ModelTokenizer

_OPENER = re.compile(r"[\s;,\[]*\{")
_BARE_OPENER = re.compile(r"[\s;]*\{")
_UNDECIDED = re.compile(r"[\s;]{0,4}\{\s{0,4}(\"?\Z|[^\s\"])")
"""What a bare call and what is none may begin with, or what nothing but text does."""
_MARKS = ("<", "[")
_LETTERS = "{>]=<["
"""What markers and objects are told by."""


class TokenTexts:
    """Tokens of one vocabulary. The first question takes 0.2 s for 150,000 tokens, later ones
    nothing."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[str, list[tuple[int, str]]] = {}
        self._marks: dict[str, int] = {}
        self._openers: frozenset[int] | None = None
        self._bare: tuple[frozenset[int], bool] | None = None
        self._past: dict[tuple[str, str], frozenset[int]] = {}

    def token(self, mark: str) -> int | None:
        """The token that a mark is, if it is one: a text that begins with "<" or "["."""
        self._with(mark[0])
        return self._marks.get(mark)

    def openers(self) -> frozenset[int]:
        """The tokens with which a JSON object may begin between the objects of a list: "{" is their
        first letter but for white space, separators and the list's own bracket."""
        if self._openers is None:
            self._openers = frozenset(t for t, text in self._with("{") if _OPENER.match(text))
        return self._openers

    def bare_openers(self) -> tuple[frozenset[int], bool]:
        """The same for objects that stand in no list; and whether some of them tell, before any
        grammar has been asked, how the object goes on."""
        if self._bare is None:
            found = [(t, text) for t, text in self._with("{") if _BARE_OPENER.match(text)]
            telling = not all(_UNDECIDED.match(text) for _, text in found)
            self._bare = frozenset(token for token, _ in found), telling
        return self._bare

    def past(self, marker: str, tail: str) -> frozenset[int]:
        """The tokens in which `marker` would end before they do, after the text `tail`."""
        tail = tail[1 - len(marker) :] if len(marker) > 1 else ""
        while tail and not marker.startswith(tail):
            tail = tail[1:]
        found = self._past.get((marker, tail))
        if found is None:
            found = self._past[marker, tail] = frozenset(
                token
                for token, text in self._with(marker[-1])
                if 0 <= (tail + text).find(marker) < len(tail + text) - len(marker)
            )
        return found

    def _with(self, letter: str) -> list[tuple[int, str]]:
        """The tokens that have the letter in them, and their texts."""
        if letter not in self._texts:
            self._texts |= self._read(letter)
        return self._texts[letter]

    def _read(self, letter: str) -> dict[str, list[tuple[int, str]]]:
        # All at once: telling the vocabulary is what takes long.
        found: dict[str, list[tuple[int, str]]] = {each: [] for each in {letter, *_LETTERS}}
        byte = {f"<0x{ord(each):02X}>": each for each in found}
        for piece, token in self._tokenizer.get_vocab().items():
            if piece[:1] in _MARKS:
                self._marks[piece] = token
            letters = [each for each in found if each in piece or byte.get(piece) == each]
            if letters:
                text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
                for each in letters:
                    found[each].append((token, text))
        return found
