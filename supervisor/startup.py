"""What a start says: in one sentence why there is none and what to do, or what is served. Pure."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from supervisor.units import gigabytes
from supervisor.wire.text import reason

_NAMES_SHOWN = 8
_PATH_SHOWN = 160
"""Characters."""
_OTHER_PORT = "choose another with --port"
NO_MEMORY = (
    "cannot start: there is not enough memory. End other programs, or allow this one more "
    "(`ulimit -v`, or the service's settings)."
)
_FILES_NEEDED = 64
_FILES_ENOUGH = 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


def cannot_listen(error: Exception, host: str, port: int, holder: str | None) -> str:
    """Why the address can't be had; `holder` is who listens there, as far as known."""
    number = error.errno if isinstance(error, OSError) else None
    why = reason(error)
    what_to_do = "choose another with --host and --port"
    if number == errno.EADDRINUSE:
        by = f" by {holder}" if holder else ""
        why, what_to_do = f"{why}{by}", f"stop what listens there, or {_OTHER_PORT}"
    elif number in (errno.EACCES, errno.EPERM) and port < 1024:
        why, what_to_do = f"{why}: ports below 1024 are the system's", _OTHER_PORT
    elif number == errno.EADDRNOTAVAIL:
        why = f"{why}: no interface of this machine has that address"
    elif not isinstance(error, OSError):
        why = "that is no name of a host"
    return f"cannot listen on {host}:{port}: {why}. {_sentence(what_to_do)}"


def cannot_use(error: OSError, state: Path) -> str:
    """Why a server can't run with this state directory, or at all."""
    why = reason(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"cannot start: {why}. Allow more open files, such as with `ulimit -n 4096`."
    what_to_do = "make it writable for this user, or choose another --state-dir"
    if error.errno in _FULL:
        what_to_do = "free some space, or choose another --state-dir"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY):
        what_to_do = "move that file or folder away, or choose another --state-dir"
    elif error.errno == errno.ENAMETOOLONG:
        what_to_do = "choose a shorter --state-dir"
    name = error.filename2 or error.filename  # of a file that takes another's place: that one
    if isinstance(name, str) and name != str(state):
        why = f"{_shown(name)}: {why}"
    return f"cannot use the state directory {_shown(str(state))}: {why}. {_sentence(what_to_do)}"


def unsuitable(
    missing: Sequence[str], cure: str, *, platform: str = sys.platform, machine: str
) -> str | None:
    """Why this Python can run no model; None = it may. `missing` are packages that it lacks, and
    `cure` is how to mend the installation."""
    if platform == "darwin" and machine != "arm64":
        return (
            f"this Python is built for {machine}, and MLX needs one for Apple silicon (arm64). "
            "Install such a Python, from a terminal that does not run under Rosetta, and Bulkhead "
            "with it."
        )
    if missing:
        return f"this installation of Bulkhead lacks {' and '.join(missing)}. {cure}"
    return None


def too_few_files(allowed: int) -> str | None:
    """Why nothing can be served with so many open files; None = it can."""
    if allowed >= _FILES_NEEDED:
        return None
    return (
        f"only {allowed} open files are allowed, and Bulkhead needs {_FILES_NEEDED} at least. "
        "Allow more with `ulimit -n 4096`, or in the service's settings."
    )


def few_files(allowed: int) -> str | None:
    """What so many open files are too few for; None = they are enough."""
    if allowed >= _FILES_ENOUGH:
        return None
    return (
        f"only {allowed} open files are allowed: enough for some {allowed // 3} streams at once. "
        "Allow more with `ulimit -n 4096`, or in the service's settings."
    )


def greeting(
    models: Sequence[str],
    *,
    url: str,
    budget: int | None,
    physical: int | None,
    limit: str | None = None,
    config: Path | None,
    logs: Path,
    first: str,
    keys: bool,
) -> list[str]:
    """What is served, for a person: a line each. `first` is the model that the example asks;
    `budget` and `physical` in bytes, None = unlimited and unknown; `limit` is the file that allows
    no more than `physical`, None = the machine has no more."""
    shown = ", ".join(models[:_NAMES_SHOWN])
    more = len(models) - _NAMES_SHOWN
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    memory = "no limit" if budget is None else gigabytes(budget)
    if budget is not None and physical is not None:
        memory += f" of {gigabytes(physical)}{f' that {limit} allows' if limit else ''}"
    key = " -H 'Authorization: Bearer YOUR-KEY'" if keys else ""
    asked = {"model": first, "messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps(asked, ensure_ascii=False)
    return [
        f"{count}: {shown}{f' and {more} more' if more > 0 else ''}",
        f"memory for models: {memory}",
        f"configuration: {config or 'no file; the defaults and the flags hold'}",
        f"logs: {logs}",
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{_quoted(body)}'",
    ]


def _shown(path: str) -> str:
    if len(path) <= _PATH_SHOWN:
        return path
    return f"{path[: _PATH_SHOWN // 2]}…{path[-_PATH_SHOWN // 2 :]}"


def _quoted(text: str) -> str:
    """As it stands between single quotes in a shell."""
    return text.replace("'", "'\\''")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
