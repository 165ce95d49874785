"""How the files of the state directory are read and replaced."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")
MAX_FILE_BYTES = 1_000_000
"""A larger file is none of ours."""


def read_json(path: Path, kind: type[T], *, limit: int = MAX_FILE_BYTES) -> T:
    """What the file holds. Blocks on one read. Raises OSError, or ValueError for anything else than
    JSON of this kind, in at most `limit` bytes."""
    with open(path, "rb", opener=not_waiting) as file:
        data = file.read(limit + 1) or b""
    if len(data) > limit:
        raise ValueError("too large")
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_atomically(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Replace `path`, mode 0600, so that a killed process leaves the old content or the new, never
    a part. With `sync` that also holds when the machine itself goes down. Raises OSError, and then
    leaves nothing behind.

    A sync blocks for as long as the disk takes, seconds while a model is read from it: not for the
    event loop.
    """
    temporary = path.with_name(path.name + ".tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # of a process that was killed, or whatever has this name
    try:
        with open(temporary, "xb", opener=_private) as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        _sync(path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def not_waiting(path: str, flags: int) -> int:
    """An opener for reading: a FIFO in a file's place would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
