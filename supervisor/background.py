"""What runs beside everything else, and whose exceptions neither are lost nor do harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import ParamSpec, TypeVar

log = logging.getLogger("bulkhead.supervisor")

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
