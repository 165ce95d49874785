"""What is asked for during a storm, and what of an answer must be the same as without it."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.helpers.serving import Answer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "list",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "names": {
                    "type": "array",
                    "items": {"type": "string", "maxLength": 12},
                    "maxItems": 5,
                },
                "count": {"type": "integer", "minimum": 0, "maximum": 999},
            },
            "required": ["names", "count"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip


_TEXTS = ("text", "content", "reasoning_content", "arguments")


def make(kind: str, model: str, tokens: int, dice: random.Random) -> tuple[str, dict[str, Any]]:
    """A request of that kind: its path and its body. All but plain ones are sampled with a seed."""
    seeded = {"temperature": 0.9, "seed": dice.randrange(2**31)}
    words = " ".join(dice.choice(("red", "stone", "42", "é", "river", "{}")) for _ in range(6))
    text: dict[str, Any] = {"prompt": words, "max_tokens": tokens, "ignore_eos": True}
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": words}], "max_tokens": tokens}
    match kind:
        case "plain":
            path, body = TEXT, {**text, "temperature": 0}
        case "seeded":
            path, body = TEXT, {**text, **seeded, "top_p": 0.95, "logprobs": 2}
        case "penalised":
            path, body = (
                TEXT,
                {**text, **seeded, "frequency_penalty": 0.7, "stop": ["zq", "\u00e9"]},
            )
        case "several":
            path, body = CHAT, {**chat, **seeded, "n": 2, "ignore_eos": True}
        case "structured":
            path, body = CHAT, {**chat, **seeded, "response_format": SCHEMA}
        case "calling":
            path, body = CHAT, {**chat, **seeded, "tools": [WEATHER], "tool_choice": "required"}
        case "reasoning":
            chat["messages"][0]["content"] = f"Think: {dice.randrange(9)} + {dice.randrange(9)}?"
            path, body = CHAT, {**chat, **seeded, "reasoning_effort": "high"}
        case unknown:
            raise AssertionError(unknown)
    body["model"] = model
    if dice.random() < 0.6:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return path, body


def said(answer: Answer) -> Any:
    """All that an answer says of its choices and its usage. What is made anew for each answer, ids
    and times, is left out; the pieces of a stream are not put together."""
    assert answer.status == 200, f"{answer.status}: {answer.body[:500]!r}"
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return _without_ids(answer.json["choices"]), answer.json["usage"]
    assert answer.events[-1] == "[DONE]", answer.events[-1]
    return choices_of([json.loads(event) for event in answer.events[:-1]])


def choices_of(chunks: list[dict[str, Any]]) -> Any:
    """What a stream's chunks, or one whole answer as the only one, say."""
    choices: dict[int, list[Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            choices.setdefault(choice["index"], []).append(_without_ids(choice))
    return choices, chunks[-1].get("usage")


def letters(value: Any) -> set[str]:
    """All characters of a text that is in `said`."""
    match value:
        case dict():
            texts = [item for key, item in value.items() if key in _TEXTS and isinstance(item, str)]
            return set("".join(texts)).union(*map(letters, value.values()))
        case list() | tuple():
            return set().union(*map(letters, value))
    return set()


def _without_ids(value: Any) -> Any:
    """JSON without the ids of tool calls."""
    match value:
        case dict():
            return {key: _without_ids(item) for key, item in value.items() if key != "id"}
        case list():
            return [_without_ids(item) for item in value]
    return value
