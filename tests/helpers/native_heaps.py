"""What the C library's heap of this process keeps and gives back."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable
from pathlib import Path

IS_GLIBC = platform.libc_ver()[0] == "glibc"
PIECES, SIZE = 40_000, 1000


def given_back(trim: Callable[[], object]) -> tuple[int, int]:
    """Bytes of 40 MB in small pieces that leave this process when they are freed, and when the heap
    is then trimmed. The last piece stays, so that nothing goes by itself."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    pieces = [library.malloc(SIZE) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, SIZE)
    full = _resident()
    for piece in pieces[:-1]:
        library.free(piece)
    kept = _resident()
    trim()
    left = _resident()
    library.free(pieces[-1])
    return full - kept, kept - left


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) * 1024
