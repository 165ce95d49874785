"""A SIGABRT for the worker in the middle of every answer.

Where an answer stands is seen in the progress records, which the supervisor holds open and Linux
shows: so answers that are not streamed are struck in the middle as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from supervisor.wire.progress import Reading
from tests.agents.access import answers
from tests.helpers.serving import Server

POSSIBLE = sys.platform == "linux"
AFTER = 8
"""Tokens of an answer after which its worker is struck."""
_PACE = 0.002
"""Seconds between two looks; a token takes two to ten times as long."""


class Striker:
    """Strikes each answer of one model once, answers that are made at the same time together."""

    def __init__(self, server: Server, model: str) -> None:
        self._server, self._model = server, model
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._tokens: dict[int, int] = {}
        """That each record has shown, by its inode."""
        self._log_bytes, self._answers = -1, 0
        self._error: BaseException | None = None
        self.strikes = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Raises what has ended it before."""
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._strike_each()
        except BaseException as error:  # noqa: BLE001 - `stop` raises it
            self._error = error

    def _strike_each(self) -> None:
        known, made, struck = self._ended(), 0, False
        while not self._over.wait(_PACE):
            if (ended := self._ended()) != known:
                known, made, struck = ended, 0, False
            made += self._made()
            if made >= AFTER and not struck:
                struck = self._strike()

    def _ended(self) -> int:
        """How many answers have ended."""
        log = self._server.state / "logs" / "gateway.log"
        size = log.stat().st_size if log.exists() else 0
        if size != self._log_bytes:
            self._log_bytes, self._answers = size, len(answers(self._server))
        return self._answers

    def _made(self) -> int:
        """Tokens that have been made since the last look, by any worker."""
        more = 0
        for path in Path(f"/proc/{self._server.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if not os.readlink(path).startswith("/memfd:progress"):
                    continue
                with path.open("rb") as record:
                    inode = os.fstat(record.fileno()).st_ino
                    tokens = Reading.decode(record.read()).tokens
                more += max(0, tokens - self._tokens.get(inode, 0))
                self._tokens[inode] = tokens
        return more

    def _strike(self) -> bool:
        """False when there is no worker to strike."""
        entry = self._server.loaded(self._model)
        if entry.get("state") != "ready" or entry.get("pid") is None:
            return False
        try:
            os.kill(entry["pid"], signal.SIGABRT)
        except ProcessLookupError:
            return False
        self.strikes += 1
        return True


@contextlib.contextmanager
def striking(server: Server, model: str) -> Iterator[Striker]:
    """Meanwhile every answer is struck."""
    striker = Striker(server, model)
    striker.start()
    try:
        yield striker
    finally:
        striker.stop()
