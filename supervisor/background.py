"""What runs beside everything else, and whose exceptions neither are lost nor do harm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import ParamSpec, TypeVar

log = logging.getLogger("bulkhead.supervisor")

WAITING_MAX = 128
"""Pieces of work that may wait for a thread."""

P = ParamSpec("P")
T = TypeVar("T")


def start(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """Run `work` as a task. An exception that ends it goes to the loop's exception handler at once,
    also while somebody still refers to the task."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        name = getattr(task.get_coro(), "__qualname__", task.get_name())
        context = {"message": f"{name} has ended", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)


def guarded(record: Callable[P, T], *args: P.args, **more: P.kwargs) -> T | None:
    """For what is recorded, told to people, or looked at again in a moment: an exception is logged,
    and changes nothing."""
    try:
        return record(*args, **more)
    except Exception:
        log.exception("%s has failed", name_of(record))
        return None


def name_of(function: Callable[..., object]) -> str:
    """For the log."""
    return getattr(function, "__qualname__", repr(function))


async def on_thread(work: Callable[[], T], name: str) -> T:
    """What `work`, which blocks, returns or raises, on a thread of its own that the end of the
    process does not wait for. Raises RuntimeError when no thread can be started. It cannot be
    cancelled."""
    do, done = _job(work)
    threading.Thread(target=do, name=name, daemon=True).start()
    return await done


def _job(work: Callable[[], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
    """What a thread has to do, and where the running loop learns what came of it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(outcome: Callable[[], None]) -> None:
        if not done.done():
            outcome()

    def do() -> None:
        if done.cancelled():
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001, told to who waits
            outcome = partial(done.set_exception, error)
        else:
            outcome = partial(done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, outcome)

    return do, done


class Refused(Exception):
    """A thread takes no work; the message says why."""


class DaemonThread:
    """Runs what blocks, in order, on a thread of its own, which the end of the process does not
    wait for: a disk that does not answer must not keep it. To be used on one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    async def run(self, work: Callable[[], T], *, limit: int = WAITING_MAX) -> T:
        """What `work` returns or raises. Raises Refused when so much waits already, when it is
        closed, and when no thread can be started. Nothing that was begun can be cancelled, and what
        was cancelled before counts as waiting until its turn."""
        if self._is_closed:
            raise Refused("it is closed")
        if self._work.qsize() >= limit:
            raise Refused("too much waits already")
        do, done = _job(work)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise Refused(str(error)) from None
            self._thread = thread
        self._work.put(do)
        return await done

    def close(self) -> None:
        """End once what was asked for is done. Returns at once; nothing more is taken."""
        self._is_closed = True
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class Latest:
    """Runs what blocks, one piece at a time, on a thread that the end of the process does not wait
    for. Of what comes while one runs only the newest is run after it: for a file that is replaced
    as a whole. May be used from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._next: Callable[[], None] | None = None
        self._is_running = False

    def put(self, work: Callable[[], None]) -> None:
        """Have this run, in place of what waits. Returns at once. Where no thread can be started
        the log is told, and it waits for the next call."""
        with self._changed:
            self._next = work
            if self._is_running:
                return
            self._is_running = True
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as error:
            with self._changed:
                self._is_running = False
            log.warning("%s: nothing is written for now: %s", self._name, error)

    def wait(self, seconds: float) -> bool:
        """Return when nothing runs, or after so long. Whether nothing does."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_running, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                work, self._next = self._next, None
                if work is None:
                    self._is_running = False
                    self._changed.notify_all()
                    return
            guarded(work)
