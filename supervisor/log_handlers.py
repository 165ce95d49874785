"""Where log lines go, in the supervisor and the gateway: a file that goes on whatever others do to
it, and a terminal that holds nobody up."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import select
import threading
import time
from io import TextIOWrapper
from pathlib import Path

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S"
ROTATE_BYTES = 10 * 2**20
ROTATE_KEEP = 3
_STDERR = 2
_CONSOLE_LINES = 1000
"""That may wait for a console that takes none; further ones are left out."""
_CONSOLE_SECONDS = 1.0
"""How long the end of the process waits for them."""
_LOOK_SECONDS = 1.0
"""Between two looks at whether the file is still there, and between two attempts to open it."""


class LineFormatter(logging.Formatter):
    """Never raises: of a record whose arguments do not fit its message, which is a bug, the line
    says where it is."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as error:  # noqa: BLE001, whatever an argument's own code raises
            where = f"{record.pathname}:{record.lineno}"
            return f"{record.levelname} cannot be told: {where} ({type(error).__name__})"


class LogFile(logging.handlers.RotatingFileHandler):
    """Rotated, mode 0600. Never raises, and never blocks on anything but a disk.

    Where the file was removed, moved or cannot be written, it is opened anew, its folder made again
    if need be. While that fails lines are lost, which stderr is told once.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=ROTATE_BYTES, backupCount=ROTATE_KEEP, encoding="utf-8", delay=True
        )
        self.setFormatter(LineFormatter(FORMAT, DATE_FORMAT))
        self._next_look = 0.0
        self._is_lost = False
        """Whether stderr was told that lines are lost, and they still are."""

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        try:
            if now >= self._next_look:
                self._next_look = now + _LOOK_SECONDS
                if self.stream is None or not self._is_in_place(self.stream):
                    self._open_anew()
            if self.stream is None:
                return
            if self.shouldRollover(record):
                self._rotate()
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
            self._is_lost = False
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._lose(error)

    def _open(self) -> TextIOWrapper:
        try:
            return self._append()
        except FileNotFoundError:
            folder = Path(self.baseFilename).parent
            for missing in (folder.parent, folder):  # no more: what is above is not ours
                missing.mkdir(mode=0o700, exist_ok=True)
            return self._append()

    def _append(self) -> TextIOWrapper:
        return open(
            self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_private
        )

    def _rotate(self) -> None:
        with contextlib.suppress(OSError):  # too long is better than lost
            self.doRollover()
        if self.stream is None:
            self.stream = self._open()

    def _is_in_place(self, stream: TextIOWrapper) -> bool:
        try:
            there, ours = os.stat(self.baseFilename), os.fstat(stream.fileno())
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _open_anew(self) -> None:
        self._close_stream()
        self.stream = self._open()

    def _close_stream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError):  # what it still holds is lost, and that is told
                stream.close()

    def _lose(self, error: Exception) -> None:
        self._close_stream()
        if not self._is_lost:
            self._is_lost = True
            why = getattr(error, "strerror", None) or error
            _tell(f"bulkhead: cannot write {self.baseFilename}: {why}; lines are lost meanwhile\n")


def _tell(text: str, descriptor: int = _STDERR) -> None:
    """There, if there is something that takes it at once: there is nobody else to tell."""
    with contextlib.suppress(OSError, ValueError):
        _, takes, _ = select.select((), (descriptor,), (), 0)
        if takes:
            os.write(descriptor, text.encode(errors="backslashreplace"))


def _private(path: str, flags: int) -> int:
    # Without O_NONBLOCK a FIFO in the file's place would stop us until somebody reads it.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


class Console(logging.Handler):
    """Writes to stderr, or to a terminal, from a thread of its own. Never blocks and never raises:
    a pipe that nobody reads, or a terminal that is stopped, costs lines and nothing else."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(FORMAT, DATE_FORMAT))
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(_CONSOLE_LINES)
        self._thread = threading.Thread(target=self._write, name="console", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread can be started: what it takes at once
            self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n"
        if not self._thread.is_alive():
            _tell(line, self._descriptor)
            return
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(line.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Return when all lines are written, or after a second."""
        if self._thread.is_alive():
            lines = self._lines
            with lines.all_tasks_done:
                lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, _CONSOLE_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                pass  # closed, or its reader has left: the file has the line
            finally:
                self._lines.task_done()
