"""supervisor.background: an exception that ends a task is told while the task is still held."""

from __future__ import annotations

import asyncio
from typing import Any

from supervisor import background


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
