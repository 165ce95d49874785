"""The OpenAI Agents SDK, whole and streamed, with its default, `/v1/responses`."""

from __future__ import annotations

import asyncio
import sys

from agents import Agent, Runner, function_tool

asked: list[str] = []


@function_tool
def opening_hour(place: str) -> str:
    """When a place opens."""
    asked.append(place)
    return f"The {place} opens at seven."


async def main() -> None:
    agent = Agent(name="Guide", model=sys.argv[1], tools=[opening_hour])
    whole = await Runner.run(agent, "When do harbour and market open?")
    print(whole.final_output)
    streamed = Runner.run_streamed(agent, "When do harbour and market open?")
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert streamed.final_output == whole.final_output
    assert whole.final_output in "".join(deltas), deltas
    assert len(deltas) > 10, deltas
    assert sorted(asked) == ["harbour", "harbour", "market", "market"], asked


asyncio.run(main())
