"""Calls written as JSON: `{"name": …, "arguments": {…}}`.

Hermes' `<tool_call>` blocks, Llama 3's bare objects, the array that a grammar forces. The arguments
are the model's own letters. They are passed on as they come where a grammar makes them exact and
somebody wants that; else the call is, when it is whole and JSON, or can be repaired to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, Protocol

from worker.output.tools.calls import CallCollector, ReaderEnd, arguments_text, read_calls
from worker.output.tools.json_repair import RepairingScanner
from worker.output.tools.json_scanner import JSONScanner, NotJSON, sendable

_ARGUMENTS = ("arguments", "parameters")
_CLOSERS = "}] \n\r\t"
_UNMARKED_KEYS = frozenset(("name", "type", "id", *_ARGUMENTS))


class BrokenCall(Exception):
    """What was to be a call is none: `rest` is the text from the letter on that told.

    `opened`: a part of it has been passed on as a call and stays.
    """

    def __init__(self, rest: str, *, opened: bool) -> None:
        super().__init__()
        self.rest = rest
        self.opened = opened


class JSONReader(Protocol):
    """Reads one call that is JSON."""

    def feed(self, text: str) -> tuple[bool, str]:
        """(whether the call is complete, the rest of the text). Raises BrokenCall."""

    def finish(self, cut: bool) -> bool:
        """The answer is over (`cut`: by its length). Whether any of the call has been told."""

    @property
    def raw(self) -> str:
        """The text so far, as long as none of it has been passed on as a call."""

    @property
    def may_end(self) -> bool:
        """Whether it is a call as soon as its brackets are closed."""


class ArgumentsReader:
    """A `JSONReader` of a call's arguments alone, whose name is known: one JSON object."""

    def __init__(self, calls: CallCollector, name: str) -> None:
        self._calls = calls
        self._name = name
        self._json = JSONScanner()
        self._held: list[str] = []
        """What is not told as it grows."""
        self._space: list[str] = []
        self.may_end = False
        """Whether it has begun."""
        if calls.growing:
            calls.open(name)

    def feed(self, text: str) -> tuple[bool, str]:
        out: list[str] = []
        for at, letter in enumerate(text):
            if not self.may_end:
                if letter.isspace():
                    self._space.append(letter)
                    continue
                if letter != "{":
                    raise BrokenCall(text[at:], opened=False)
                self.may_end = True
            try:
                out.append(self._json.push(letter))
            except NotJSON:
                self._tell("".join(out))
                if self._calls.growing:
                    self._calls.close(broken=True)
                raise BrokenCall(text[at:], opened=self._calls.growing) from None
            if self._json.done:
                self._tell("".join(out))
                if self._calls.growing:
                    self._calls.close()
                else:
                    self._calls.add(self._name, "".join(self._held))
                return True, text[at + 1 :]
        self._tell("".join(out))
        return False, ""

    def _tell(self, text: str) -> None:
        if self._calls.growing:
            self._calls.arguments(text)
        else:
            self._held.append(text)

    @property
    def raw(self) -> str:
        return "".join(self._space + self._held)

    def finish(self, cut: bool) -> bool:
        told = self.may_end and self._calls.growing
        if told:
            self._calls.close(broken=True)
        return told


