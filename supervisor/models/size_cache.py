"""What is remembered of models: what their loads took, which replaces the estimate, their uses, and
how many requests at once they may serve since they ran out of memory.

A measurement belongs to the files that were loaded, a count of uses to the name that is asked for:
new files need another size, but are the same model to whoever uses it. One small JSON file in the
state directory, `sizes.json`. It is a cache: a file that is missing, broken or of another version
is as good as empty, and a state directory that can't be written costs nothing but the memory of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.background import Latest
from supervisor.scheduler.model import LearnedLimit
from supervisor.state.files import read_json, write_atomically
from supervisor.state.trouble import Trouble

log = logging.getLogger("bulkhead.supervisor")

MAX_ENTRIES = 512
"""Of each kind, about 150 bytes; those that changed least recently are forgotten."""
_VERSION = 1

T = TypeVar("T")


class MeasuredLoad(msgspec.Struct, frozen=True):
    """What one load of a model was seen to take. Bytes and seconds."""

    model: str
    """The name it was served by, for people who read the file; the key does not depend on it."""
    memory_bytes: int
    """Footprint at the end of the load, before any request."""
    load_seconds: float
    at: float
    """Epoch seconds."""
    excess_bytes: int = 0
    """What its workers were seen to hold later beyond all that they were charged."""


class SizesFile(msgspec.Struct, frozen=True):
    """What the file holds, that which changed last at the end."""

    version: int
    sizes: dict[str, MeasuredLoad]
    uses: dict[str, int] = {}
    """Requests that each model has had, in all runs, by its name."""
    limits: dict[str, LearnedLimit] = {}
    """The limit that each has learned, by its name; epoch seconds."""


def key(fingerprint: Sequence[str], settings: Mapping[str, object]) -> str:
    """What a measurement belongs to: the files, by `Catalog.fingerprint`, and the `settings` that
    change what their load takes. Values must be JSON."""
    content = json.dumps([list(fingerprint), sorted(settings.items())], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class SizeCache:
    """What the file holds. Each change writes it, which never raises. For one thread.

    With `writer` that is done there: nothing here blocks but `load` and `flush`. Without it each
    change blocks on its write.
    """

    def __init__(
        self, path: Path, known: SizesFile | None = None, writer: Latest | None = None
    ) -> None:
        self._path = path
        self._writer = writer
        self._known = known or SizesFile(_VERSION, {})
        self._trouble = Trouble(f"write {path}; a restart forgets what was measured")

    @classmethod
    def load(cls, path: Path, writer: Latest | None = None) -> SizeCache:
        """What `path` holds. Blocks on one read. Never raises: see the module."""
        try:
            stored = read_json(path, SizesFile)
            if stored.version != _VERSION:
                raise ValueError(f"version {stored.version}")
            known = SizesFile(_VERSION, {})
            _renew(
                known.sizes, {k: load for k, load in stored.sizes.items() if _is_plausible(load)}
            )
            _renew(known.uses, {k: count for k, count in stored.uses.items() if 0 < count < 2**53})
            _renew(known.limits, {k: v for k, v in stored.limits.items() if _is_plausible_limit(v)})
            return cls(path, known, writer)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("forgot the measured model sizes in %s: %s", path, error)
        return cls(path, writer=writer)

    def __len__(self) -> int:
        return len(self._known.sizes)

    def get(self, name: str) -> MeasuredLoad | None:
        """The measurement under this `key`."""
        return self._known.sizes.get(name)

    def remember(self, name: str, measurement: MeasuredLoad) -> None:
        """Replace what is known under this `key`."""
        if not _is_plausible(measurement):
            return
        _renew(self._known.sizes, {name: measurement})
        self._write()

    def use_count(self, model: str) -> int:
        """Requests that the model of this name has had."""
        return self._known.uses.get(model, 0)

    def save_use_counts(self, uses: Mapping[str, int]) -> None:
        """These models have had so many requests by now. Writes nothing where that is known."""
        news = {name: count for name, count in uses.items() if count != self.use_count(name)}
        if news:
            _renew(self._known.uses, news)
            self._write()

    def learned_limit(self, model: str) -> LearnedLimit | None:
        """The limit that the model of this name has learned."""
        return self._known.limits.get(model)

    def save_limit(self, model: str, limit: LearnedLimit | None) -> None:
        """Replace the limit that the model has learned; None = it has none."""
        if limit is None:
            self._known.limits.pop(model, None)
        else:
            _renew(self._known.limits, {model: limit})
        self._write()

    def flush(self, seconds: float) -> None:
        """Return when the file has all of it, or after so long: a disk that does not answer must
        not keep the end of the process."""
        if self._writer is not None and not self._writer.wait(seconds):
            log.warning("%s is not written: the disk does not answer", self._path)

    def _write(self) -> None:
        write = partial(self._replace, msgspec.json.encode(self._known))
        if self._writer is None:
            write()
        else:
            self._writer.put(write)

    def _replace(self, content: bytes) -> None:
        try:
            write_atomically(self._path, content)
        except OSError as error:
            self._trouble.failed(error)
        else:
            self._trouble.worked()


def _renew(entries: dict[str, T], news: Mapping[str, T]) -> None:
    """Replace these, put them last, and forget those beyond MAX_ENTRIES that changed before all
    others."""
    for name in news:
        entries.pop(name, None)
    entries |= news
    for name in list(entries)[:-MAX_ENTRIES]:
        del entries[name]


def _is_plausible(entry: MeasuredLoad) -> bool:
    """A worker takes tens of megabytes without a model: less is no measurement."""
    bytes_are = 2**20 <= entry.memory_bytes < 2**50 and 0 <= entry.excess_bytes < 2**50
    return bytes_are and 0 <= entry.load_seconds < 1e6


def _is_plausible_limit(limit: LearnedLimit) -> bool:
    """A clock that was set back must not make a limit last for ever."""
    return limit.concurrency >= 1 and 0 <= limit.since <= time.time()
