"""LangChain's agent with the models of OpenAI and Anthropic: whole and streamed."""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

asked: list[str] = []


def opening_hour(place: str) -> str:
    """When a place opens."""
    asked.append(place)
    return f"The {place} opens at seven."


question = {"messages": [{"role": "user", "content": "When do harbour and market open?"}]}
for model in (ChatOpenAI(model=sys.argv[1]), ChatAnthropic(model=sys.argv[1])):
    agent = create_agent(model, tools=[opening_hour])
    whole = agent.invoke(question)["messages"][-1]
    print(whole.content)
    assert whole.usage_metadata["output_tokens"] > 0
    parts = [
        message.text
        for message, _ in agent.stream(question, stream_mode="messages")
        if message.type == "AIMessageChunk"
    ]
    assert whole.content in "".join(parts), parts
    assert len(parts) > 10
assert sorted(asked) == sorted(["harbour", "market"] * 4), asked
