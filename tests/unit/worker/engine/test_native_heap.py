"""worker.engine.native_heap: what the C library is told."""

from __future__ import annotations

import sys

import pytest

from worker.engine.native_heap import ARENAS, KEPT, MAPPED, Glibc, Unmanaged, native_heap


def test_glibc_is_bound_once_and_trimmed_when_asked() -> None:
    told: list[tuple[int, int]] = []
    trimmed: list[int] = []

    def mallopt(what: int, value: int) -> int:
        told.append((what, value))
        return 1

    def malloc_trim(pad: int) -> int:
        trimmed.append(pad)
        return 1

    heap = Glibc(mallopt, malloc_trim)
    heap.bound()
    assert told == [(-3, MAPPED), (-1, KEPT), (-8, ARENAS)]
    assert trimmed == []
    heap.trim()
    assert trimmed == [0]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_heaps_are_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert isinstance(native_heap(), Unmanaged)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a heap of Linux")
def test_this_one_answers() -> None:
    heap = native_heap()
    heap.trim()
    assert isinstance(heap, Glibc | Unmanaged)
