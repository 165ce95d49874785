"""Crash reports on disk: STATE/crashes/ID.json, one a death, readable without a running server.

Bounded in number and size. They are synced to the disk, since a machine that lets its processes
die for want of memory may be the next to go.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.state.files import read_json, write_atomically
from supervisor.wire.crash import ID, CrashBrief, CrashReport
from supervisor.wire.text import to_json

log = logging.getLogger("bulkhead.supervisor")

KEEP = 100
"""Reports; the oldest go."""
TEXT_MAX = 64 * 2**10
"""Characters of stderr, and as many of stacks."""
REQUESTS_MAX = 256
REPORT_BYTES = 1_000_000
"""A larger file is none of ours."""
_ID = re.compile(ID)

T = TypeVar("T", CrashBrief, CrashReport)


class Unreadable(Exception):
    """A report is there, and broken; the message says which."""


def new_id(epoch: float) -> str:
    """An id that no other death has. Ids sort by the second of the death."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def is_id(text: str) -> bool:
    """Whether a report may have this id. Any other text must not become a path."""
    return _ID.fullmatch(text) is not None


class Store:
    """The reports of one state directory. Every method blocks on files; one writer at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, report: CrashReport) -> None:
        """Keep the report, or replace the one that has its id; forget the oldest beyond `KEEP`.
        Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(self._path(report.id), encode(report), sync=True)
        for path in sorted(self._paths(), reverse=True)[KEEP:]:
            with contextlib.suppress(OSError):  # the report is written all the same
                path.unlink()

    def listing(self) -> list[CrashBrief]:
        """All reports, newest first. One that can't be read is left out, with a line in the log."""
        found = list[CrashBrief]()
        for path in self._paths():
            try:
                if (brief := _read(path, CrashBrief)) is not None:
                    found.append(brief)
            except Unreadable as error:
                log.warning("%s", error)
        return sorted(found, key=lambda brief: (brief.time, brief.id), reverse=True)

    def read(self, name: str) -> CrashReport | None:
        """The report with that id; None when there is none, or `name` is no id.
        Raises Unreadable."""
        return _read(self._path(name), CrashReport) if is_id(name) else None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _paths(self) -> Iterator[Path]:
        try:
            names = os.listdir(self._folder)
        except OSError:
            return  # nothing has crashed yet
        for name in names:
            if name.endswith(".json") and is_id(name.removesuffix(".json")):
                yield self._folder / name


def encode(report: CrashReport) -> bytes:
    """The file's content, within `REPORT_BYTES` whatever the texts are."""
    data = to_json(report)
    if len(data) > REPORT_BYTES:
        shorter = {name: getattr(report, name)[-4096:] for name in ("stderr", "stacks")}
        data = to_json(msgspec.structs.replace(report, **shorter))
    return msgspec.json.format(data, indent=2) + b"\n"


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return read_json(path, kind, limit=2 * REPORT_BYTES)
    except FileNotFoundError:
        return None  # forgotten a moment ago
    except (OSError, ValueError) as error:
        why = type(error).__name__
        raise Unreadable(f"The crash report {path.stem} cannot be read: {why}") from None
