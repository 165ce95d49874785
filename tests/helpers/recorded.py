"""One request each of seven real agent programs, as it reached a server in November 2026.

Structure, names, enums and lengths are real; every text longer than a name is filler of the same
length, and ids are zeros.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).with_name("data") / "agents"
PROGRAMS: Final = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Recorded:
    """A request; `path` has its query, and `body` names a model that nobody serves."""

    program: str
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def preamble(self) -> dict[str, Any]:
        """The body of a chat without the conversation: what the program says to every question."""
        opening = [m for m in self.body["messages"] if m["role"] in ("system", "developer")]
        return {**self.body, "messages": opening}


def recorded(program: str) -> Recorded:
    return Recorded(**json.loads((FOLDER / f"{program}.json").read_text()))


CHATS: Final = tuple(p for p in PROGRAMS if recorded(p).path == "/v1/chat/completions")
"""Those that speak chat completions."""
