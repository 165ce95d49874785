"""What the corpus is drawn from, as the TOML files beside this module have it."""

import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple


class Fact(NamedTuple):
    """Something the model knows: one answer, many ways to ask for it."""

    topic: str
    answer: str
    questions: tuple[str, ...]
    """The canonical question, then patterns (see `phrases`)."""


class Opening(NamedTuple):
    """Short texts that mean the same, and their answer."""

    topic: str
    answer: str
    texts: tuple[str, ...]


def read(name: str) -> dict[str, Any]:
    """The table in a file of this folder."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _facts(table: dict[str, Any]) -> tuple[Fact, ...]:
    return tuple(
        Fact(each["topic"], each["answer"], tuple(each["questions"])) for each in table["facts"]
    )


_SMALL_TALK = read("smalltalk.toml")
_WORDS: dict[str, list[str]] = read("words.toml")

FACTS: Final = _facts(read("facts.toml"))
"""About Bulkhead."""
SMALL_TALK: Final = _facts(_SMALL_TALK)
OPENINGS: Final = tuple(
    Opening(each["topic"], each["answer"], tuple(each["texts"])) for each in _SMALL_TALK["openings"]
)
"""What people type first."""
OPPOSITES: Final = tuple((first, second) for first, second in _SMALL_TALK["opposites"])
CAPITALS: Final = tuple((country, city) for country, city in _SMALL_TALK["capitals"])
UNKNOWN: Final = tuple(_SMALL_TALK["unknown"])
"""Questions that it can't answer, as patterns."""
UNKNOWN_ANSWER: Final = str(_SMALL_TALK["unknown_answer"])

OPENERS: Final = _WORDS["openers"]
CLOSERS: Final = _WORDS["closers"]
NAMES: Final = _WORDS["names"]
WORDS: Final = _WORDS["words"]
CITIES: Final = _WORDS["cities"]
SYLLABLES: Final = _WORDS["syllables"]
SKIES: Final = _WORDS["skies"]
SYSTEM: Final = _WORDS["system"]
RULES: Final = _WORDS["rules"]
THOUGHTS: Final = _WORDS["thoughts"]