class CallObjectReader:
    """A `JSONReader` of one call as a JSON object, keys in any order.

    It is passed on as a call once its name is known and its arguments begin: then it hardly can be
    anything else. What comes before is in `raw`, for the case that it can. `unmarked`: nothing but
    the object itself says that it is a call, so it must have both and no key that calls don't have.
    """

    def __init__(self, calls: CallCollector, *, unmarked: bool) -> None:
        self._calls = calls
        self._unmarked = unmarked
        self._json = JSONScanner()
        self._raw: list[str] = []
        self._name: str | None = None
        self._given: str | None = None
        """The arguments as JSON text, once they are complete, unless they were passed on."""
        self._key = ""
        self._part: list[str] | None = None
        """The letters of the key or value at depth 1 that is being read."""
        self._passing = False
        """Whether the value that is being read is passed on as it comes."""
        self.opened = False

    @property
    def raw(self) -> str:
        return "".join(self._raw)

    @property
    def may_end(self) -> bool:
        given = self._given is not None or self._key in _ARGUMENTS
        return given and self._name is not None

    def feed(self, text: str) -> tuple[bool, str]:
        passed: list[str] = []
        for at, letter in enumerate(text):
            try:
                self._step(letter, passed)
            except (ValueError, TypeError, RecursionError):
                self._calls.arguments("".join(passed))
                if self.opened:
                    self._calls.close(broken=True)
                raise BrokenCall(text[at:], opened=self.opened) from None
            if self._json.done:
                self._calls.arguments("".join(passed))
                if self.opened:
                    self._calls.close()
                return True, text[at + 1 :]
        self._calls.arguments("".join(passed))
        return False, ""

    def finish(self, cut: bool) -> bool:
        if self.opened:
            self._calls.close(broken=True)
        elif cut and self._calls.demanded and self._name is not None:
            self._calls.cut(self._name)
        return self.opened

    def _step(self, letter: str, passed: list[str]) -> None:
        before, depth = self._json.state, self._json.depth
        written = self._json.push(letter)
        after = self._json.state
        if before == "scalar" and depth == 1 and after != "scalar":
            self._end_part(is_key=False)  # a number ends with the letter before
        elif self._part is not None:
            self._part.append(written)
            if self._passing:
                passed.append(written)
            if self._json.depth == 1 and after in ("colon", "comma"):
                self._end_part(is_key=after == "colon")
        elif depth == 1 and after != before and before in ("key", "key or end", "value"):
            if not self._json.done:
                self._part = [written]
            if before == "value" and letter == "{" and self._may_pass():
                assert self._name is not None
                self._calls.open(self._name)
                self.opened = self._passing = True
                self._raw.clear()
                passed.append(written)
        if self.opened:
            return
        if self._json.done:
            self._end_unopened(letter)
        self._raw.append(letter)

    def _may_pass(self) -> bool:
        if self._key not in _ARGUMENTS or self._name is None:
            return False
        if self.opened or self._given is not None:
            raise NotJSON  # arguments twice: which ones are meant?
        return self._calls.growing

    def _end_part(self, *, is_key: bool) -> None:
        assert self._part is not None
        text, self._part = "".join(self._part), None
        if is_key:
            self._key = json.loads(text)
            if self._unmarked and self._key not in _UNMARKED_KEYS:
                raise NotJSON
        elif self._passing:
            self._passing = False
        elif self._key == "name":
            name = json.loads(text)
            if not isinstance(name, str) or not name or self._name is not None:
                raise NotJSON
            if not self._calls.knows(name):
                raise NotJSON
            self._name = sendable(name)
        elif self._key in _ARGUMENTS:
            if self.opened or self._given is not None:
                raise NotJSON
            # An object's own letters count; a string or null has to be read first.
            self._given = text if text[0] == "{" else arguments_text(json.loads(text))

    def _end_unopened(self, letter: str) -> None:
        """The object is complete and was not passed on: its arguments are absent, no object, or
        stood before its name."""
        if self._name is not None and not (self._unmarked and self._given is None):
            self._calls.add(self._name, self._given or "{}")
            return
        if self._unmarked:
            raise NotJSON
        found = read_calls(json.loads(self.raw + letter, strict=False))
        if not all(self._calls.knows(name) for name, _ in found):
            raise NotJSON
        for name, arguments in found:
            self._calls.add(name, arguments)


class RepairedReader:
    """A `JSONReader` that has another one read what a call may be repaired to.

    One of `ends` behind an open bracket, or the answer's end, stands for the brackets that are
    missing.
    """

    def __init__(self, reader: JSONReader, ends: Sequence[str]) -> None:
        self._reader = reader
        self._ends = tuple(end for end in ends if end)
        self._json = RepairingScanner()
        self._raw: list[str] = []
        self._ending = ""
        """The beginning of an end behind an open bracket."""

    @property
    def raw(self) -> str:
        return "".join(self._raw) + self._ending

    @property
    def may_end(self) -> bool:
        return self._reader.may_end

    def feed(self, text: str) -> tuple[bool, str]:
        if self._ending:
            text, self._ending = self._ending + text, ""
            return self._end(text)
        at = 0
        while at < len(text):
            size = 1
            if self._json.begun or not text[at].isspace():
                try:
                    size = self._json.push_plain(text, at)
                    if not size:
                        self._json.push(text[at])
                        size = 1
                    complete, _ = self._reader.feed(self._json.take())
                except NotJSON:
                    return self._end(text[at:])
                except BrokenCall:
                    raise BrokenCall(text[at:], opened=False) from None
                if complete:
                    self._raw.append(text[at])
                    return True, text[at + 1 :]
            self._raw.append(text[at : at + size])
            at += size
        return False, ""

    def finish(self, cut: bool) -> bool:
        return not (cut or self._ending) and self._close()

    def _end(self, text: str) -> tuple[bool, str]:
        """With `text` the JSON can't go on."""
        if text.startswith(self._ends) and self._close():
            return True, text
        if any(len(text) < len(end) and end.startswith(text) for end in self._ends):
            self._ending = text
            return False, ""
        raise BrokenCall(text, opened=False)

    def _close(self) -> bool:
        """Close the call's brackets, if nothing else is missing."""
        try:
            self._reader.feed(self._json.take())
            if not (self._reader.may_end and self._json.close()):
                return False
            return self._reader.feed(self._json.take())[0]
        except (NotJSON, BrokenCall):
            return False


