"""JSON as models write it, made JSON where it has one reading alone.

What is mended: a backslash that escapes nothing is doubled; a control character inside a string is
escaped; a comma before a closing bracket is dropped; a comma is put where a line break alone stands
between two values; Python's True, False and None are written as JSON's; brackets that are open
where the call ends are closed, if the last value is whole. All else is no JSON, a string without an
end above all: where it was to end is anybody's guess.
"""

from __future__ import annotations

import re

from worker.output.tools.json_scanner import JSONScanner, NotJSON, sendable

_PYTHON = {"True": "true", "False": "false", "None": "null"}
_ESCAPES = '"\\/bfnrt'
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_HEX = frozenset("0123456789abcdefABCDEF")
_SPACE = " \t\n\r"
_BEGINS = {"{": '"', "[": '"{[-0123456789tfnTFN'}
"""What a key or a value begins with."""
_CLOSERS = {"{": "}", "[": "]"}


class RepairingScanner:
    """A `JSONScanner` of JSON that may be broken. `take` gives the JSON text since the last time,
    which is a beginning of valid JSON, whatever `push` has said."""

    def __init__(self) -> None:
        self._json = JSONScanner()
        self._out: list[str] = []
        self._comma: list[str] = []
        """A comma that may be one too many, and the space behind it, letter by letter."""
        self._unicode = ""
        """The beginning of an escape that may be none."""
        self._word = ""
        """The beginning of a word of Python's."""
        self._line_ended = False
        """Whether a line break stands between the last value and here."""

    @property
    def begun(self) -> bool:
        return self._json.state != "start"

    @property
    def done(self) -> bool:
        return self._json.done

    def take(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def push_plain(self, text: str, at: int) -> int:
        """Read the letters from `at` on that a string has as they are; how many there are."""
        if self._json.state != "string":
            return 0
        plain = _PLAIN.match(text, at)
        if plain is None:
            return 0
        self._out.append(plain[0])
        return len(plain[0])

    def push(self, letter: str) -> None:
        """The next letter. Raises NotJSON."""
        if self._unicode:
            self._push_hex(letter)
        elif self._json.state == "escape":
            self._push_escape(letter)
        elif self._word:
            self._push_word(letter)
        elif self._comma:
            self._push_behind_comma(letter)
        else:
            self._push(letter)

    def close(self) -> bool:
        """The text ends here. Close what is open, if nothing but closing brackets is missing."""
        if self._word:
            if self._word not in _PYTHON:
                return False
            self._end_word()
        state = self._json.state
        if self._comma or not (
            state in ("comma", "key or end", "value or end") or self._json.scalar_is_whole
        ):
            return False
        while self._json.brackets:
            self._write(_CLOSERS[self._json.brackets[-1]])
        return True

    def _push(self, letter: str) -> None:
        json = self._json
        if json.state in ("value", "value or end") and letter in "TFN":
            self._word = letter
            return
        if letter == "," and json.scalar_is_whole:
            json.end_scalar()
        if letter == "," and json.state == "comma":
            self._comma.append(letter)
            return
        if self._line_ended and letter in _BEGINS[json.brackets[-1]]:
            self._write(",")
            self._line_ended = False
            self._push(letter)
            return
        self._write(letter)
        self._line_ended = json.state == "comma" and (self._line_ended or letter == "\n")

    def _push_behind_comma(self, letter: str) -> None:
        if letter in _SPACE:
            self._comma.append(letter)
            return
        comma, self._comma, self._line_ended = self._comma, [], False
        if letter in "}]":
            self._out += comma[1:]
        else:
            for each in comma:
                self._write(each)
        self._push(letter)

    def _push_escape(self, letter: str) -> None:
        if letter == "u":
            self._unicode = letter
        elif letter in _ESCAPES:
            self._write(letter)
        else:
            self._double_backslash()
            self._write(letter)

    def _push_hex(self, letter: str) -> None:
        if letter not in _HEX:
            seen, self._unicode = self._unicode, ""
            self._double_backslash()
            for each in seen:
                self._write(each)
            self.push(letter)
            return
        self._unicode += letter
        if len(self._unicode) == 5:
            for each in self._unicode:
                self._write(each)
            self._unicode = ""

    def _double_backslash(self) -> None:
        """The last letter was one, and stands for itself."""
        self._write("\\")

    def _push_word(self, letter: str) -> None:
        if letter.isalpha():
            self._word += letter
            if not any(word.startswith(self._word) for word in _PYTHON):
                raise NotJSON
        else:
            self._end_word()
            self._push(letter)

    def _end_word(self) -> None:
        word, self._word = self._word, ""
        if word not in _PYTHON:
            raise NotJSON
        for each in _PYTHON[word]:
            self._write(each)

    def _write(self, letter: str) -> None:
        self._out.append(self._json.push(letter))


def repaired_object(text: str) -> str:
    """The JSON object that is all of `text`, without the space around it. Raises NotJSON."""
    scanner = RepairingScanner()
    for letter in text.strip():
        if scanner.done:
            raise NotJSON
        scanner.push(letter)
    if not scanner.done:
        raise NotJSON
    return sendable(scanner.take())
