"""What a dead process wrote to stderr, without what a report must not hold. Pure.

Three things never reach a report: keys, prompts, arguments of tools. Workers do not log them, but
an exception may quote the value that it could not handle, and a native library anything at all. So
nothing is shown because it looks harmless; it is shown because its form is known:

* lines of our own logs, and of the runtime: without long quotes;
* stacks, and in tracebacks the frames and lines of source: as they are;
* messages of exceptions: whole where their type or their source never quotes a request; else what
  `diagnosis` knows in them;
* any other line: what `diagnosis` knows in it, else not at all.

The stderr file in the logs keeps everything.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from supervisor.crashes.diagnosis import HARMLESS_EXCEPTIONS, known_part

QUOTE_MAX = 40
"""Characters that a quoted string may have: names of functions and types are shorter."""
LINE_MAX = 2000
HIDDEN = "[redacted]"

_SECRET = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{8,}|\bhf_\w{8,}|\bgh[opsu]_\w{8,}|\bxox[a-z]-[\w-]{8,}"
    r"|\bAKIA[0-9A-Z]{12,}|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"
)
_LABELLED = re.compile(
    r"(\bbearer\s+|authorization[\"']?\s*[:=]\s*[\"']?(?:[a-z]+\s+)?"
    r"|(?:api[_-]?key|token|secret|passw(?:or)?d|credentials?)[\"']? ?[:=]\s*[\"']?)[^\s\"',;]+",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(://)[^/\s@]+@")
_QUOTED = re.compile(
    r'"(?:\\.|[^"\\])*\\?(?:"|$)|(?<!\w)\'(?:\\.|[^\'\\])*\\?(?:\'|$)|`(?:\\.|[^`\'\\])*\\?(?:[`\']|$)'
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\S\n\t ]|[\x00-\x08\x0e-\x1f\x7f-\x9f]")

_LOG_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} (?:DEBUG|INFO|WARNING|ERROR|CRITICAL) "
)
_RUNTIME = re.compile(
    r"libc\+\+abi: |terminate called |  what\(\):  |-\[_?\w+ \w+|Assertion failed: "
    r"|\S+( \S+)?:\d+: failed assertion |note: run with |dyld\[|objc\[|Traceback \(most recent"
    r"|During handling of the above |The above exception was "
)
"""How lines of the runtime begin. Like log lines and stacks they end an exception's message."""
_NATIVE = re.compile(
    r"(?:free|realloc|malloc|munmap_chunk)\(\): |double free or corruption"
    r"|corrupted (?:size|double)"
    r"|\*\*\* [a-z ]+ detected \*\*\*|\S+\(\d+,0x[0-9a-f]+\) malloc: "
    r"|\S+: \S+:\d+: .*: Assertion `[^']*' failed\.$|  (?:Referenced from|Reason): "
    r"|\S+[/\\]python[\d.]*: No module named [\w.]+$"
)
"""What else the C library, the loader and the interpreter print; it quotes no request."""
_THROWN = re.compile(r"(libc\+\+abi: terminating .*? of type [\w:]+: |  what\(\):  )(.*)")
"""An exception of C++ that ends the process, then its message."""
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception)(?:: |$)")
"""An exception of Python that is printed without a traceback."""
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):")
_FRAME = re.compile(r'  File "([^"]+)", line \d+, in ')
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_PANIC = re.compile(r"thread '.{0,80}' (?:\(\d+\) )?panicked at ")
_STACK = re.compile(
    r"Fatal Python error: [A-Za-z -]{1,40}$|Timeout \(\d+:\d\d:\d\d\)!$"
    r"|(?:Current thread|Thread) 0x[0-9a-f]+.{0,80} \(most recent call first\):$"
    r"|Stack \(most recent call first\):$"
    r"|Current thread's C stack trace \(most recent call first\):$|Extension modules: "
)
_OF_STACK = re.compile(r"\s*$|  (?:File|Binary file) |  \.\.\.$|  <|  Garbage-collecting")

