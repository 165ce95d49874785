"""The calls of one answer, whatever the form they were written in, and the readers' contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from supervisor.wire.frames import Call
from worker.output.text import StringSearch
from worker.output.tools.json_repair import repaired_object
from worker.output.tools.json_scanner import NotJSON, dump, sendable

Parser = Callable[[str, Any], Any]
"""mlx-lm's `parse_tool_call`: (text between the markers, tools) → {"name", "arguments"} or a list
of them. It raises whatever a regex or a conversion leads it to."""
REREAD = 64 * 1024
"""Characters in one answer: 0.2 s."""


class CallCollector:
    """Collects the pieces of the answer's calls, in order, numbered from 0.

    `demanded`: the answer is nothing but calls, so that what is cut is one as soon as it has a
    name. `held`: whether a grammar holds to calls that are JSON; asked when the first one begins.
    `names`: of the functions that may be called; none = all.
    """

    def __init__(
        self,
        *,
        parallel: bool,
        demanded: bool = False,
        held: Callable[[], bool] = lambda: True,
        names: Collection[str] = (),
    ) -> None:
        self._parallel = parallel
        self._names = frozenset(names)
        self.demanded = demanded
        self._held = held
        self._pieces: list[Call] = []
        self._next = 0
        self._name: str | None = None
        """The name of the open call until its first piece tells it."""
        self.complete = 0
        """Calls whose arguments are one whole JSON object."""

    @cached_property
    def growing(self) -> bool:
        """Whether calls are told as they grow, because they will become calls; others are told when
        they are whole."""
        return self.demanded or self._held()

    @property
    def full(self) -> bool:
        """One call is all that was asked for, and it is there."""
        return not self._parallel and self.complete > 0

    def knows(self, name: str) -> bool:
        """Whether there is such a function: what calls another one is no call."""
        return not self._names or name in self._names

    def open(self, name: str) -> None:
        self._name = name

    def arguments(self, text: str) -> None:
        """The next piece of the open call's arguments."""
        if text:
            self._pieces.append(Call(self._next, self._name or "", text))
            self._name = None

    def close(self, *, broken: bool = False) -> None:
        """The open call ends. Broken: its pieces are no JSON object, so it does not count."""
        self._next += 1
        self.complete += not broken

    def cut(self, name: str) -> None:
        """The answer ends before the arguments of a call."""
        self._pieces.append(Call(self._next, name, ""))
        self.close(broken=True)

    def add(self, name: str, arguments: str) -> None:
        self.open(name)
        self.arguments(arguments)
        self.close()

    def take(self) -> tuple[Call, ...]:
        """The pieces since the last time."""
        if not self._pieces:
            return ()
        pieces, self._pieces = tuple(self._pieces), []
        return pieces


class ReaderEnd(NamedTuple):
    """A reader is through. `lost` turned out to be no call: it is the answer's text, markers
    included. `rest` was not looked at."""

    lost: str
    rest: str


class Rereading:
    """Calls may stand in what was taken for another one's argument, if a string in it has no end:
    from the next marker on it is read again. So often at most that no answer takes long."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._search = StringSearch(markers)
        self._left = REREAD

    def split(self, lost: str) -> tuple[str, str]:
        """(what is text, what has to be read again)."""
        found = self._search.find(lost[1:]) if lost else None
        if found is None:
            return lost, ""
        at = found.start + 1
        self._left -= len(lost) - at
        return (lost, "") if self._left < 0 else (lost[:at], lost[at:])


class CallReader(Protocol):
    """Reads calls from where they begin. Tells them to `CallCollector`; loses no letter."""

    def feed(self, text: str) -> ReaderEnd | None:
        """None while it goes on."""

    def finish(self, cut: bool) -> ReaderEnd:
        """The answer is over (`cut`: by its length)."""

    @property
    def object_expected(self) -> bool:
        """Whether one more call object may begin with the next letter that is no white space."""


class WholeTextReader:
    """A form that only its whole text tells: mlx-lm's parser reads it when the end marker came.

    With `end` "" the answer's end is the end.
    """

    object_expected = False

    def __init__(
        self, calls: CallCollector, start: str, end: str, parse: Parser, tools: Any
    ) -> None:
        self._calls = calls
        self._start, self._end = start, end
        self._parse, self._tools = parse, tools
        self._text: list[str] = []
        self._search = StringSearch((end,))
        self._held = ""

    def feed(self, text: str) -> ReaderEnd | None:
        text = self._held + text
        if found := self._search.find(text):
            self._text.append(text[: found.start])
            return ReaderEnd(self._read(self._end), text[found.end :])
        decided, self._held = self._search.split(text)
        self._text.append(decided)
        return None

    def finish(self, cut: bool) -> ReaderEnd:
        self._text.append(self._held)
        # Some models end the answer where the end marker should be.
        return ReaderEnd(self._start + "".join(self._text) if cut else self._read(""), "")

    def _read(self, end: str) -> str:
        text = "".join(self._text)
        try:
            found = read_calls(self._parse(text.strip(), self._tools))
        except Exception:  # noqa: BLE001
            # Parsers raise anything: what they read is a model's words, not a program's.
            return self._start + text + end
        known = [each for each in found if self._calls.knows(each[0])]
        if not known:
            return self._start + text + end
        for name, arguments in known:
            if self._calls.full:
                break
            self._calls.add(name, arguments)
        return ""


def read_calls(parsed: Any) -> list[tuple[str, str]]:
    """(name, arguments as JSON text) of each call in what a parser made. Raises NotJSON and what
    values that JSON does not know raise."""
    found = parsed if isinstance(parsed, list) else [parsed]
    if not found:
        raise NotJSON
    return [_read_call(call) for call in found]


def _read_call(call: Any) -> tuple[str, str]:
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict):
        raise NotJSON
    name = call.get("name")
    if not isinstance(name, str) or not name:
        raise NotJSON
    arguments = call.get("arguments", call.get("parameters"))
    return sendable(name), arguments_text(arguments)


def arguments_text(arguments: Any) -> str:
    """A JSON object's text. Arguments may be absent, or an object's JSON text as a string.

    Raises NotJSON, and ValueError or TypeError for values that JSON does not know.
    """
    if arguments is None or arguments == "":
        return "{}"
    if isinstance(arguments, str):
        return repaired_object(arguments)
    if not isinstance(arguments, dict):
        raise NotJSON
    return dump(arguments)
