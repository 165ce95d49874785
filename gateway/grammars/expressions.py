"""Regular expressions, in the part of their language that all dialects share.

Python's `re`, ECMA-262, Rust's `regex` and llguidance read the same text differently: sets within
brackets, what a `{` without a count means, which letters `\\w` has. What is made here means to all
of them what it meant to the client's dialect or less, so that an answer that matches it matches
what was sent, whoever checks; what can't be said so is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.grammars.faults import GrammarFault

MAX_PATTERN = 32 * 1024
"""Characters of an expression."""
_MAX_DEPTH = 50
"""Groups within each other: compilers recurse into them."""
_SPECIAL = frozenset("\\.+*?()|[]{}^$/-&~#")
_SPACE = " \\t\\n\\r\\f\\v"
_CLASSES = {
    # What each stands for in brackets, and in brackets that are negated.
    "d": ("0-9", "\\d"),
    "w": ("0-9A-Za-z_", "\\w\\p{N}"),
    "s": (_SPACE, "\\s\\x1c-\\x1f\ufeff"),
    "D": ("\\D", "\\x00-\\/:-\U0010ffff"),
    "W": ("\\W", "\\x00-\\/:-@\\[-\\^`\\{-\U0010ffff"),
    "S": (
        "\\x00-\\x08\\x0e-\\x1b!-\\x7f\x80-\x84\x86-\x9f\xa1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e"
        "\u2030-\u205e\u2060-\u2fff\u3001-\ufefe\uff00-\U0010ffff",
        "\\x00-\\x08\\x0e-\\x1f!-\U0010ffff",
    ),
}
"""Python and Rust count the letters, digits and blanks of all scripts, ECMA-262 and Python's bytes
ASCII's, and no two agree on all of them. What is asked for has the fewest, what is excluded the
most."""
_ALL = "\\x00-\U0010ffff"
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a"}
_CODE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x\{([0-9a-fA-F]{1,6})\})"
)
_PROPERTY = re.compile(r"\\[pP](?:[A-Z]|\{\^?[A-Za-z_]{1,40}(?:=[A-Za-z_]{1,40})?\})")
_COUNT = re.compile(r"\{([0-9]*)(,?)([0-9]*)\}")
_DIGITS_MAX = 6
"""Of a count. What can be compiled has far smaller ones, and Python reads no number of thousands of
digits."""
_GROUP = re.compile(r"\(\?(?:P?<[A-Za-z_]\w{0,63}>|([is]*)(-[is]+)?(:|\)))")
_ANCHORS = "anchors (`^`, `$`, `\\b`) within it"
_LOOK = ("(?=", "(?!", "(?<=", "(?<!")


def escaped(text: str) -> str:
    """The expression that matches `text`."""
    return "".join(map(_letter, text))


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return f"\\{letter}"
    code = ord(letter)
    if code < 0x20 or code == 0x7F:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter, f"\\x{code:02x}")
    return letter


def plain(pattern: str, *, whole: bool = True) -> str:
    """`pattern` in the language that all share. `whole`: it may have anchors where they change
    nothing because all of the text is matched. Raises GrammarFault."""
    if len(pattern) > MAX_PATTERN:
        raise GrammarFault(
            f"a regular expression may have {MAX_PATTERN} characters, and this one has "
            f"{len(pattern)}"
        )
    return _Reader(pattern, whole).read()


@dataclass(slots=True)
class _Level:
    """A group, or the outermost level: what anchors mean in it."""

    begins: bool
    """Whether its alternatives begin where the text does."""
    over: bool = False
    """Whether an anchor of the end stands in one of its alternatives."""
    anchored: bool = False
    """Whether there is any anchor in it."""


class _Reader:
    def __init__(self, pattern: str, whole: bool) -> None:
        self._text = pattern
        self._whole = whole
        self._at = 0
        self._made: list[str] = []
        self._end = ""
        self._levels = [_Level(True)]
        self._begins = True
        """Whether the place is the text's beginning."""
        self._over = False
        """Whether it is behind an anchor of the end."""
        self._repeatable = False
        """Whether a count may follow."""
        self._anchored = False
        """Whether what it would count holds an anchor."""

    def read(self) -> str:
        text = self._text
        while self._at < len(text):
            here = text[self._at]
            if here == "\\":
                self._escape()
            elif here == "[":
                self._add(self._brackets())
            elif here == "(":
                self._open()
            elif here == ")":
                self._close()
            elif here == "|":
                self._made.append("|")
                self._at += 1
                level = self._levels[-1]
                level.over = level.over or self._over
                self._begins, self._over, self._repeatable = level.begins, False, False
            elif here in "*+?{":
                self._repeat()
            elif here in "^$":
                self._anchor(1)
            else:
                # `]` and `}` that close nothing are letters.
                self._add(here if here == "." else _letter(here))
                self._at += 1
        if len(self._levels) > 1:
            raise _broken("a group that is not closed")
        return "".join(self._made) + self._end

    def _add(self, made: str) -> None:
        if self._over:
            raise GrammarFault(_ANCHORS)
        self._made.append(made)
        self._begins, self._repeatable, self._anchored = False, True, False

    def _anchor(self, length: int) -> None:
        """Those at both ends say what holds anyhow."""
        sign = self._text[self._at : self._at + length]
        begins = sign in ("^", "\\A")
        if not self._whole or (begins and not self._begins):
            raise GrammarFault(_ANCHORS)
        self._over = self._over or not begins
        self._levels[-1].anchored = True
        self._at += length
        self._repeatable = False

    def _escape(self) -> None:
        text, at = self._text, self._at
        if at + 1 == len(text):
            raise _broken("it ends within an escape")
        letter = text[at + 1]
        if letter in "AzZ":
            self._anchor(2)
        elif letter in "bB":
            raise GrammarFault(_ANCHORS)
        elif letter in _CLASSES:
            negative, positive = _CLASSES[letter.lower()][1], _CLASSES[letter][0]
            self._add(f"[^{negative}]" if letter.isupper() else f"[{positive}]")
            self._at += 2
        elif letter in "123456789k":
            raise GrammarFault("backreferences in it")
        else:
            made, letter = self._escaped()
            self._add(made or _letter(letter))

    def _escaped(self) -> tuple[str, str]:
        """An escape that means ("", a letter) or (a property, ""), in brackets too."""
        text, at = self._text, self._at
        letter = text[at + 1]
        if code := _CODE.match(text, at):
            self._at = code.end()
            number = int(next(filter(None, code.groups())), 16)
            if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
                raise _broken("a code that is no character")
            return "", chr(number)
        if found := _PROPERTY.match(text, at):
            self._at = found.end()
            return found[0], ""
        self._at += 2
        if letter in _CONTROLS:
            return "", _CONTROLS[letter]
        if letter.isalnum() and (letter != "0" or text[at + 2 : at + 3].isdigit()):
            raise GrammarFault("an escape that dialects read differently, or do not know")
        return "", "\0" if letter == "0" else letter

    def _brackets(self) -> str:
        text = self._text
        self._at += 1
        parts: list[_Member] = []
        classes: set[str] = set()
        negated = text[self._at : self._at + 1] == "^"
        self._at += negated
        first = self._at
        while (here := text[self._at : self._at + 1]) != "]" or self._at == first:
            if not here:
                raise _broken("brackets that are not closed")
            if here == "]":
                raise GrammarFault("brackets that are empty, or an unescaped `]` in them")
            if here == "[" or text[self._at : self._at + 2] in ("&&", "--", "~~"):
                raise GrammarFault("brackets with `[`, `&&`, `--` or `~~` in them: escape these")
            if here != "\\":
                parts.append(("", here, here == "-"))
                self._at += 1
                continue
            if self._at + 1 == len(text):
                raise _broken("it ends within an escape")
            letter = text[self._at + 1]
            if letter in _CLASSES:
                parts.append((_CLASSES[letter][negated], "", False))
                classes.add(letter)
                self._at += 2
            elif letter == "b":
                parts.append(("", "\b", False))
                self._at += 2
            else:
                parts.append((*self._escaped(), False))
        self._at += 1
        if any(letter.swapcase() in classes for letter in classes):
            # As in `[\\s\\S]`, which is how ECMA-262 says it.
            if negated:
                raise _broken("brackets that no letter is in")
            return f"[{_ALL}]"
        return f"[{'^' * negated}{''.join(_members(parts))}]"

    def _open(self) -> None:
        text, at = self._text, self._at
        if self._over:
            raise GrammarFault(_ANCHORS)
        if len(self._levels) > _MAX_DEPTH:
            raise GrammarFault(f"groups within each other, more than {_MAX_DEPTH}")
        self._repeatable = False
        if text[at + 1 : at + 2] != "?":
            self._made.append("(?:")
            self._at += 1
            self._levels.append(_Level(self._begins))
            return
        if text.startswith(_LOOK, at):
            raise GrammarFault("look-around in it")
        found = _GROUP.match(text, at)
        if found is None:
            raise GrammarFault("a group or flags that dialects read differently, or do not know")
        self._at = found.end()
        on, off, sign = found[1] or "", found[2] or "", found[3]
        if sign == ")":
            # Flags for all that follows: a Python of today takes them at the very beginning alone.
            if at or off or not on:
                raise GrammarFault("flags behind its beginning")
            self._end = ")"
        else:
            self._levels.append(_Level(self._begins))
        self._made.append(f"(?{on}{off}:")

    def _close(self) -> None:
        if len(self._levels) == 1:
            raise _broken("a group that is not opened")
        level = self._levels.pop()
        outer = self._levels[-1]
        self._anchored = level.anchored
        outer.anchored = outer.anchored or level.anchored
        self._over = self._over or level.over
        self._made.append(")")
        self._at += 1
        self._begins, self._repeatable = False, True

    def _repeat(self) -> None:
        text, here = self._text, self._text[self._at]
        if here == "{":
            found = _COUNT.match(text, self._at)
            if found is None or not (found[1] or found[3]):
                self._add("\\{")
                self._at += 1
                return
            if max(len(found[1]), len(found[3])) > _DIGITS_MAX:
                raise GrammarFault(f"a repetition of more than {_DIGITS_MAX} digits")
            least, most = int(found[1] or 0), int(found[3]) if found[3] else None
            if not found[2]:
                most = least
            if most is not None and least > most:
                raise _broken("a repetition whose bounds exclude each other")
            sign = (
                f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
            )
            self._at = found.end()
        else:
            sign = here
            self._at += 1
        if not self._repeatable:
            raise _broken("a repetition of nothing")
        if self._anchored:
            raise GrammarFault(_ANCHORS)
        # What is lazy matches the same whole texts.
        if text[self._at : self._at + 1] == "?":
            self._at += 1
        elif text[self._at : self._at + 1] in ("+", "*", "{") and (
            text[self._at] != "{" or _COUNT.match(text, self._at)
        ):
            raise GrammarFault("a repetition of a repetition without a group between")
        self._made.append(sign)
        self._repeatable = False


_Member = tuple[str, str, bool]
"""In brackets: what stands for several letters, or the letter that it is; whether it is a hyphen
that nothing escapes."""


def _members(parts: list[_Member]) -> Iterator[str]:
    at = 0
    while at < len(parts):
        made, letter, _ = parts[at]
        if at + 2 < len(parts) and parts[at + 1][2]:
            last = parts[at + 2][1]
            if not letter or not last:
                raise GrammarFault("a range in brackets that begins or ends with a class")
            if letter > last:
                raise _broken("a range in brackets that is none")
            yield f"{_letter(letter)}-{_letter(last)}"
            at += 3
        else:
            yield made or _letter(letter)
            at += 1


def _broken(what: str) -> GrammarFault:
    return GrammarFault(what, broken=True)
