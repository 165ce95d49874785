"""The C library's heap, which on Linux keeps what MLX has freed.

There MLX's buffers are `malloc`'s, and what the supervisor sees of a worker is its resident set.
glibc maps large blocks by themselves and unmaps them when they are freed, but raises the size from
which it does so with every one that is freed, up to 32 MB; smaller ones stay in its arenas.
Elsewhere there is nothing to do.
"""

from __future__ import annotations

import _thread
import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""
MAPPED = 4 * 2**20
"""Bytes from which a block is mapped by itself. Smaller ones, which every step makes anew, cost
more when they are: each time its pages are faulted in again."""
KEPT = 16 * 2**20
"""Free bytes at the end of the heap that may stay."""
ARENAS = 2


class NativeHeap(Protocol):
    def bound(self) -> None:
        """Have it give freed memory back, from now on."""

    def trim(self) -> None:
        """Give back now what is free."""


@dataclass(frozen=True, slots=True)
class Glibc:
    mallopt: Callable[[int, int], int]
    malloc_trim: Callable[[int], int]

    def bound(self) -> None:
        self.mallopt(_M_MMAP_THRESHOLD, MAPPED)
        self.mallopt(_M_TRIM_THRESHOLD, KEPT)
        self.mallopt(_M_ARENA_MAX, ARENAS)

    def trim(self) -> None:
        self.malloc_trim(0)


class Unmanaged:
    """A heap that gives memory back by itself, or is nobody's business."""

    def bound(self) -> None:
        pass

    def trim(self) -> None:
        pass


def _beside(work: Callable[[], object]) -> None:
    """Do it on a thread of its own. Not `threading`'s, whose start waits for that thread: whoever
    frees may hold a lock."""
    _thread.start_new_thread(work, ())


class Trimmer:
    """Trims a heap whenever `KEPT` bytes have been freed that were not MLX's. For any thread."""

    def __init__(
        self, heap: NativeHeap, beside: Callable[[Callable[[], object]], object] = _beside
    ) -> None:
        """`beside` does the work, which takes milliseconds, while the caller goes on."""
        self._heap = heap
        self._beside = beside
        self._freed = 0

    def freed(self, size: int) -> None:
        """So many bytes are held no longer. Two threads at once may lose one of the two sizes,
        which only puts the trimming off."""
        self._freed += size
        if self._freed >= KEPT:
            self._freed = 0
            self._beside(self._heap.trim)


def native_heap() -> NativeHeap:
    """This process's."""
    if not sys.platform.startswith("linux"):
        return Unmanaged()
    library: Any = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        return Unmanaged()  # musl
    return Glibc(library.mallopt, library.malloc_trim)
