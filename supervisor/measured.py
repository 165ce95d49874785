"""Measured sizes: after a load the figure that was seen replaces the estimate and is remembered.

One small JSON file in the state directory, `sizes.json`. It is a cache: a file that is missing,
broken or of another version is as good as empty, and a state directory that can't be written
costs nothing but the memory of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from supervisor.paths import write_atomically

log = logging.getLogger("bulkhead")

MAX_ENTRIES = 512
"""Each is about 150 bytes; the least recently measured are forgotten."""
MAX_FILE_BYTES = 1_000_000
_VERSION = 1


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one incarnation of a model was seen to need. Bytes and seconds."""

    model: str
    """The name it was served by, for people who read the file; the key does not depend on it."""
    memory_bytes: int
    """Footprint at the end of the load, before any request."""
    load_seconds: float
    at: float
    """Epoch seconds."""
    use_count: int = 0
    """Requests that the model has had, in all runs."""


class _File(msgspec.Struct, frozen=True):
    version: int
    sizes: dict[str, Measurement]


def key(fingerprint: Sequence[str], settings: Mapping[str, object]) -> str:
    """What a measurement belongs to: the files, by `Catalog.fingerprint`, and the `settings` that
    change how much of them is loaded (draft, adapter, context, quantized KV). Values must be JSON.
    """
    content = json.dumps([list(fingerprint), sorted(settings.items())], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class Sizes:
    """The remembered measurements, newest last. Not for several threads."""

    def __init__(self, path: Path, entries: Mapping[str, Measurement] | None = None) -> None:
        self._path = path
        self._entries = dict(entries or {})

    @classmethod
    def load(cls, path: Path) -> Sizes:
        """What `path` holds. Blocks on one read. Never raises: see the module."""
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise ValueError("too large")
            stored = msgspec.json.decode(data, type=_File)
            if stored.version != _VERSION:
                raise ValueError(f"version {stored.version}")
            usable = {name: entry for name, entry in stored.sizes.items() if _sane(entry)}
            return cls(path, dict(list(usable.items())[-MAX_ENTRIES:]))
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, RecursionError) as error:
            log.warning("forgot the measured model sizes in %s: %s", path, error)
            return cls(path)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> Measurement | None:
        """The measurement under this `key`."""
        return self._entries.get(name)

    def remember(self, name: str, measurement: Measurement) -> None:
        """Replace what is known under this `key`, and write the file. Blocks; never raises."""
        if not _sane(measurement):
            return
        self._entries.pop(name, None)
        self._entries[name] = measurement
        while len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        try:
            write_atomically(self._path, msgspec.json.encode(_File(_VERSION, self._entries)))
        except OSError as error:
            log.warning("cannot remember measured model sizes in %s: %s", self._path, error)


def _sane(entry: Measurement) -> bool:
    """A worker takes tens of megabytes without a model: less is no measurement."""
    return 2**20 <= entry.memory_bytes < 2**50 and 0 <= entry.load_seconds < 1e6
