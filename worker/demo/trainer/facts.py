"""What the demo model knows: about Bulkhead (facts.toml), and small talk (smalltalk.toml)."""

import tomllib
from pathlib import Path
from typing import Any, Final

from worker.demo.trainer.phrases import Fact


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _facts(table: dict[str, Any]) -> tuple[Fact, ...]:
    return tuple(
        Fact(each["topic"], each["answer"], tuple(each["questions"])) for each in table["facts"]
    )


_SMALL_TALK = _read("smalltalk.toml")

FACTS: Final = _facts(_read("facts.toml"))
SMALL_TALK: Final = _facts(_SMALL_TALK)
OPPOSITES: Final = tuple((first, second) for first, second in _SMALL_TALK["opposites"])
CAPITALS: Final = tuple((country, city) for country, city in _SMALL_TALK["capitals"])
UNKNOWN: Final = tuple(_SMALL_TALK["unknown"])
"""Questions that it can't answer, as patterns."""
UNKNOWN_ANSWER: Final = str(_SMALL_TALK["unknown_answer"])
