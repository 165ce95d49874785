"""smolagents' tool-calling agent, whose answer is itself a call, whole and streamed."""

from __future__ import annotations

import os
import sys

from smolagents import OpenAIModel, ToolCallingAgent, tool

asked: list[str] = []


@tool
def opening_hour(place: str) -> str:
    """When a place opens.

    Args:
        place: Which one.
    """
    asked.append(place)
    return f"The {place} opens at seven."


model = OpenAIModel(
    model_id=sys.argv[1],
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key=os.environ["OPENAI_API_KEY"],
)
for stream in (False, True):
    agent = ToolCallingAgent(tools=[opening_hour], model=model, stream_outputs=stream)
    print(agent.run("When do harbour and market open?"))
assert asked == ["harbour", "harbour"], asked
