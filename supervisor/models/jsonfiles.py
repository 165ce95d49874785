"""JSON objects in models' files, read with suspicion: they come from whoever published the model.

A safetensors file is 8 bytes of little-endian length, a JSON header of that length, and data.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 100_000_000
"""The limit of the safetensors format itself; a corrupt length must not become an allocation."""
_LFS = b"version https://git-lfs"


class Malformed(ValueError):
    """The file is not what it should be. The message completes a sentence that begins with it."""


def read_object(path: Path) -> dict[str, object]:
    """The object that a JSON file holds, as mlx-lm would read it: UTF-8 without a mark. Blocks on
    one read. Raises OSError or Malformed."""
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Malformed("is too large")
    return _object(data)


def read_header(path: Path) -> tuple[dict[str, object], int]:
    """The header of a safetensors file, and the bytes of data behind it. Blocks on one read.
    Raises OSError or Malformed."""
    with open_regular(path) as file:
        length, behind = _lengths(file)
        return _object(file.read(length)), behind


def check_header(path: Path) -> None:
    """See that there is room in a safetensors file for its header, which is not read: that takes
    seconds for large models. Raises OSError or Malformed."""
    with open_regular(path) as file:
        _lengths(file)


def _lengths(file: BinaryIO) -> tuple[int, int]:
    """Bytes of the header, and behind it. Raises OSError, Malformed."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise Malformed("is empty")
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if _LFS.startswith(first):
        raise Malformed("is a Git LFS pointer without the data; run `git lfs pull`")
    if size < 8 or not 2 <= length <= MAX_BYTES:
        raise Malformed("is not a safetensors file")
    if length > size - 8:
        raise Malformed("is cut short or not a safetensors file")
    return length, size - 8 - length


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file: opening a pipe would wait for whoever writes to it. Raises OSError or
    Malformed."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise Malformed("is not a regular file")
    return open(path, "rb")


def _object(data: bytes) -> dict[str, object]:
    if data.startswith(b"\xef\xbb\xbf"):
        raise Malformed("begins with a byte order mark; save it as UTF-8 without one")
    if data.startswith(_LFS):
        raise Malformed("is a Git LFS pointer without the data; run `git lfs pull`")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Malformed("is not JSON") from None
    if not isinstance(value, dict):
        raise Malformed("does not hold a JSON object")
    return value
