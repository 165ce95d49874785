"""Work that nobody waits for.

A process that has lowered its priority can't raise it again without privileges. A thread can end
instead: Linux' nice value and Darwin's background state are a thread's own, so work that is done on
a thread of its own leaves none of it behind. Threads that the work starts inherit it; mlx-lm's
import starts none but OpenBLAS' helpers, which no request uses.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LOWEST = 19
"""Nice value."""
_PRIO_DARWIN_THREAD = 3
_PRIO_DARWIN_BG = 0x1000


def in_background(work: Callable[[], T]) -> T:
    """Do `work` on a thread that yields the CPU to everybody else. Blocks until it is done, and
    raises what it raises."""
    with ThreadPoolExecutor(1, "background", initializer=_lower_priority) as thread:
        return thread.submit(work).result()


def _lower_priority() -> None:
    """Lower the priority of the calling thread, as far as the system lets us: it is a courtesy."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        elif sys.platform == "darwin":
            os.setpriority(_PRIO_DARWIN_THREAD, 0, _PRIO_DARWIN_BG)
