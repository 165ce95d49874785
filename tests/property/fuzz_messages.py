"""Random requests for messages: `python -m tests.property.fuzz_messages --requests 20000`.

As `tests.property.fuzz`, in Anthropic's dialect.
"""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import TypeAdapter

from gateway.anthropic.schemas import MessagesError
from tests.helpers.serving import Answer
from tests.property.fuzz import BUSY, JUNK, KNOWN, SCHEMAS, main

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
MODELS = ("tiny", "demo")
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def said(role: str, *content: Any) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def tool(name: Any, schema: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "input_schema": schema, **more}


TEXT = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
USER = {"role": "user", "content": "hello"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": None}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "anybody's"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}
MESSAGES: tuple[Any, ...] = (
    [USER], [], None, 5, "hello", [5], [{}], [{"role": "user"}], [said("user")],
    *([{"role": role, "content": "hi"}] for role in ("system", "assistant", "tool", "god")),
    [{"role": "user", "content": each} for each in ("é\x00\U0010ffff", "<|end|>", "", "x" * 9000)],
    [{"role": "user", "content": "x " * 2**20}], [said("user", TEXT, TEXT)], [said("user", IMAGE)],
    [said("user", {"type": "text"})], [said("user", {"type": "x"})], [said("user", {})],
    [USER, said("assistant", TEXT, CALL), said("user", RESULT, TEXT)], [said("user", RESULT)],
    [USER, said("assistant", CALL, CALL), said("user", TEXT, RESULT)], [USER, said("user", CALL)],
    [USER, said("assistant", THOUGHT, TEXT), USER], [said("assistant", THOUGHT), USER],
    [USER, said("assistant", {"type": "redacted_thinking", "data": "x"}), USER],
    [USER, said("user", {**RESULT, "is_error": True, "content": [TEXT, DOCUMENT, IMAGE]})],
    [USER, said("user", {**RESULT, "is_error": True, "content": [TEXT, DOCUMENT]})],
    [USER, said("assistant", {"type": "server_tool_use", "id": "s", "name": "n", "input": {}})],
    [USER, {"role": "system", "content": "later"}, USER, USER], [said("system", TEXT), USER],
    [USER, {"role": "assistant", "content": "The best ("}], [USER, said("assistant", TEXT)],
    [USER, {"role": "assistant", "content": "a "}], [USER, {"role": "assistant", "content": ""}],
    [USER, said("assistant", CALL)], [USER, said("assistant", {**CALL, "input": "x"}), USER],
    [said("user", {"type": "search_result", "content": [TEXT], "source": "s", "title": "t"})],
)  # fmt: skip
CHOICES: dict[str, tuple[Any, ...]] = {
    "system": ("Be brief.", "", [TEXT], [], [{"type": "image"}], 5, None),
    "stream": (True, True, False, None),
    "temperature": (0, 0.7, 1, 1.1, -1, 1e-300, None),
    "top_p": (0, 0.5, 1, 1.1, None),
    "top_k": (0, 1, 256, 257, 2**53, -1, None),
    "stop_sequences": (["a"], ["a", "b"], [], [""], ["a"] * 65, ["x" * 1025], "a", None),
    "thinking": (
        {"type": "adaptive"}, {"type": "disabled"}, {"type": "adaptive", "display": "omitted"},
        {"type": "enabled", "budget_tokens": 1}, {"type": "enabled", "budget_tokens": 1024},
        {"type": "x"}, {}, True, None,
    ),
    "tools": (
        [], *([tool("f", each)] for each in SCHEMAS), [tool("f", {}), tool("f", {})], [{}], [5],
        *([tool("f", each, strict=True)] for each in SCHEMAS), [tool("a b", {})],
        [{"type": "web_search_20250305", "name": "web_search"}, tool("f", {})],
        [{"type": "bash_20250124", "name": "bash"}], [{"type": "x_20250101", "name": "x"}],
        [tool("f", {}, defer_loading=True, input_examples=[{"a": 1}], type="custom")],
    ),
    "tool_choice": (
        {"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": "f"},
        {"type": "tool", "name": "g"}, {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool"}, "auto", {}, None,
    ),
    "output_config": (
        {}, {"effort": "low"}, {"effort": "x"}, {"format": {"type": "xml"}}, None,
        *({"format": {"type": "json_schema", "schema": each}} for each in SCHEMAS),
    ),
    "output_format": (None, *({"type": "json_schema", "schema": each} for each in SCHEMAS[:3])),
    "context_management": (
        {}, {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        {"edits": [{"type": "clear_thinking_20251015"}]}, {"edits": [{"type": "x"}]}, None,
        {"edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "x"}}]}, {"x": 1}, 5,
    ),
    "metadata": ({"user_id": "x"}, None, 5),
    "service_tier": ("auto", None),
    "mcp_servers": ([], [{"type": "url"}], None),
    "container": (None, "c", {}),
    "thread": (None, {"type": "create"}),
    "cache_control": ({"type": "ephemeral"}, None),
    "betas": (["x"], None),
    "frobnicate": (1, None),
}  # fmt: skip


def request(seed: int, number: int) -> tuple[str, dict[str, Any]]:
    """The path and the body of the request with this number."""
    dice = random.Random(f"messages {seed}:{number}")
    path = dice.choices((PATH, COUNT), (8, 1))[0]
    body: dict[str, Any] = {"model": dice.choices(MODELS, (5, 4))[0]}
    body["max_tokens"] = dice.choices((1, 3, 6, 60, 0, -1, "4", None), (8, 8, 8, 4, 2, 1, 1, 1))[0]
    body["messages"] = MESSAGES[0] if dice.random() < 0.4 else dice.choice(MESSAGES)
    if body["model"] == "demo" and dice.random() < 0.5:
        # What it has learned to answer by thinking, with a call, in JSON.
        body["messages"] = [{"role": "user", "content": dice.choice(KNOWN)}]
        body["max_tokens"] = 200
    for name in dice.sample(sorted(CHOICES), dice.randrange(6)):
        body[name] = dice.choice(CHOICES[name])
    if dice.random() < 0.15:
        name = dice.choice([*CHOICES, *body])
        if name != "max_tokens":  # a huge one takes the whole context
            body[name] = dice.choice(JUNK)
    return path, body


def check(path: str, answer: Answer) -> None:
    """Raises AssertionError or ValidationError unless the answer is one of the contract's."""
    if answer.status != 200:
        told = msgspec.json.decode(answer.body, type=MessagesError)
        assert told.request_id == answer.headers["request-id"]
        busy = answer.status in (503, 529) and told.error.details.error_code in BUSY
        assert answer.status in (400, 404) or busy, (answer.status, answer.body)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        kinds = []
        for event in answer.body.decode().split("\n\n")[:-1]:
            name, data = event.split("\n")
            value = json.loads(data.removeprefix("data: "))
            assert name == f"event: {value['type']}"
            kinds.append(value["type"])
            if kinds[-1] != "ping":
                EVENTS.validate_python(value, strict=True)
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    elif path == COUNT:
        MessageTokensCount.model_validate_json(answer.body, strict=True)
    else:
        Message.model_validate_json(answer.body, strict=True)


if __name__ == "__main__":
    main(request, check)
