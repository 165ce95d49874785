"""Which requests are quarantined, across restarts: those that kill workers alone, by keyed digest.

One small JSON file in the state directory, 0600. The key never leaves it, so that nobody who sees a
digest elsewhere can find out whether a guess at the request is right. A file that is missing or
broken is as good as empty.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import msgspec

from supervisor.background import Latest
from supervisor.state.files import read_json, write_atomically
from supervisor.state.trouble import Trouble

log = logging.getLogger("bulkhead.supervisor")

_KEY_BYTES = 16
_VERSION = 1


class _QuarantineFile(msgspec.Struct, frozen=True):
    version: int
    key: bytes
    quarantined: list[tuple[bytes, float]] = msgspec.field(name="guilty")
    """Keyed digests and when they expire, epoch seconds. "guilty" is what the files of all versions
    call them: by another name an upgrade would forget them."""


class Quarantine:
    """The file and its key. It is written by `writer`; without one `save` blocks on it."""

    def __init__(
        self,
        path: Path,
        key: bytes,
        quarantined: Iterable[tuple[bytes, float]] = (),
        writer: Latest | None = None,
    ) -> None:
        self._path = path
        self._writer = writer
        self._key = key
        self._quarantined = list(quarantined)
        self._trouble = Trouble(f"write {path}; a restart forgets the quarantine")

    @classmethod
    def load(cls, path: Path, writer: Latest | None = None) -> Quarantine:
        """What `path` holds. Blocks on one read; never raises."""
        try:
            stored = read_json(path, _QuarantineFile)
            if stored.version == _VERSION and len(stored.key) == _KEY_BYTES:
                return cls(path, stored.key, stored.quarantined, writer)
            log.warning("forgot the quarantine in %s: another version", path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("forgot the quarantine in %s: %s", path, error)
        return cls(path, secrets.token_bytes(_KEY_BYTES), writer=writer)

    def keyed(self, digest: bytes) -> bytes:
        """A request's digest under the key; of none, none."""
        if not digest:
            return b""
        return hashlib.blake2b(digest, key=self._key, digest_size=16).digest()

    def quarantined(self) -> list[tuple[bytes, float]]:
        """Those that were loaded: keyed digests and when they expire, monotonic seconds."""
        offset = time.time() - time.monotonic()
        return [(digest, expires - offset) for digest, expires in self._quarantined]

    def save(self, quarantined: Iterable[tuple[bytes, float]]) -> None:
        """Write all that are in force. A disk that can't be written costs a log line and the memory
        of it."""
        offset = time.time() - time.monotonic()
        self._quarantined = [(digest, expires + offset) for digest, expires in quarantined]
        content = msgspec.json.encode(_QuarantineFile(_VERSION, self._key, self._quarantined))
        if self._writer is None:
            self._write(content)
        else:
            self._writer.put(partial(self._write, content))

    def _write(self, content: bytes) -> None:
        try:
            write_atomically(self._path, content)
        except OSError as error:
            self._trouble.failed(error)
        else:
            self._trouble.worked()
