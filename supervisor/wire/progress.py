"""The progress record: whether a child's threads move, seen from outside of them.

A child maps a small file that it has inherited, and counts in it; the supervisor reads the file.
It costs about 1 µs a step, no lock and no thread's help, and works for a child that is stopped,
hangs or is dead. Each word has one writer. The supervisor does not map it: a file that somebody
cuts short kills those who have it mapped.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

_LAYOUT = struct.Struct("=6Qd3Q")
SIZE = _LAYOUT.size
"""Bytes."""
(
    _BEATS,
    _BEGUN,
    _ENDED,
    _OUTPUTS,
    _PREPARING,
    _PREPARED,
    _LONGEST,
    _TOKENS,
    _PREFILLED,
    _TO_PREFILL,
) = range(10)
BEAT_SECONDS = 0.25
"""Between two beats of an event loop."""
_HALF_LIFE = 1800.0
"""Seconds after which a step counts for half as long."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a record says. A writer may be half-way: two words need not be of the same moment."""

    beats: int = 0
    """Turns of the event loop, four a second."""
    begun: int = 0
    """Steps of the generation thread that have begun."""
    ended: int = 0
    """And that have ended."""
    outputs: int = 0
    """Tokens, vectors and ends that it has made."""
    preparing: int = 0
    """Requests whose preparation the prompt thread has begun."""
    prepared: int = 0
    """And has ended."""
    longest: float = 0.0
    """Seconds of the longest recent step."""
    tokens: int = 0
    """Of the outputs, those that are tokens."""
    prefilled: int = 0
    """Prompt tokens that are done, of the requests that have no token yet."""
    to_prefill: int = 0
    """And all that these have."""

    @classmethod
    def decode(cls, content: bytes | bytearray) -> Reading:
        """Raises struct.error for any other number of bytes than SIZE."""
        return cls(*_LAYOUT.unpack(content))


def create() -> int:
    """A new record's descriptor, all zeros, not inheritable. Raises OSError."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("progress")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        # Written, not only made long: a mapping with holes would end its process on a full disk.
        os.pwrite(descriptor, bytes(SIZE), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read(descriptor: int) -> Reading | None:
    """What the record says; None when it can't be read."""
    try:
        return Reading.decode(os.pread(descriptor, SIZE, 0))
    except (OSError, struct.error):
        return None


class ProgressRecord:
    """The child's side. `clock` in seconds."""

    def __init__(
        self, buffer: mmap.mmap | bytearray, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`buffer` has SIZE zero bytes."""
        self._counts = memoryview(buffer).cast("Q")
        self._seconds = memoryview(buffer).cast("d")
        self._clock = clock
        self._began = self._rested = 0.0
        self._longest = 0.0

    @classmethod
    def inherited(cls, descriptor: int) -> ProgressRecord:
        """Of a descriptor that `create` made; it is closed. For any other one a record that nobody
        reads."""
        try:
            return cls(mmap.mmap(descriptor, SIZE))
        except (OSError, ValueError):
            return cls(bytearray(SIZE))
        finally:
            os.close(descriptor)

    # ── the event loop ───────────────────────────────────────────────────────────────────────────

    async def beat(self) -> NoReturn:
        """Count the loop's turns until cancelled."""
        while True:
            self._counts[_BEATS] += 1
            await asyncio.sleep(BEAT_SECONDS)

    # ── the generation thread ────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """A step begins: something that must end."""
        self._began = self._clock()
        self._counts[_BEGUN] += 1

    def end(self) -> None:
        """The step has ended."""
        now = self._clock()
        faded = self._longest * 0.5 ** ((now - self._rested) / _HALF_LIFE)
        self._longest = max(now - self._began, faded)
        self._rested = now
        self._seconds[_LONGEST] = self._longest
        self._counts[_ENDED] += 1

    def made(self, outputs: int, tokens: int) -> None:
        """So many tokens, vectors or ends more; so many of them are tokens."""
        self._counts[_OUTPUTS] += outputs
        self._counts[_TOKENS] += tokens

    def prefilling(self, done: int, total: int) -> None:
        """Prompt tokens done and in all, of the requests that have no token yet."""
        self._counts[_PREFILLED] = done
        self._counts[_TO_PREFILL] = total

    # ── the prompt thread ────────────────────────────────────────────────────────────────────────

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """While a request is prepared."""
        self._counts[_PREPARING] += 1
        try:
            yield
        finally:
            self._counts[_PREPARED] += 1
