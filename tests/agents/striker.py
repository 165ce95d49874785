"""A SIGABRT for the worker in the middle of every answer.

Where an answer stands is seen in the progress records, which the supervisor holds open and Linux
shows: so answers that are not streamed are struck in the middle as well.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from supervisor.wire.progress import read
from tests.agents.access import answers
from tests.helpers.serving import Server

POSSIBLE = sys.platform == "linux"
_PACE = 0.002
"""Seconds between two looks; a token takes as long or longer."""
_EVERY = 25
"""Looks between two searches for new records, and for a worker that serves."""


class Striker:
    """Strikes each answer of one model once, answers that are made at the same time together."""

    def __init__(self, server: Server, model: str, after: Sequence[int]) -> None:
        """`after`: tokens of an answer after which its worker is struck, of one after the other and
        then from the beginning."""
        self._server, self._model, self._after = server, model, after
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._records: dict[int, int] = {}
        """Open descriptors, by inode."""
        self._tokens: Counter[int] = Counter()
        """That each record has shown."""
        self._log_bytes, self._answers = -1, 0
        self._error: BaseException | None = None
        self.strikes = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns once it has ended; `check` says whether it had before."""
        self._over.set()
        self._thread.join()
        for record in self._records.values():
            os.close(record)

    def check(self) -> None:
        """Raises what has ended it before it was told to."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._strike_each()
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._error = error

    def _strike_each(self) -> None:
        known, made, pid = -1, 0, 0
        for look in itertools.count():
            if self._over.wait(_PACE):
                return
            if look % _EVERY == 0:
                self._find_records()
            if (ended := self._ended()) != known:
                self._made()  # by the answer that has ended
                known, made, pid = ended, 0, 0
            if pid < 0:
                continue
            made += self._made()
            if not pid and (made or look % _EVERY == 0):
                pid = self._worker()
            if made >= self._after[self.strikes % len(self._after)] and pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGABRT)
                    self.strikes += 1
                    pid = -1

    def _ended(self) -> int:
        """How many answers have ended."""
        log = self._server.state / "logs" / "gateway.log"
        size = log.stat().st_size if log.exists() else 0
        if size != self._log_bytes:
            self._log_bytes, self._answers = size, len(answers(self._server))
        return self._answers

    def _find_records(self) -> None:
        for path in Path(f"/proc/{self._server.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(path).startswith("/memfd:progress"):
                    inode = path.stat().st_ino
                    if inode not in self._records:
                        self._records[inode] = os.open(path, os.O_RDONLY)

    def _made(self) -> int:
        """Tokens that have been made since the last look, by any worker."""
        more = 0
        for inode, record in self._records.items():
            if reading := read(record):
                more += reading.tokens - self._tokens[inode]
                self._tokens[inode] = reading.tokens
        return more

    def _worker(self) -> int:
        """Its pid; 0 when there is none that serves."""
        entry = self._server.loaded(self._model)
        return int(entry["pid"] or 0) if entry.get("state") == "ready" else 0


@contextlib.contextmanager
def striking(server: Server, model: str, after: Sequence[int]) -> Iterator[Striker]:
    """Meanwhile every answer is struck."""
    striker = Striker(server, model, after)
    striker.start()
    try:
        yield striker
    finally:
        striker.stop()
    striker.check()
