"""worker.engine.native_heap: what the C library is told."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import SimpleNamespace

import pytest

from tests.helpers.native_heaps import IS_GLIBC, PIECES, SIZE, given_back
from worker.engine.native_heap import (
    ARENAS,
    KEPT,
    MAPPED,
    Glibc,
    Trimmer,
    Unmanaged,
    native_heap,
)


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


@pytest.mark.skipif(not IS_GLIBC, reason="a heap of glibc")
def test_this_one_gives_back_what_is_free() -> None:
    heap = native_heap()
    assert isinstance(heap, Glibc)
    by_itself, trimmed = given_back(heap.trim)
    assert by_itself < SIZE * PIECES // 4 < SIZE * PIECES // 2 < trimmed


def test_a_library_without_these_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc=None))
    assert isinstance(native_heap(), Unmanaged)


def test_a_heap_is_trimmed_each_time_that_much_was_freed() -> None:
    trimmed: list[int] = []

    def malloc_trim(pad: int) -> int:
        trimmed.append(pad)
        return 1

    trimmer = Trimmer(Glibc(lambda what, value: 1, malloc_trim), lambda work: work())
    for _ in range(2):
        before = len(trimmed)
        trimmer.freed(KEPT - 1)
        assert len(trimmed) == before
        trimmer.freed(1)
        assert len(trimmed) == before + 1


def test_who_frees_does_not_wait_for_the_trimming() -> None:
    at_work, goes_on = threading.Event(), threading.Event()

    def trim(pad: int) -> int:
        at_work.set()
        assert goes_on.wait(60)
        return 1

    Trimmer(Glibc(lambda what, value: 1, trim)).freed(KEPT)
    assert at_work.wait(60)
    goes_on.set()
