"""JSON objects in models' files, read with suspicion: they come from whoever published the model.

A safetensors file is 8 bytes of little-endian length, a JSON header of that length, and data.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

MAX_BYTES = 100_000_000
"""The limit of the safetensors format itself; a corrupt length must not become an allocation."""


class Malformed(ValueError):
    """The file is not what it should be. The message completes a sentence that begins with it."""


def read_object(path: Path) -> dict[str, object]:
    """The object that a JSON file holds. Blocks on one read. Raises OSError or Malformed."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Malformed("is too large")
    return _object(data)


def read_header(path: Path) -> tuple[dict[str, object], int]:
    """The header of a safetensors file, and the bytes of data behind it. Blocks on one read.
    Raises OSError or Malformed."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_BYTES, size - 8):
            raise Malformed("is not a safetensors file")
        return _object(file.read(length)), size - 8 - length


def _object(data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Malformed("is not JSON") from None
    if not isinstance(value, dict):
        raise Malformed("does not hold a JSON object")
    return value
