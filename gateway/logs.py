"""Where the gateway's log goes: a file, and access lines to the terminal as well."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from pathlib import Path

from supervisor.log_file import LogFile

_UNSHOWN_MAX = 1000
"""Lines that may wait for the terminal."""


def set_up(path: str, terminal: int | None) -> None:
    """Log to the file at `path` and rotate it. What libraries print goes to stderr, a file too.

    `terminal` is the descriptor of what shows the access lines.
    """
    file = LogFile(Path(path))
    file.addFilter(_without_request_bytes)
    logging.basicConfig(level=logging.INFO, handlers=[file])
    if terminal is not None:
        logging.getLogger("bulkhead.access").addHandler(_Terminal(terminal))


class _Terminal(logging.Handler):
    """Hands lines to a thread: a terminal may be halted (Ctrl-S), and then a write lasts until
    somebody lets it go on. Lines beyond the queue's bound are not shown, and nobody waits for the
    thread, which is a daemon."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(_UNSHOWN_MAX)
        threading.Thread(target=self._show, name="terminal", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(self.format(record))

    def _show(self) -> None:
        with contextlib.suppress(OSError):  # it was closed: nobody looks any more
            while True:
                os.write(self._descriptor, f"{self._lines.get()}\n".encode("utf-8", "replace"))


def _without_request_bytes(record: logging.LogRecord) -> bool:
    """aiohttp quotes the bytes of a malformed request, and those can be keys and prompts."""
    if record.name.startswith("aiohttp"):
        error = record.exc_info[1] if record.exc_info else None
        record.msg, record.args = f"aiohttp: {type(error).__name__ if error else 'notice'}", ()
        record.exc_info = record.exc_text = None
    return True