_TAGGED = re.compile(
    r"\[(?:METAL|Errno \d+|(?!user\]|system\]|assistant\])[a-z]\w*(?:::\w+)*|[A-Z]\w*(?:::\w+)+)\] "
)
"""MLX's `[matmul] …` and `[Reshape::vmap] …`, Python's `[Errno 28] …`; no template's `[INST]`."""
_HARMLESS = (_LOG_LINE, _RUNTIME, _TAGGED, _NATIVE, _RAISED, _PANIC)
"""Forms of lines outside tracebacks and stacks that quote no request, or of which is known how
much does."""
_NUMERIC = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?:mlx[/\\]|mlx_lm[/\\](?:models[/\\]|generate\.py$))"
)
"""Files whose exceptions quote shapes and numbers, and no texts."""
_OF_PYTHON = frozenset(
    {
        "AttributeError",
        "ImportError",
        "IndexError",
        "MemoryError",
        "ModuleNotFoundError",
        "NameError",
        "RecursionError",
        "UnboundLocalError",
        "ZeroDivisionError",
    }
)
"""Types whose messages quote identifiers alone."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """What a report may show: the text, the stacks that faulthandler wrote, the last exception."""

    text: str
    stacks: str
    exception: str


class _Part(enum.Enum):
    """What a line belongs to."""

    TEXT = enum.auto()
    TRACEBACK = enum.auto()
    MESSAGE = enum.auto()
    """The further lines of an exception's or a panic's message."""
    STACK = enum.auto()


class Redactor:
    """`secrets` are values that must not be shown wherever they stand."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted({s for s in secrets if len(s) >= 8}, key=len, reverse=True)

    def redact(self, stderr: bytes, *, cut: bool = False) -> Redacted:
        """Never raises. `cut`: there was more before `stderr`, which may begin amid a message."""
        shown: list[str | None] = []
        """None = a line that is withheld."""
        stacks, exception = list[str](), ""
        part, file = (_Part.MESSAGE if cut else _Part.TEXT), ""
        for raw in stderr.decode("utf-8", "replace").split("\n"):
            line = _printable(raw)
            part = _part_of(line, part)
            if part is _Part.STACK:
                stacks.append(line)
            elif not line.strip():
                continue
            elif part is _Part.MESSAGE:
                shown.append(None)
            elif part is _Part.TEXT or _LOG_LINE.match(line):
                shown.append(self._text(line))
                if _RAISED.match(line) or _PANIC.match(line):
                    part = _Part.MESSAGE
            elif line.startswith((" ", "Traceback")):
                if frame := _FRAME.match(line):
                    file = frame[1]
                shown.append(self._without_keys(line) if _is_code(line) else None)
            else:
                line = _exception(self._without_keys(line), file)
                if line.partition(":")[0] not in HARMLESS_EXCEPTIONS:
                    exception = line
                shown.append(line)
                part = _Part.MESSAGE
        return Redacted("\n".join(_counted(shown)), "\n".join(stacks).strip("\n"), exception)

    def _text(self, line: str) -> str | None:
        """What may be shown of a line outside tracebacks and stacks; None = nothing."""
        if any(form.match(line) for form in _HARMLESS):
            return _harmless(self._without_keys(line))
        known = known_part(line, anywhere=True)
        return f"{known} ({len(line) - len(known)} characters withheld)" if known else None

    def _without_keys(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        line = _SECRET.sub(HIDDEN, line)
        line = _LABELLED.sub(rf"\1{HIDDEN}", line)
        return _IN_URL.sub(rf"\1{HIDDEN}@", line)


def _counted(shown: Iterable[str | None]) -> Iterator[str]:
    """The lines, with a note in place of those that are withheld."""
    for _, group in groupby(shown, lambda line: line is None):
        lines = list(group)
        yield from [_withheld(len(lines))] if lines[0] is None else filter(None, lines)


def _printable(raw: str) -> str:
    """The line without control characters, and of at most LINE_MAX."""
    line = raw if len(raw) <= LINE_MAX else f"{raw[:LINE_MAX]}…"
    return line if line.isprintable() else _CONTROL.sub("", line)


def _part_of(line: str, before: _Part) -> _Part:
    """What this line belongs to, where the line before belongs to `before`."""
    if _STACK.match(line):
        return _Part.STACK
    if _TRACEBACK.match(line):
        return _Part.TRACEBACK
    match before:
        case _Part.STACK if _OF_STACK.match(line):
            return _Part.STACK
        case _Part.TRACEBACK if line.strip() and not _RUNTIME.match(line):
            return _Part.TRACEBACK
        case _Part.MESSAGE if not (_LOG_LINE.match(line) or _RUNTIME.match(line)):
            return _Part.MESSAGE
    return _Part.TEXT


def _is_code(line: str) -> bool:
    """Whether a line inside a traceback is not an exception of a group, whose message it is."""
    return not line.lstrip().startswith(("|", "+"))


def _exception(line: str, file: str) -> str:
    """What may be shown of the line that ends a traceback, whose last frame is in `file`."""
    found = _EXCEPTION.fullmatch(line)
    if found is None:
        return _withheld(1)
    kind, message = found[1], found[2] or ""
    if not message:
        return kind
    whole = kind.rpartition(".")[2] in _OF_PYTHON or _NUMERIC.search(file) is not None
    return f"{kind}: {_unquoted(message) if whole else _message(message)}"


def _message(message: str) -> str:
    """What may be shown of an exception's message: all of one that a library has tagged as its own;
    of any other the beginning that the diagnosis knows, since the rest may quote a request."""
    if _TAGGED.match(message):
        return _unquoted(message)
    known = known_part(message)
    left = len(message) - len(known)
    if message[len(known) :] in ("", "."):
        return message
    return f"{known} ({left} characters withheld)".lstrip()


def _harmless(line: str) -> str:
    """What may be shown of a line whose form is `_HARMLESS`."""
    if _RAISED.match(line):
        return _exception(line, "")
    if thrown := _THROWN.fullmatch(line):
        return thrown[1] + _message(thrown[2])
    return _unquoted(line)


def _unquoted(line: str) -> str:
    """The line without its long quotes; but an assertion, which is quoted too, stays."""
    plain = _QUOTED.sub(_shortened, line)
    return line if plain != line and "failed assertion" in plain else plain


def _shortened(quoted: re.Match[str]) -> str:
    text = quoted[0]
    return text if len(text) <= QUOTE_MAX + 2 else f"{text[0]}…({len(text) - 2} characters)"


def _withheld(lines: int) -> str:
    return f"({lines} line{'s' if lines > 1 else ''} withheld: requests may be quoted there)"
