"""What the readers of grammars share: words with their lines, and what stands behind a part."""

from __future__ import annotations

import re
from typing import NamedTuple

from gateway.grammars.faults import GrammarFault
from gateway.grammars.rules import MAX_COUNT, Part, Repeat

_COUNTS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class Word(NamedTuple):
    """A piece of a grammar's text, of a kind that its reader names. `line` counts from 1."""

    kind: str
    word: str
    line: int


def unreadable(line: int) -> GrammarFault:
    return GrammarFault(f"line {line} can't be read", broken=True)


def repeated(part: Part, word: Word) -> Part | None:
    """The part as often as the word behind it says: a "count", such as `{2,3}`, or a "sign"; None =
    it says nothing of that. Raises GrammarFault."""
    if word.kind == "count":
        given = [_number(digits) for digits in re.findall("[0-9]+", word.word)]
        if given[0] > given[-1]:
            raise GrammarFault(f"a repetition in line {word.line} that is none", broken=True)
        if max(given) > MAX_COUNT:
            raise GrammarFault(f"a repetition of more than {MAX_COUNT}, in line {word.line}")
        endless = word.word.rstrip("} ").endswith(",")
        return Repeat(part, given[0], None if endless else given[-1])
    if word.kind == "sign" and word.word in _COUNTS:
        return Repeat(part, *_COUNTS[word.word])
    return None


def _number(digits: str) -> int:
    """Of however many digits: Python reads no more than some thousands."""
    short = digits.lstrip("0")[: len(str(MAX_COUNT)) + 1]
    return int(short or "0")


def character(code: str, line: int) -> str:
    """The character of a hexadecimal code. Raises GrammarFault."""
    number = int(code, 16)
    if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        raise GrammarFault(f"a code in line {line} that is no character", broken=True)
    return chr(number)
