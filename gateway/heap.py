"""The C library's heap, which keeps what is freed unless it is told otherwise.

glibc takes large pieces from the system one by one and gives them back when they are freed, but
after the first one that is freed it takes all of that size from its heap, where a small piece at
the end keeps everything below it. So the size is fixed here, and the heap trimmed once much has
been freed. macOS' library is asked to give back what it can.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

_MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD."""
_LARGE = 128 * 1024
"""Bytes; glibc's own figure before it moves."""
_MUCH = 16 * 2**20
"""Bytes that are freed before the heap is trimmed."""


def keep_large_pieces_apart() -> None:
    """Have large pieces go back to the system when they are freed. To be called early; nothing
    where the library is not glibc."""
    if sys.platform == "linux" and (setting := _function("mallopt")) is not None:
        setting(_MMAP_THRESHOLD, _LARGE)


def trim() -> None:
    """Give what is free back to the system: milliseconds, in which whoever allocates waits."""
    if sys.platform == "darwin":
        if (relieve := _function("malloc_zone_pressure_relief")) is not None:
            relieve.restype = ctypes.c_size_t
            relieve(ctypes.c_void_p(None), ctypes.c_size_t(0))
    elif (trimming := _function("malloc_trim")) is not None:
        trimming(ctypes.c_size_t(0))


class Trimmer:
    """Trims the heap a moment after much has been freed, on a thread of its own. To be used on one
    thread."""

    def __init__(
        self, later: Callable[[float, Callable[[], object]], object], seconds: float = 1.0
    ) -> None:
        """`later` calls something after so many seconds, as an event loop's `call_later`."""
        self._later = later
        self._seconds = seconds
        self._freed = 0
        self._is_due = False

    def freed(self, size: int) -> None:
        """So many bytes are held no longer."""
        self._freed += size
        if self._freed >= _MUCH and not self._is_due:
            self._is_due = True
            self._later(self._seconds, self._trim)

    def _trim(self) -> None:
        self._is_due, self._freed = False, 0
        threading.Thread(target=trim, name="trim", daemon=True).start()


def _function(name: str) -> ctypes._FuncPointer | None:
    """A function of the C library, if it has it."""
    return getattr(ctypes.CDLL(None), name, None)
