"""What a dead process wrote to stderr, made fit to be kept and shown. Pure.

Keys go, and so does whatever may quote a request: lines of no known form, quoted strings of some
length, and messages of exceptions that are not the runtime's own. Workers never log prompts, but an
exception may repeat the value that it stumbled over. The worker's own log file keeps everything.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.crashes.diagnosis import NOISE, known_part

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
_LABELS = (
    "bearer",
    "authorization",
    *(
        label + end
        for label in ("key", "token", "secret", "passwd", "password", "credential", "credentials")
        for end in ("=", ":", " =", " :", '"', "'")
    ),
)
"""One of them is in every line in which `_LABELLED` finds something, and searching for words is
many times as fast."""
_PREFIXES = ("sk-", "pk-", "rk-", "hf_", "gh", "xox", "AKIA", "eyJ")
"""The same for `_SECRET`."""
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
"""How lines begin that end an exception's message, beside log lines and stacks."""
_NATIVE = re.compile(
    r"(?:free|realloc|malloc|munmap_chunk)\(\): |double free or corruption|corrupted (?:size|double)"
    r"|\*\*\* [a-z ]+ detected \*\*\*|\S+\(\d+,0x[0-9a-f]+\) malloc: "
    r"|\S+: \S+:\d+: .*: Assertion `[^']*' failed\.$|  (?:Referenced from|Reason): "
    r"|\S+[/\\]python[\d.]*: No module named [\w.]+$"
)
"""What else the C library, the loader and the interpreter say; nothing of a request is in it."""
_THROWN = re.compile(r"(libc\+\+abi: terminating .*? of type [\w:]+: |  what\(\):  )(.*)")
"""An exception of C++ that ends the process, and its message."""
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception)(?:: |$)")
"""An exception of Python's that is told without a traceback."""
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):")
_FRAME = re.compile(r'  File "([^"]+)", line \d+, in ')
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_PANIC = re.compile(r"thread '.{0,80}' (?:\(\d+\) )?panicked at ")
_STACK = re.compile(
    r"Fatal Python error: [A-Za-z -]{1,40}$|Timeout \(\d+:\d\d:\d\d\)!$"
    r"|(?:Current thread|Thread) 0x[0-9a-f]+.{0,80} \(most recent call first\):$"
    r"|Current thread's C stack trace \(most recent call first\):$|Extension modules: "
)
_OF_STACK = re.compile(r"\s*$|  (?:File|Binary file) |  \.\.\.$|  <|  Garbage-collecting")

_TAGGED = re.compile(
    r"\[(?:METAL|Errno \d+|(?!user\]|system\]|assistant\])[a-z]\w*(?:::\w+)*|[A-Z]\w*(?:::\w+)+)\] "
)
"""MLX's `[matmul] …` and `[Reshape::vmap] …`, Python's `[Errno 28] …`; not a template's `[INST] …`."""
_NUMERIC = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?:mlx[/\\]|mlx_lm[/\\](?:models[/\\]|generate\.py$))"
)
"""Sources in which there are shapes and numbers, and no texts."""
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
"""Their messages name identifiers."""


@dataclass(frozen=True, slots=True)
class Words:
    """What was said, cleaned: the text, the stacks that faulthandler wrote, the last exception."""

    text: str
    stacks: str
    exception: str


class _In(enum.Enum):
    """What the line before belongs to."""

    TEXT = enum.auto()
    TRACEBACK = enum.auto()
    MESSAGE = enum.auto()
    """Of an exception or a panic: it may go on for lines."""
    STACK = enum.auto()


