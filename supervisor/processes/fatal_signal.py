"""What a worker's faulthandler writes when a fatal signal has come.

It arrives milliseconds after the signal. The end of the process, its closed sockets included, is
known only when the kernel has torn its memory down, which takes 55 ms a gigabyte.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

_FATAL = re.compile(rb"Fatal Python error: ([A-Za-z- ]+)\n")
_SIGNALS = {
    b"Aborted": "SIGABRT",
    b"Segmentation fault": "SIGSEGV",
    b"Bus error": "SIGBUS",
    b"Floating-point exception": "SIGFPE",
    b"Floating point exception": "SIGFPE",
    b"Illegal instruction": "SIGILL",
}
_READ_BYTES = 65536
_FIRST_LINE = 256
"""Bytes of it that are kept: faulthandler writes its first line in several pieces."""

log = logging.getLogger("bulkhead.supervisor")


class FatalSignalReader:
    """The reading end of the pipe that one child's faulthandler writes to.

    All of it is copied to the child's stderr file, where people look for it. Owns the descriptor.
    """

    def __init__(self, descriptor: int, stderr: Path, on_fatal: Callable[[str], None]) -> None:
        """`on_fatal` is called at most once, with the signal's name, on the running event loop."""
        self._descriptor = descriptor
        self.stderr = stderr
        """The child's file; to be set to its new name when it is renamed."""
        self._on_fatal = on_fatal
        self._reported = False
        self._beginning = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    def close(self) -> None:
        """Copy what is left and close the descriptor; the child is gone. `on_fatal` is not called
        any more."""
        self._reported = True
        while self._descriptor >= 0 and self._read():
            pass
        self._end()

    def _read(self) -> bool:
        """Copy what has arrived; whether there was anything."""
        try:
            written = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if not written:
            self._end()
            return False
        try:
            with open(self.stderr, "ab") as file:  # behind what the child has written itself
                file.write(written)
        except OSError as error:
            # A full disk costs the text, not the event.
            log.error("a worker's last words are lost: %s", error.strerror)
        self._beginning += written[: _FIRST_LINE - len(self._beginning)]
        if not self._reported and (found := _FATAL.match(self._beginning)):
            self._reported = True
            self._on_fatal(_SIGNALS.get(found[1], "a fatal error"))
        return True

    def _end(self) -> None:
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
