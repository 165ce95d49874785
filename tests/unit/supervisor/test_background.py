"""supervisor.background: an exception that ends a task is told while the task is still held."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import pytest

from supervisor import background
from supervisor.background import DaemonThread, Latest, Refused, guarded
from tests.helpers.children import ROOT
from tests.helpers.serving import DEADLINE


async def buggy() -> None:
    raise RuntimeError("planted")


async def idle() -> None:
    await asyncio.Event().wait()


def test_an_exception_goes_to_the_loops_handler_and_an_end_by_cancel_does_not() -> None:
    told: list[dict[str, Any]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        held = [background.start(buggy()), background.start(idle())]
        await asyncio.sleep(0)
        held[1].cancel()
        await asyncio.wait(held)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert [(each["message"], str(each["exception"])) for each in told] == [
        ("buggy has ended", "planted")
    ]


def test_a_daemon_thread_works_in_order_and_tells_what_comes_of_it() -> None:
    async def scenario() -> None:
        thread, order = DaemonThread("x"), list[int]()
        works = [asyncio.create_task(thread.run(partial(order.append, n))) for n in range(5)]
        await asyncio.wait(works)
        assert order == [0, 1, 2, 3, 4]
        assert await thread.run(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda: 1 / 0)
        thread.close()

    asyncio.run(scenario())


def test_a_daemon_thread_lets_so_much_wait_and_no_more() -> None:
    async def scenario() -> None:
        thread, answers, begun = DaemonThread("x"), threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def hang() -> None:
            loop.call_soon_threadsafe(begun.set)
            assert answers.wait(DEADLINE)

        hanging = asyncio.create_task(thread.run(hang))
        await begun.wait()
        works = [asyncio.create_task(thread.run(int)) for _ in range(background.WAITING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="too much waits"):
            await thread.run(int)
        answers.set()
        await asyncio.gather(hanging, *works)
        assert await thread.run(int) == 0
        thread.close()

    asyncio.run(scenario())


def test_a_daemon_thread_that_is_closed_does_what_it_has_and_takes_no_more() -> None:
    async def scenario() -> None:
        thread = DaemonThread("x")
        last = asyncio.create_task(thread.run(lambda: 7))
        await asyncio.sleep(0)
        thread.close()
        with pytest.raises(Refused, match="closed"):
            await asyncio.wait_for(thread.run(int), DEADLINE)
        assert await last == 7

    asyncio.run(scenario())


def test_work_for_which_there_is_no_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        thread = DaemonThread("x")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            with pytest.raises(Refused, match="can't start new thread"):
                await thread.run(int)
        assert await thread.run(int) == 0
        thread.close()

    asyncio.run(scenario())


def test_a_thread_of_its_own_tells_what_comes_of_it() -> None:
    async def scenario() -> None:
        assert await background.on_thread(threading.get_ident, "x") != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await background.on_thread(lambda: 1 / 0, "x")

    asyncio.run(scenario())


def test_the_end_of_the_process_does_not_wait_for_a_daemon_thread() -> None:
    """As on a disk that does not answer."""
    code = (
        "import asyncio, threading\n"
        "from supervisor.background import DaemonThread\n"
        "async def main():\n"
        "    thread = DaemonThread('x')\n"
        "    asyncio.create_task(thread.run(threading.Event().wait))\n"
        "    await asyncio.sleep(0)\n"
        "    thread.close()\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=DEADLINE, check=True)


def test_what_is_guarded_costs_a_line(caplog: pytest.LogCaptureFixture) -> None:
    assert guarded(int, "7") == 7
    assert guarded(int, "seven") is None
    assert "int has failed" in caplog.text


def test_of_what_comes_while_a_write_hangs_only_the_newest_is_written() -> None:
    latest, written = Latest("x"), list[int]()
    begun, answers = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        assert answers.wait(DEADLINE)

    latest.put(hang)
    assert begun.wait(DEADLINE)
    for n in range(5):
        latest.put(partial(written.append, n))
    assert not latest.wait(0)
    answers.set()
    assert latest.wait(DEADLINE)
    assert written == [4]
    latest.put(lambda: [][0])  # a bug in one ends no other
    assert latest.wait(DEADLINE)
    latest.put(partial(written.append, 5))
    assert latest.wait(DEADLINE)
    assert written == [4, 5]


def test_a_write_for_which_there_is_no_thread_comes_with_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    latest, written = Latest("x"), list[int]()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        latest.put(partial(written.append, 1))
        assert latest.wait(0)
    assert "can't start new thread" in caplog.text
    latest.put(partial(written.append, 2))
    assert latest.wait(DEADLINE)
    assert written == [2]
