"""pydantic-ai's agent, whole and streamed; its default for OpenAI is `/v1/responses`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable
from typing import Any

from pydantic_ai import Agent

asked: list[str] = []
deltas: list[Any] = []


def opening_hour(place: str) -> str:
    """When a place opens."""
    asked.append(place)
    return f"The {place} opens at seven."


async def note(context: Any, events: AsyncIterable[Any]) -> None:
    async for event in events:
        if event.event_kind == "part_delta":
            deltas.append(event)


async def main() -> None:
    for kind in sys.argv[2:]:
        agent = Agent(f"{kind}:{sys.argv[1]}", tools=[opening_hour])
        whole = await agent.run("When do harbour and market open?")
        print(whole.output)
        deltas.clear()
        streamed = await agent.run("When do harbour and market open?", event_stream_handler=note)
        assert streamed.output == whole.output
        assert len(deltas) > 10, deltas
    assert sorted(asked) == sorted(["harbour", "market"] * 2 * len(sys.argv[2:])), asked


asyncio.run(main())