def call_json_reader(calls: CallCollector, reader: JSONReader, ends: Sequence[str]) -> JSONReader:
    """What a grammar holds to needs no repair."""
    return reader if calls.growing else RepairedReader(reader, ends)


class JSONCallsReader:
    """Call objects one after another, or an array of them, up to the marker `end` if there is one.

    `start` is the marker they began with. `separators` may stand between objects outside of an
    array.
    """

    def __init__(
        self, calls: CallCollector, start: str = "", end: str = "", *, separators: str = ""
    ) -> None:
        self._calls = calls
        self._start, self._end = start, end
        self._separators = separators
        self._object: JSONReader | None = None
        self._list: Literal["none", "open", "closed"] = "none"
        self._first = self._expected = True
        """Whether no call is complete yet; whether an object must come next."""
        self._between: list[str] = []
        """What came since the start or the last complete call, but for the object being read."""
        self._closing = ""
        """The beginning of the end marker, and brackets before it."""

    def feed(self, text: str) -> ReaderEnd | None:
        while text:
            ended, text = self._seek(text) if self._object is None else self._read(text)
            if ended:
                return ended
        return None

    @property
    def object_expected(self) -> bool:
        return not (self._object or self._closing or self._list == "closed")

    def finish(self, cut: bool) -> ReaderEnd:
        if self._object is None:
            return ReaderEnd(self._unread() if self._first else "", "")
        if self._object.finish(cut):
            return ReaderEnd("", "")
        return ReaderEnd(self._unread() + self._object.raw, "")

    def _unread(self) -> str:
        between = "".join(self._between)
        return self._start + between if self._first else between

    def _read(self, text: str) -> tuple[ReaderEnd | None, str]:
        assert self._object is not None
        try:
            complete, text = self._object.feed(text)
        except BrokenCall as broken:
            if broken.opened:
                return ReaderEnd("", broken.rest), ""
            return ReaderEnd(self._unread() + self._object.raw, broken.rest), ""
        if complete:
            self._object, self._between = None, []
            self._first = self._expected = False
            if self._calls.full:
                return ReaderEnd("", text), ""
        return None, text

    def _seek(self, text: str) -> tuple[ReaderEnd | None, str]:
        """Between objects: what the next letter means."""
        letter, rest = text[0], text[1:]
        if self._closing:
            return self._close(text)
        if letter.isspace():
            pass
        elif letter == "{" and (self._expected or self._list == "none"):
            # Nothing but the object itself says so when no marker does.
            reader = CallObjectReader(self._calls, unmarked=not self._start)
            self._object = call_json_reader(self._calls, reader, (self._end, self._start))
            return None, text
        elif letter == "[" and self._first and not "".join(self._between).strip():
            self._list = "open"
        elif letter == "]" and self._list == "open" and not self._expected:
            self._list = "closed"
        elif letter in ("," if self._list == "open" else self._separators) and not self._expected:
            self._expected = True
        elif self._first:
            return ReaderEnd(self._unread(), text), ""
        else:
            return self._close(text)
        self._between.append(letter)
        return None, rest

    def _close(self, text: str) -> tuple[ReaderEnd | None, str]:
        """After the last call: the end marker, perhaps behind brackets that are one too many, or
        the answer goes on without one."""
        text, self._closing = self._closing + text, ""
        end = text.lstrip(_CLOSERS)
        if self._end and end.startswith(self._end):
            return ReaderEnd("", end[len(self._end) :]), ""
        if self._end and self._end.startswith(end):
            self._closing = text
            return None, ""
        return ReaderEnd("", text), ""
