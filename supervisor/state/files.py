"""How the files of the state directory are replaced."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Replace `path`, mode 0600, so that a killed process leaves the old content or the new, never
    a part. With `sync` that also holds when the machine itself goes down. Raises OSError.

    A sync blocks for as long as the disk takes, seconds while a model is read from it: not for the
    event loop.
    """
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb", opener=_private) as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if sync:
        _sync(path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
