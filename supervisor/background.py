"""Tasks that run beside everything else, whose exceptions are never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


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
