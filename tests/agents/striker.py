"""A SIGABRT for the worker in the middle of every answer.

Where an answer stands is seen in the progress records, which the supervisor holds open and Linux
shows: so answers that are not streamed are struck in the middle as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from supervisor.wire.progress import Reading
from tests.helpers.serving import Server

_AFTER = 8
"""Tokens of an answer after which its worker is struck."""
_PACE = 0.002
_ENDS = " completion="
"""In a line of the gateway's log: an answer has ended."""


class Striker:
    """Strikes each answer once, from `start` to `stop`."""

    def __init__(self, server: Server, model: str, ended: Callable[[], int]) -> None:
        """`ended` tells how many answers have ended."""
        self._server, self._model, self._ended = server, model, ended
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._tokens: dict[int, int] = {}
        """That each record has shown, by its inode."""
        self.strikes = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        answers, made, struck = self._ended(), 0, False
        while not self._over.wait(_PACE):
            if (ended := self._ended()) != answers:
                answers, made, struck = ended, 0, False
            made += self._made()
            if made >= _AFTER and not struck:
                struck = self._strike()

    def _made(self) -> int:
        """Tokens that have been made since the last look."""
        more = 0
        for path in Path(f"/proc/{self._server.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if not os.readlink(path).startswith("/memfd:progress"):
                    continue
                with path.open("rb") as record:
                    inode = os.fstat(record.fileno()).st_ino
                    tokens = Reading.decode(record.read()).tokens
                more += max(0, tokens - self._tokens.get(inode, 0))
                self._tokens[inode] = tokens
        return more

    def _strike(self) -> bool:
        entry = self._server.loaded(self._model)
        if entry.get("state") != "ready" or entry.get("pid") is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry["pid"], signal.SIGABRT)
            self.strikes += 1
            return True
        return False
