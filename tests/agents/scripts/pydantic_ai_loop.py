"""pydantic-ai's agent, whole and streamed; its default for OpenAI is `/v1/responses`."""

from __future__ import annotations

import asyncio
import sys

from pydantic_ai import Agent

asked: list[str] = []


def opening_hour(place: str) -> str:
    """When a place opens."""
    asked.append(place)
    return f"The {place} opens at seven."


async def main() -> None:
    for kind in sys.argv[2:]:
        agent = Agent(f"{kind}:{sys.argv[1]}", tools=[opening_hour])
        whole = await agent.run("When does the harbour open?")
        print(whole.output)
        async with agent.run_stream("When does the harbour open?") as streamed:
            parts = [part async for part in streamed.stream_text(delta=True, debounce_by=None)]
        assert "".join(parts) == whole.output, parts
        assert len(parts) > 10, parts
    assert asked == ["harbour"] * 2 * len(sys.argv[2:]), asked


asyncio.run(main())
