"""One JSON object as it grows, letter by letter, without recursion: nothing is too deep."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_SCALAR_LETTERS = frozenset("+-.0123456789Eabeflnrstu")
_SPACE = frozenset(" \t\n\r")
_HEX = frozenset("0123456789abcdefABCDEF")


class NotJSON(ValueError):
    """The text can no longer become a JSON object."""


class JSONScanner:
    """Recognizes one JSON object. `push` takes letters until `done`.

    `depth` counts the open brackets. `state` is what the next letter may be: "start", "key or end",
    "key", "colon", "value", "value or end", "comma", "string", "escape", "hex", "scalar", "done".
    Strict, but for one thing that models do: a control character inside a string is escaped.
    """

    def __init__(self) -> None:
        self.state = "start"
        self._open: list[str] = []
        self._key = False
        """Whether the string that is being read is a key."""
        self._hex = 0
        self._scalar = ""

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def brackets(self) -> Sequence[str]:
        """Those that are open, the innermost last."""
        return self._open

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def scalar_is_whole(self) -> bool:
        """Whether a number or a word is being read that may end here."""
        return self.state == "scalar" and _SCALAR.fullmatch(self._scalar) is not None

    def end_scalar(self) -> None:
        """The number or word that is being read ends. Raises NotJSON."""
        if not _SCALAR.fullmatch(self._scalar):
            raise NotJSON
        self.state = "comma"

    def push(self, letter: str) -> str:
        """The letter as JSON text has it. Raises NotJSON."""
        state = self.state
        if state == "string":
            return self._string(letter)
        if state == "escape":
            if letter not in '"\\/bfnrtu':
                raise NotJSON
            self.state, self._hex = ("hex", 4) if letter == "u" else ("string", 0)
            return letter
        if state == "hex":
            if letter not in _HEX:
                raise NotJSON
            self._hex -= 1
            if not self._hex:
                self.state = "string"
            return letter
        if state == "scalar":
            if letter in _SCALAR_LETTERS:
                self._scalar += letter
                return letter
            self.end_scalar()
        if letter not in _SPACE:
            self._structure(letter)
        return letter

    def _string(self, letter: str) -> str:
        if letter == '"':
            self.state = "colon" if self._key else "comma"
        elif letter == "\\":
            self.state = "escape"
        elif letter < " ":
            return json.dumps(letter)[1:-1]
        return letter

    def _structure(self, letter: str) -> None:
        state = self.state
        if state == "colon" and letter == ":":
            self.state = "value"
        elif state == "comma" and letter == ",":
            self.state = "key" if self._open[-1] == "{" else "value"
        elif (
            (letter == "}" and state in ("comma", "key or end") and self._open[-1] == "{")
            or (letter == "]" and state in ("comma", "value or end") and self._open[-1] == "[")
        ):  # fmt: skip
            self._open.pop()
            self.state = "comma" if self._open else "done"
        elif state in ("key", "key or end") and letter == '"':
            self.state, self._key = "string", True
        elif state in ("value", "value or end") or (state == "start" and letter == "{"):
            self._value(letter)
        else:
            raise NotJSON

    def _value(self, letter: str) -> None:
        if letter == "{":
            self._open.append(letter)
            self.state = "key or end"
        elif letter == "[":
            self._open.append(letter)
            self.state = "value or end"
        elif letter == '"':
            self.state, self._key = "string", False
        elif letter in _SCALAR_LETTERS:
            self.state, self._scalar = "scalar", letter
        else:
            raise NotJSON


def dump(value: Any) -> str:
    """`value` as JSON text that any codec can carry. Raises what `json.dumps` raises."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, which JSON can only hold escaped
        text = json.dumps(value, allow_nan=False)
    return text


def sendable(text: str) -> str:
    """`text`; raises NotJSON when it has lone surrogates: no codec can carry it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotJSON from None
    return text
