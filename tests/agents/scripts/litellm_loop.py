"""LiteLLM: a loop of one's own over `completion`, whole and streamed, and over `responses`."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

MODEL = f"openai/{sys.argv[1]}"
QUESTION = {"role": "user", "content": "When do harbour and market open?"}
FUNCTION = {
    "name": "opening_hour",
    "description": "When a place opens.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
    },
}


def ask(messages: list[Any], *, stream: bool) -> Any:
    tools = [{"type": "function", "function": FUNCTION}]
    answer = litellm.completion(model=MODEL, messages=messages, tools=tools, stream=stream)
    if stream:
        chunks = list(answer)
        assert len(chunks) > 10, len(chunks)
        answer = litellm.stream_chunk_builder(chunks, messages=messages)
    return answer.choices[0]


for stream in (False, True):
    messages: list[Any] = [QUESTION]
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

items: list[Any] = [QUESTION]
for _ in range(2):
    answer = litellm.responses(model=MODEL, input=items, tools=[{"type": "function", **FUNCTION}])
    items += [item.model_dump(exclude_none=True) for item in answer.output]
    for item in answer.output:
        if item.type == "function_call":
            result = f"The {json.loads(item.arguments)['place']} opens at seven."
            output = {"type": "function_call_output", "call_id": item.call_id, "output": result}
            items.append(output)
[message] = answer.output
print(message.content[0].text)
