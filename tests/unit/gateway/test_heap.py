"""gateway.heap: when the heap is trimmed, and that this gives memory back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gateway import heap
from tests.helpers.native_heaps import IS_GLIBC, PIECES, SIZE, given_back


@pytest.mark.skipif(not IS_GLIBC, reason="a heap of glibc")
def test_what_is_free_is_given_back_when_the_heap_is_trimmed() -> None:
    by_itself, trimmed = given_back(heap.trim)
    assert by_itself < SIZE * PIECES // 4 < SIZE * PIECES // 2 < trimmed


@pytest.mark.parametrize(
    ("platform", "wanted"),
    [("darwin", "malloc_zone_pressure_relief"), ("linux", "malloc_trim")],
)
@pytest.mark.parametrize("has_it", [True, False])
def test_each_library_is_asked_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, platform: str, wanted: str, has_it: bool
) -> None:
    asked: list[tuple[object, ...]] = []

    class Function:
        restype: object = None

        def __call__(self, *arguments: Any) -> None:
            asked.append(tuple(argument.value for argument in arguments))

    known = {wanted: Function()} if has_it else {}
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(heap, "_function", known.get)
    heap.trim()
    assert asked == ([(None, 0) if platform == "darwin" else (0,)] if has_it else [])


@pytest.mark.skipif(sys.platform != "darwin", reason="a function of macOS")
def test_macos_has_the_function() -> None:
    assert heap._function("malloc_zone_pressure_relief") is not None


@pytest.mark.parametrize(("platform", "told"), [("linux", [(-3, 128 * 1024)]), ("darwin", [])])
def test_glibc_alone_is_told_what_is_large(
    monkeypatch: pytest.MonkeyPatch, platform: str, told: list[tuple[int, int]]
) -> None:
    heard: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(heap, "_function", lambda name: lambda *values: heard.append(values))
    heap.keep_large_pieces_apart()
    assert heard == told


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
