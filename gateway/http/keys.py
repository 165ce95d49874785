"""The API keys, read again when their file changes, so that a revoked one stops working at once."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

from gateway.http.auth import name_of_key
from supervisor.config.files import read_api_keys
from supervisor.config.rules import ConfigError

log = logging.getLogger("bulkhead.gateway")

_REWRITE_SECONDS = 0.05
"""An editor that writes in place leaves the file empty for a moment."""


class _Signature(NamedTuple):
    """It changes when the file does, or its mode."""

    inode: int
    size: int
    written: int
    changed: int


class APIKeys:
    """The keys in the file at `path`, or none where "" says that everybody may come in."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._signature: _Signature | None = None
        self._keys: Mapping[str, str] = {}
        """Key → name; empty while the file can't be used, which lets nobody in."""
        self._reading = asyncio.Lock()

    @property
    def required(self) -> bool:
        return bool(self._path)

    async def check(self, headers: Mapping[str, str]) -> str:
        """The name of the key that is presented, "" where none is required. Raises InvalidAPIKey.

        Looks at the file's times, each time.
        """
        if not self.required:
            return ""
        if self._keys and _signature(self._path) == self._signature:
            return name_of_key(headers, self._keys)
        async with self._reading:
            if not self._keys or _signature(self._path) != self._signature:
                await self._read_again()
        return name_of_key(headers, self._keys)

    async def _read_again(self) -> None:
        had = self._keys
        try:
            try:
                self._read()
            except ConfigError:
                if not had:  # it was given that time: nobody waits again and again
                    raise
                await asyncio.sleep(_REWRITE_SECONDS)
                self._read()
        except ConfigError as error:
            self._keys = {}
            if had:
                log.error("no API key is accepted any more: %s", error)
        else:
            if self._keys != had:
                log.info("%d API keys are accepted", len(self._keys))

    def _read(self) -> None:
        """Raises ConfigError."""
        self._signature = _signature(self._path)
        self._keys = read_api_keys(self._path)


def _signature(path: str) -> _Signature | None:
    """None = there is no such file."""
    try:
        stat = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return _Signature(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
