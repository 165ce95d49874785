"""The SDKs themselves, each told to refuse whatever is not of its types, whole and streamed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MODEL, *KINDS = sys.argv[1:]
QUESTION = "When do harbour and market open?"
SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string"}},
    "required": ["place"],
}
TOOL = {"name": "opening_hour", "description": "When a place opens.", "parameters": SCHEMA}
events: list[Any] = []
"""Of the last two streams."""


def opening_hours(calls: Sequence[tuple[str, str | Mapping[str, Any]]]) -> list[str]:
    """The results of calls, each a name and arguments."""
    assert [name for name, _ in calls] == ["opening_hour"] * 2, calls
    found = [json.loads(each) if isinstance(each, str) else dict(each) for _, each in calls]
    assert found == [{"place": "harbour"}, {"place": "market"}], found
    return [f"The {each['place']} opens at seven." for each in found]


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
    calls = first.tool_calls
    results = opening_hours([(call.function.name, call.function.arguments) for call in calls])
    messages.append(first.to_dict())
    for call, result in zip(calls, results, strict=True):
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
    calls = [item for item in first.output if item.type == "function_call"]
    results = opening_hours([(call.name, call.arguments) for call in calls])
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": result}
        for call, result in zip(calls, results, strict=True)
    ]
    answer = ask(outputs, first.id)
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
    calls = [block for block in first.content if block.type == "tool_use"]
    results = opening_hours([(call.name, call.input) for call in calls])
    said.append({"role": "assistant", "content": [block.to_dict() for block in first.content]})
    blocks = [
        {"type": "tool_result", "tool_use_id": call.id, "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    said.append({"role": "user", "content": blocks})
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

    text, calls, _ = ask()
    results = opening_hours([(call.function.name, call.function.arguments) for call in calls])
    dumped = [call.model_dump() for call in calls]
    said.append({"role": "assistant", "content": text, "tool_calls": dumped})
    for call, result in zip(calls, results, strict=True):
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
