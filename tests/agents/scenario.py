"""One program with its task: what it is started with, what the model says to it, what must come."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.scripted_llama import Turn

MODEL = "scripted"
KEY = "sk-local"
FILE = "harbour.txt"
BEFORE = "The ferry leaves at noon.\nThe harbour opens at seven.\nThe market is on Friday.\n"
OLD, NEW = "The harbour opens at seven.", "The harbour opens at nine."
AFTER = BEFORE.replace(OLD, NEW)
TASK = (
    f"Read {FILE}. In it change the time at which the harbour opens to nine, "
    "look whether the change is there, and tell me what it says now."
)
ANSWER = (
    "It is done: from now on the harbour opens at nine, and nothing else has been changed. Whoever "
    "comes at seven will find the gate shut and will have to wait for two hours, which the market "
    "people should be told before Friday, because some of them bring fish that does not keep."
)
ASIDE = "Opening time of the harbour"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run of a program finds everything."""

    url: str
    """Of Bulkhead, without a path."""
    home: Path
    """The program's HOME, empty but for `Scenario.files`."""
    work: Path
    """Its working directory, with `FILE` in it."""
    installed: Path
    """What its packages have been installed in."""

    @property
    def file(self) -> str:
        return str(self.work / FILE)


def _nothing(place: Place) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A program."""

    name: str
    command: Callable[[Place], Sequence[str]]
    turns: Callable[[Place], Sequence[Turn]]
    routes: Sequence[str] = ("/v1/chat/completions",)
    """Of the dialects that it must speak."""
    shared: str = ""
    """The list in `versions.toml` that its packages are in; "" = the one of its own name."""
    environ: Callable[[Place], dict[str, str]] = _nothing
    """Besides PATH, HOME and the like."""
    files: Callable[[Place], dict[str, str]] = _nothing
    """What is written under HOME before it starts, by path."""
    aside: str = ASIDE
    """The model's answer to requests without tools; "" = they are turns as well."""
    answer: str = ANSWER
    """What its output must show."""
    edits: bool = True
    """Whether `FILE` must be edited at the end."""
    seconds: float = 180.0
    """Until it must have ended."""
    runs: int = 1
    """How often the conversation is played."""
    strikes: Sequence[int] = (50, 8)
    """Tokens of an answer after which its worker is struck, in turns: within a call, within the
    text before it."""

    @property
    def packages(self) -> str:
        return self.shared or self.name


def environ(scenario: Scenario, place: Place) -> dict[str, str]:
    """All that the program gets: nothing of a developer's own settings, keys and proxies."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ") if name in os.environ}
    folders = [place.installed / "bin", place.installed / "node_modules/.bin"]
    return {
        **kept,
        "PATH": os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)]),
        "HOME": str(place.home),
        "XDG_CONFIG_HOME": str(place.home / ".config"),
        "XDG_DATA_HOME": str(place.home / ".local/share"),
        "XDG_STATE_HOME": str(place.home / ".local/state"),
        "XDG_CACHE_HOME": str(place.home / ".cache"),
        "TERM": "dumb",
        "NO_COLOR": "1",
        "DO_NOT_TRACK": "1",
        **scenario.environ(place),
    }
