"""gateway.heap: when the heap is trimmed. What that does is the C library's own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from gateway import heap


def test_the_library_can_be_asked() -> None:
    heap.trim()


def test_much_that_is_freed_has_the_heap_trimmed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = threading.Semaphore(0)
    monkeypatch.setattr(heap, "trim", trimmed.release)
    due: list[Callable[[], object]] = []
    trimmer = heap.Trimmer(lambda seconds, call: due.append(call))
    trimmer.freed(heap._MUCH - 1)
    assert not due
    for _ in range(3):
        trimmer.freed(heap._MUCH)
    assert len(due) == 1
    due.pop()()
    assert trimmed.acquire(timeout=10)
    trimmer.freed(1)
    assert not due
