"""The SDKs themselves, each told to refuse whatever is not of its types, whole and streamed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

MODEL, *KINDS = sys.argv[1:]
QUESTION = "When does the harbour open?"
SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string"}},
    "required": ["place"],
}
TOOL = {"name": "opening_hour", "description": "When a place opens.", "parameters": SCHEMA}
events: list[Any] = []
"""Of the last two streams."""


def opening_hour(name: str, arguments: str | dict[str, Any]) -> str:
    assert name == "opening_hour", name
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert found == {"place": "harbour"}, found
    return "The harbour opens at seven."


def chat(stream: bool) -> str:
    import openai

    client = openai.OpenAI(_strict_response_validation=True)
    messages: list[Any] = [{"role": "user", "content": QUESTION}]

    def ask() -> Any:
        tools: list[Any] = [{"type": "function", "function": TOOL}]
        if not stream:
            return client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
        with client.chat.completions.stream(
            model=MODEL, messages=messages, tools=tools, stream_options={"include_usage": True}
        ) as streamed:
            events.extend(streamed)
            return streamed.get_final_completion()

    first = ask().choices[0].message
    [call] = first.tool_calls
    result = opening_hour(call.function.name, call.function.arguments)
    messages.append(first.to_dict())
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    answer = ask()
    assert answer.usage.completion_tokens > 10
    return str(answer.choices[0].message.content)


def responses(stream: bool) -> str:
    import openai

    client = openai.OpenAI(_strict_response_validation=True)

    def ask(asked: Any, previous: Any) -> Any:
        more: dict[str, Any] = {"model": MODEL, "tools": [{"type": "function", **TOOL}]}
        more |= {"previous_response_id": previous} if previous else {}
        if not stream:
            return client.responses.create(input=asked, **more)
        with client.responses.stream(input=asked, **more) as streamed:
            events.extend(seen := list(streamed))
            numbers = [event.sequence_number for event in seen]
            assert numbers == list(range(len(numbers))), numbers
            return streamed.get_final_response()

    first = ask(QUESTION, None)
    [call] = [item for item in first.output if item.type == "function_call"]
    result = opening_hour(call.name, call.arguments)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": result}
    answer = ask([output], first.id)
    assert answer.usage.output_tokens > 10
    return str(answer.output_text)


def messages(stream: bool) -> str:
    import anthropic

    client = anthropic.Anthropic(_strict_response_validation=True)
    said: list[Any] = [{"role": "user", "content": QUESTION}]
    tool: Any = {"name": TOOL["name"], "description": "", "input_schema": SCHEMA}

    def ask() -> Any:
        if not stream:
            return client.messages.create(model=MODEL, max_tokens=1000, messages=said, tools=[tool])
        with client.messages.stream(
            model=MODEL, max_tokens=1000, messages=said, tools=[tool]
        ) as streamed:
            events.extend(streamed)
            return streamed.get_final_message()

    first = ask()
    assert first.stop_reason == "tool_use", first
    [call] = [block for block in first.content if block.type == "tool_use"]
    result = opening_hour(call.name, call.input)
    said.append({"role": "assistant", "content": [block.to_dict() for block in first.content]})
    block = {"type": "tool_result", "tool_use_id": call.id, "content": result}
    said.append({"role": "user", "content": [block]})
    answer = ask()
    assert answer.stop_reason == "end_turn", answer
    assert answer.usage.output_tokens > 10
    return "".join(block.text for block in answer.content if block.type == "text")


def ollama(stream: bool) -> str:
    import ollama

    client = ollama.Client(host=os.environ["OLLAMA_HOST"])
    said: list[Any] = [{"role": "user", "content": QUESTION}]

    def ask() -> Any:
        tools: list[Any] = [{"type": "function", "function": TOOL}]
        if not stream:
            answer = client.chat(MODEL, messages=said, tools=tools)
            return answer.message.content, answer.message.tool_calls, answer
        events.extend(parts := list(client.chat(MODEL, said, tools=tools, stream=True)))
        text = "".join(part.message.content or "" for part in parts)
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        return text, calls, parts[-1]

    text, [call], _ = ask()
    result = opening_hour(call.function.name, dict(call.function.arguments))
    said.append({"role": "assistant", "content": text, "tool_calls": [call.model_dump()]})
    said.append({"role": "tool", "tool_name": call.function.name, "content": result})
    text, _, last = ask()
    assert last.done, last
    assert last.eval_count > 10, last
    return str(text)


DIALECTS: dict[str, Callable[[bool], str]] = {
    "chat": chat,
    "responses": responses,
    "messages": messages,
    "ollama": ollama,
}
for kind in KINDS:
    dialect, _, manner = kind.partition(":")
    events.clear()
    print(DIALECTS[dialect](manner == "stream"))
    assert len(events) > 40 or manner != "stream", events
