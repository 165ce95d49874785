"""LlamaIndex' function agent, which streams, and a call without a stream."""

from __future__ import annotations

import asyncio
import os
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike

asked: list[str] = []


def opening_hour(place: str) -> str:
    """When a place opens."""
    asked.append(place)
    return f"The {place} opens at seven."


async def main() -> None:
    llm = OpenAILike(
        model=sys.argv[1],
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        is_chat_model=True,
        is_function_calling_model=True,
    )
    for streaming in (True, False):
        agent = FunctionAgent(tools=[opening_hour], llm=llm, streaming=streaming)
        print(await agent.run("When do harbour and market open?"))
    assert sorted(asked) == ["harbour", "harbour", "market", "market"], asked


asyncio.run(main())
