"""Random requests for responses, and what an answer has to be. See `tests.property.fuzz`."""

from __future__ import annotations

import random
from typing import Any

from openai.types.responses import Response

from tests.helpers.responses import read_events
from tests.helpers.serving import Answer
from tests.property.fuzz_values import COMMON, JUNK, KNOWN, SCHEMAS, check_error

PATH = "/v1/responses"
MODELS = ("tiny", "demo")


def function(name: Any, parameters: Any, **more: Any) -> dict[str, Any]:
    """A function tool."""
    return {"type": "function", "name": name, "parameters": parameters, **more}


def custom(**format: Any) -> dict[str, Any]:
    return {"type": "custom", "name": "c", "format": format}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "x"}
TEXT = {"type": "input_text", "text": "a"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
INPUTS: tuple[Any, ...] = (
    "hello", "", [], None, 5, "é\x00\U0010ffff", "<|end|>", "x" * 9000, [5], [{}], [{"type": "x"}],
    *([said(role, "hi")] for role in ("user", "system", "developer", "assistant", "tool", "god")),
    [said("user", [TEXT, TEXT])], [said("user", [{"type": "input_image"}])], [said("user", [{}])],
    [said("user", "q"), CALL, OUTPUT], [CALL, CALL, OUTPUT, OUTPUT, said("user", "q")], [OUTPUT],
    [said("user", "q"), THOUGHT, said("assistant", "a"), said("system", "s"), said("user", "r")],
    [THOUGHT], [{**THOUGHT, "encrypted_content": "YnVsa2hlYWQAaG0="}, said("user", "q")],
    [{"type": "custom_tool_call", "call_id": "c2", "name": "c", "input": "x"}],
    [{"type": "custom_tool_call_output", "call_id": "c2", "output": [TEXT]}],
    [{"type": "web_search_call", "id": "ws_1"}, said("user", "q")], [{"id": "msg_1"}],
    [{"type": "item_reference", "id": "msg_1"}], [{"type": "compaction", "encrypted_content": "x"}],
    [{"type": "additional_tools", "tools": [function("g", {})]}, said("user", "q")],
    [CALL, {**CALL, "arguments": "{"}], [{**CALL, "namespace": "n" * 80}], [{**CALL, "name": ""}],
)  # fmt: skip
NAMED = {
    "type": "namespace",
    "name": "team",
    "description": "A team.",
    "tools": [function("f", {}), custom(type="text")],
}
CHOICES: dict[str, tuple[Any, ...]] = {
    **COMMON,
    "instructions": ("Be brief.", "", 5, None),
    "top_logprobs": (0, 1, 20, 21, None),
    "include": (
        [], ["message.output_text.logprobs"], ["reasoning.encrypted_content"], ["x"], None,
    ),
    "tools": (
        [], *([function("f", each)] for each in SCHEMAS), [function("f", {}), function("f", {})],
        [{}], [NAMED], [function("team__f", {}), NAMED], [{"type": "web_search"}], [{"type": "x"}],
        *([function("f", each, strict=True)] for each in SCHEMAS),
        [custom(type="text")], [custom(type="grammar", syntax="regex", definition="[0-9]{2}")],
        [custom(type="grammar", syntax="regex", definition="(")],
        [custom(type="grammar", syntax="lark", definition="start: /[a-z]+/")],
        [custom(type="grammar", syntax="lark", definition='start: "(" start ")" | "x"')],
        [custom(type="grammar", syntax="lark", definition="star")],
    ),
    "tool_choice": (
        "none", "auto", "required", "must", {"type": "auto"}, {"type": "web_search"},
        {"type": "function", "name": "f"}, {"type": "function", "name": "g"},
        {"type": "custom", "name": "c"}, {"type": "allowed_tools"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, None,
    ),
    "parallel_tool_calls": (True, False, None),
    "max_tool_calls": (1, 0, -1, None),
    "text": (
        {}, {"verbosity": "low"}, {"format": {"type": "text"}}, {"format": {"type": "json_object"}},
        {"format": {"type": "xml"}}, {"format": {"type": "json_schema"}}, None,
        *({"format": {"type": "json_schema", "name": "s", "schema": each}} for each in SCHEMAS),
    ),
    "reasoning": ({}, {"effort": "low"}, {"summary": "auto"}, {"effort": "x"}, "off", None),
    "truncation": ("auto", "disabled", "x", None),
    "store": (True, False, 5, None),
    "previous_response_id": ("resp_1", "", "x" * 300, None),
    "conversation": (None, "conv_1", {}),
    "background": (True, False, None),
    "prompt": (None, {"id": "p"}),
    "prompt_cache_key": ("k", None),
    "client_metadata": ({"a": "b"}, None),
    "context_management": ([], [{"type": "compaction"}], None),
    "think": (True, False, None),
    "format": ("json", {"type": "object"}, 5, None),
}  # fmt: skip


def request(seed: int, number: int) -> tuple[str, dict[str, Any]]:
    """The path and the body of the request with this number."""
    dice = random.Random(f"responses {seed}:{number}")
    body: dict[str, Any] = {"model": dice.choices(MODELS, (5, 4))[0]}
    body["max_output_tokens"] = dice.choices((1, 3, 6, 60, 0, "4"), (8, 8, 8, 4, 1, 1))[0]
    body["input"] = INPUTS[0] if dice.random() < 0.4 else dice.choice(INPUTS)
    if body["model"] == "demo" and dice.random() < 0.5:
        # What it has learned to answer by thinking, with a call, in JSON.
        body["input"], body["max_output_tokens"] = dice.choice(KNOWN), 200
    for name in dice.sample(sorted(CHOICES), dice.randrange(6)):
        body[name] = dice.choice(CHOICES[name])
    if dice.random() < 0.15:
        name = dice.choice([*CHOICES, *body])
        # Without a limit, or with a huge one, an answer takes the whole context.
        if name != "max_output_tokens":
            body[name] = dice.choice(JUNK)
    return PATH, body


def check(path: str, answer: Answer) -> None:
    """Raises AssertionError or ValidationError unless the answer is one of the contract's."""
    if answer.status != 200:
        check_error(answer.status, answer.json)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events = read_events(answer.body)
        assert events[-1]["type"] in ("response.completed", "response.incomplete")
    else:
        Response.model_validate_json(answer.body, strict=True)
