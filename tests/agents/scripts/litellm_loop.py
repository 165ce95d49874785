"""LiteLLM: a loop of one's own over `completion`, whole and streamed."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

MODEL = f"openai/{sys.argv[1]}"
TOOL = {
    "type": "function",
    "function": {
        "name": "opening_hour",
        "description": "When a place opens.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}


def ask(messages: list[Any], *, stream: bool) -> Any:
    answer = litellm.completion(model=MODEL, messages=messages, tools=[TOOL], stream=stream)
    if stream:
        chunks = list(answer)
        assert len(chunks) > 10, len(chunks)
        answer = litellm.stream_chunk_builder(chunks, messages=messages)
    return answer.choices[0]


for stream in (False, True):
    messages: list[Any] = [{"role": "user", "content": "When do harbour and market open?"}]
    choice = ask(messages, stream=stream)
    assert choice.finish_reason == "tool_calls", choice
    messages.append(choice.message)
    places = []
    for call in choice.message.tool_calls:
        assert call.function.name == "opening_hour"
        places.append(json.loads(call.function.arguments)["place"])
        result = f"The {places[-1]} opens at seven."
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert places == ["harbour", "market"], places
    choice = ask(messages, stream=stream)
    assert choice.finish_reason == "stop", choice
    print(choice.message.content)
