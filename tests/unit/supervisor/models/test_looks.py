"""supervisor.models.looks: one look at a time, on another thread, for all who wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from supervisor import background
from supervisor.models import looks
from supervisor.models.looks import Looks
from tests.helpers.serving import DEADLINE


class Disk:
    """Each look waits for `answer`, and is told when there is news."""

    def __init__(self) -> None:
        self.looks: list[tuple[str, threading.Thread]] = []
        self.began = threading.Event()
        self.answer = threading.Event()
        self.news: str | None = "news"
        self.told: list[tuple[str, str, threading.Thread]] = []
        self.error: Exception | None = None
        self.watch: Looks[str] = Looks(self._look, self._tell)

    def _look(self, name: str) -> str | None:
        self.looks.append((name, threading.current_thread()))
        self.began.set()
        assert self.answer.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        return self.news

    def _tell(self, name: str, news: str) -> None:
        self.told.append((name, news, threading.current_thread()))

    async def running(self) -> None:
        """Return once a look is under way."""
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, self.began.wait, DEADLINE)
        self.began.clear()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(looks, "INTERVAL", 0.0)
    monkeypatch.setattr(looks, "_MAX_PAUSE", 0.0)
    monkeypatch.setattr(looks, "WAIT_SECONDS", DEADLINE)
    return Disk()


def test_a_look_that_is_recent_enough_will_do(disk: Disk) -> None:
    async def scenario() -> None:
        await disk.watch.refresh("m", within=DEADLINE)  # there is none yet
        await disk.watch.refresh("m", within=DEADLINE)
        assert len(disk.looks) == 1
        await disk.watch.refresh("n", within=DEADLINE)
        await disk.watch.refresh("m", within=1e-9)
        await disk.watch.refresh("m")
        assert [name for name, _ in disk.looks] == ["m", "n", "m", "m"]

    disk.answer.set()
    asyncio.run(scenario())


def test_a_look_is_on_another_thread_and_told_on_the_loops(disk: Disk) -> None:
    disk.answer.set()
    asyncio.run(disk.watch.refresh("m"))
    ((name, thread),) = disk.looks
    assert name == "m"
    assert thread is not threading.current_thread()
    assert thread.daemon  # a disk that hangs keeps nobody from exiting
    assert disk.told == [("m", "news", threading.current_thread())]


def test_nothing_new_is_not_told(disk: Disk) -> None:
    disk.news = None
    disk.answer.set()
    asyncio.run(disk.watch.refresh("m"))
    assert (len(disk.looks), disk.told) == (1, [])


def test_all_who_come_before_a_look_begins_share_it(disk: Disk) -> None:
    async def scenario() -> None:
        first = asyncio.gather(*(disk.watch.refresh("m") for _ in range(100)))
        await disk.running()
        # A look that is under way may have seen what was before: these need another one.
        second = asyncio.gather(*(disk.watch.refresh("m") for _ in range(100)))
        other = asyncio.ensure_future(disk.watch.refresh("n"))
        await disk.running()
        assert [name for name, _ in disk.looks] == ["m", "n"]
        disk.answer.set()
        await asyncio.gather(first, second, other)

    asyncio.run(scenario())
    assert [name for name, _ in disk.looks] == ["m", "n", "m"]
    assert sorted(name for name, _, _ in disk.told) == ["m", "m", "n"]


def test_a_disk_that_hangs_is_not_waited_for(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "WAIT_SECONDS", 0.01)

    async def scenario() -> None:
        await disk.watch.refresh("m")  # returns, though there is no answer
        await disk.running()
        assert disk.told == []
        for _ in range(3):
            await disk.watch.refresh("m")
        assert len(disk.looks) == 1
        disk.answer.set()

    asyncio.run(scenario())


@pytest.mark.parametrize("began", [True, False])
def test_a_look_that_fails_is_as_good_as_none(
    disk: Disk, began: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    disk.error = ValueError("planted")
    disk.answer.set()

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            if not began:
                patch.setattr(threading, "Thread", no_thread)
            await disk.watch.refresh("m")
        disk.error = None
        await disk.watch.refresh("m")

    asyncio.run(scenario())
    assert "the files of model m could not be looked at" in caplog.text
    assert [news for _, news, _ in disk.told] == ["news"]


@pytest.mark.parametrize(
    ("took", "pause"), [(0.0, looks.INTERVAL), (0.001, looks.INTERVAL), (0.1, 2.0), (9.0, 5.0)]
)
def test_looking_takes_a_small_part_of_the_time(
    took: float, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = [100.0], list[float]()
    nap = asyncio.sleep

    def look(_: str) -> None:
        now[0] += took

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds
        await nap(0)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(background, "on_thread", _at_once)
    watch: Looks[None] = Looks(look, lambda name, news: None)

    async def scenario() -> None:
        for _ in range(3):
            await watch.refresh("m")

    asyncio.run(scenario())
    assert slept[0] == 0.0
    assert slept[1:] == pytest.approx([pause, pause])


async def _at_once(work: Callable[[], None], name: str) -> None:
    work()