class Cleaner:
    """Reads stderr line by line. `secrets` are values that must not be shown wherever they stand."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted({s for s in secrets if len(s) >= 8}, key=len, reverse=True)

    def clean(self, data: bytes, *, cut: bool = False) -> Words:
        """Never raises. `cut`: there was more before `data`, which may begin amid a message."""
        text, stacks, exception = list[str](), list[str](), ""
        where, frame, withheld = _In.MESSAGE if cut else _In.TEXT, "", 0
        for raw in data.decode("utf-8", "replace").split("\n"):
            line = _plain(raw)
            where = _next(where, line)
            unknown = where is _In.TEXT and not _is_harmless(line)
            known = known_part(line, anywhere=True) if unknown else ""
            if where is _In.MESSAGE or (unknown and not known):
                withheld += bool(line.strip())
                continue
            if withheld:
                text.append(_withheld(withheld))
                withheld = 0
            if where is _In.STACK:
                stacks.append(line)
                continue
            if known:
                # The rest may be a request's, the reason why the process died is not.
                text.append(f"{known} ({len(line) - len(known)} characters withheld)")
                continue
            line = self._hide(line)
            if where is _In.TRACEBACK and not _LOG_LINE.match(line):
                if found := _FRAME.match(line):
                    frame = found[1]
                if line.startswith((" ", "Traceback")):
                    text.append(line if _is_code(line) else _withheld(1))
                    continue
                line = _exception(line, frame)
                if line.partition(":")[0] not in NOISE:
                    exception = line
                where = _In.MESSAGE
            else:
                if _RAISED.match(line) or _PANIC.match(line):
                    where = _In.MESSAGE
                line = _said(line)
            text.append(line)
        if withheld:
            text.append(_withheld(withheld))
        return Words("\n".join(text).strip("\n"), "\n".join(stacks).strip("\n"), exception)

    def _hide(self, line: str) -> str:
        """The line without keys."""
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        if any(prefix in line for prefix in _PREFIXES):
            line = _SECRET.sub(HIDDEN, line)
        lowered = line.lower()
        if any(label in lowered for label in _LABELS):
            line = _LABELLED.sub(rf"\1{HIDDEN}", line)
        return _IN_URL.sub(rf"\1{HIDDEN}@", line) if "://" in line else line


def _plain(raw: str) -> str:
    """One line that a terminal will take as text, of some length at most."""
    line = raw if len(raw) <= LINE_MAX else f"{raw[:LINE_MAX]}…"
    return line if line.isprintable() else _CONTROL.sub("", line)


def _next(where: _In, line: str) -> _In:
    """What this line belongs to."""
    if _STACK.match(line):
        return _In.STACK
    if _TRACEBACK.match(line):
        return _In.TRACEBACK
    match where:
        case _In.STACK if _OF_STACK.match(line):
            return _In.STACK
        case _In.TRACEBACK if line.strip() and not _RUNTIME.match(line):
            return _In.TRACEBACK
        case _In.MESSAGE if not (_LOG_LINE.match(line) or _RUNTIME.match(line)):
            return _In.MESSAGE
    return _In.TEXT


def _is_code(line: str) -> bool:
    """Whether a line inside a traceback is not an exception of a group, whose message it is."""
    return not line.lstrip().startswith(("|", "+"))


def _exception(line: str, frame: str) -> str:
    """The line that ends a traceback whose last frame is in the file `frame`."""
    found = _EXCEPTION.fullmatch(line)
    if found is None:
        return _withheld(1)
    kind, message = found[1], found[2] or ""
    if not message:
        return kind
    whole = kind.rpartition(".")[2] in _OF_PYTHON or _NUMERIC.search(frame) is not None
    return f"{kind}: {_unquoted(message) if whole else _message(message)}"


def _message(message: str) -> str:
    """What may be shown of an exception's message: all of the runtime's own, and of others the
    beginning that the diagnosis knows. A text further on may be a request's."""
    if _TAGGED.match(message):
        return _unquoted(message)
    known = known_part(message)
    left = len(message) - len(known)
    if message[len(known) :] in ("", "."):
        return message
    return f"{known} ({left} characters withheld)".lstrip()


def _is_harmless(line: str) -> bool:
    """Whether a line outside tracebacks and stacks has the form of something that quotes nobody."""
    forms = _LOG_LINE, _RUNTIME, _TAGGED, _NATIVE, _RAISED, _PANIC
    return any(form.match(line) for form in forms)


def _said(line: str) -> str:
    """What may be shown of a line that is harmless by its form."""
    if _RAISED.match(line):
        return _exception(line, "")
    if found := _THROWN.fullmatch(line):
        return found[1] + _message(found[2])
    return _unquoted(line)


def _unquoted(line: str) -> str:
    """The line without what it quotes at length; an assertion is quoted, and no request's."""
    plain = _QUOTED.sub(_shortened, line)
    return line if plain != line and "failed assertion" in plain else plain


def _shortened(quoted: re.Match[str]) -> str:
    text = quoted[0]
    return text if len(text) <= QUOTE_MAX + 2 else f"{text[0]}…({len(text) - 2} characters)"


def _withheld(lines: int) -> str:
    return f"({lines} line{'s' if lines > 1 else ''} withheld: requests may be quoted there)"
