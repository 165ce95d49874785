"""Random requests in Ollama's dialect, and what an answer has to be. See `tests.property.fuzz`."""

from __future__ import annotations

import json
import random
from typing import Any

from ollama import (
    ChatResponse,
    EmbeddingsResponse,
    EmbedResponse,
    GenerateResponse,
    ProgressResponse,
    ShowResponse,
)
from pydantic import BaseModel

from tests.helpers.serving import Answer
from tests.property.fuzz_values import BUSY, JUNK, KNOWN, MODELS, SCHEMAS

CHAT, TEXT, EMBED, OLD_EMBED = "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"
SHOW, PULL = "/api/show", "/api/pull"
BODIES: dict[str, type[BaseModel]] = {
    CHAT: ChatResponse,
    TEXT: GenerateResponse,
    EMBED: EmbedResponse,
    OLD_EMBED: EmbeddingsResponse,
    SHOW: ShowResponse,
    PULL: ProgressResponse,
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_ctx": (4096, -1, "x", None),
    "num_keep": (5, None),
    "seed": (0, -1, 2**63, None),
    "temperature": (0, 0.7, 2, 2.1, None),
    "top_k": (40, 0, -2, None),
    "top_p": (0.5, 1.1, None),
    "min_p": (0.1, 2, None),
    "typical_p": (1, 0.5, None),
    "tfs_z": (1, 2, None),
    "mirostat": (0, 2, None),
    "repeat_last_n": (64, 0, -1, 4097, None),
    "repeat_penalty": (1.1, 0, 11, None),
    "presence_penalty": (1.5, 3, None),
    "frequency_penalty": (0.5, -3, None),
    "penalize_newline": (True, False, None),
    "stop": (["a"], [], [""], "a", ["a"] * 65, None),
    "embedding_only": (True, None),
    "use_mmap": (True, None),
    "frobnicate": (1, None),
}
SHARED: dict[str, tuple[Any, ...]] = {
    "stream": (True, False, "yes", None),
    # None that is short: an unload is no fault, and would look like one.
    "keep_alive": ("5m", "1h30m", -1, "-1", "3000", 3e9, "soon", [], None),
    "format": ("json", "", "xml", *SCHEMAS, None),
    "think": (True, False, "low", "max", 3, None),
    "logprobs": (True, False, None),
    "top_logprobs": (0, 1, 20, 21, None),
    "n": (1, 2),
    "frobnicate": (1, None),
}


def tool(name: Any, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CHATS: dict[str, tuple[Any, ...]] = {
    **SHARED,
    "tools": (
        [], *([tool("f", each)] for each in SCHEMAS), [tool("f", {}), tool("f", {})], [{}],
        [{"function": {"name": "f", "description": "x"}}], "f", [None],
    ),
}  # fmt: skip
TEXTS: dict[str, tuple[Any, ...]] = {
    **SHARED,
    "system": ("", "Be brief.", 3, None),
    "raw": (True, False, 1, None),
    "suffix": ("", "x", None),
    "template": ("", "x", None),
    "context": ([], [1, 2], None),
    "images": ([], ["aGk="], None),
    "width": (0, 64, None),
}
EMBEDS: dict[str, tuple[Any, ...]] = {
    "truncate": (True, False, None),
    "dimensions": (1, 64, 65, 0, None),
    "keep_alive": SHARED["keep_alive"],
    "options": ({}, {"num_ctx": 9, "temperature": 0}, 3, None),
}
CALL = {"function": {"name": "f", "arguments": {"a": [1, None, {"b": "é"}]}}}
USER = {"role": "user", "content": "hello"}
MESSAGES: tuple[Any, ...] = (
    *([{"role": role, "content": "hi"}] for role in ("user", "system", "tool", "god")),
    [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
     {"role": "tool", "tool_name": "f", "content": "42"}],
    [USER, {"role": "assistant", "thinking": "hm", "tool_calls": [CALL, CALL]},
     {"role": "tool", "content": "42"}, {"role": "tool", "content": "43"}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": 3, "arguments": {}}}]}],
    [{**USER, "tool_calls": [CALL]}], [{**USER, "images": ["aGk="]}], [{**USER, "images": []}],
    [{"role": "user", "content": ""}], [{"role": "user"}], [{}], [], None,
)  # fmt: skip
PROMPTS: tuple[Any, ...] = ("hello", "é\x00\U0010ffff", "<|end|>", "", 3, ["a"], "x" * 9000, None)
INPUTS: tuple[Any, ...] = (
    *("hello", ["a", "b"], "", [], [""], [3], "x" * 9000, ["x"] * 2049, [[1, 2]], None),
)


def request(seed: int, number: int) -> tuple[str, dict[str, Any]]:
    """The path and the body of the request with this number."""
    dice = random.Random(f"{seed}:{number}")
    path = dice.choices((CHAT, TEXT, EMBED, OLD_EMBED, SHOW, PULL), (10, 8, 3, 1, 1, 1))[0]
    body: dict[str, Any] = {"model": dice.choices((*MODELS, "no such"), (8, 5, 6, 1))[0]}
    if path in (SHOW, PULL):
        choices: dict[str, tuple[Any, ...]] = {"stream": (True, False), "insecure": (True,)}
    elif path in (EMBED, OLD_EMBED):
        choices = EMBEDS
        body["input" if path == EMBED else "prompt"] = dice.choice(INPUTS)
    else:
        choices = CHATS if path == CHAT else TEXTS
        name, values = ("messages", MESSAGES) if path == CHAT else ("prompt", PROMPTS)
        body[name] = values[0] if dice.random() < 0.6 else dice.choice(values)
        limit = dice.choices((1, 3, 6, 60, "4"), (8, 8, 8, 4, 1))[0]
        if body["model"] == "demo" and dice.random() < 0.5:
            said = dice.choice(KNOWN)
            body[name], limit = ([{**USER, "content": said}] if path == CHAT else said), 200
        body["options"] = {"num_predict": limit}
        for option in dice.sample(sorted(OPTIONS), dice.randrange(4)):
            body["options"][option] = dice.choice(OPTIONS[option])
    for name in dice.sample(sorted(choices), dice.randrange(min(4, len(choices)))):
        body[name] = dice.choice(choices[name])
    if dice.random() < 0.15:
        name = dice.choice([*choices, *body])
        if name not in ("options", "keep_alive"):
            body[name] = dice.choice(JUNK)
    return path, body


def check(path: str, answer: Answer) -> None:
    """Raises AssertionError or ValidationError unless the answer is one of the dialect's."""
    if answer.status != 200:
        check_error(answer.status, answer.json)
    elif answer.headers["content-type"].startswith("application/x-ndjson"):
        assert answer.body.endswith(b"\n")
        told = [json.loads(line) for line in answer.body.splitlines()]
        for each in told:
            assert "error" not in each, each
            BODIES[path].model_validate(each)
        if path != PULL:
            assert [each["done"] for each in told] == [False] * (len(told) - 1) + [True]
            check_end(told[-1])
    else:
        BODIES[path].model_validate(answer.json)
        if path in (CHAT, TEXT):
            check_end(answer.json)


def check_end(last: Any) -> None:
    """Raises AssertionError unless an answer's end has its figures."""
    assert last["done_reason"] in ("stop", "length", "load")
    if last["done_reason"] != "load":
        assert last["prompt_eval_count"] > 0
        names = ("total", "load", "prompt_eval", "eval")
        assert all(last[f"{name}_duration"] > 0 for name in names)


def check_error(status: int, body: Any) -> None:
    """Raises AssertionError."""
    assert set(body) == {"error", "type", "param", "code"}, body
    assert body["error"]
    assert isinstance(body["error"], str)
    assert isinstance(body["param"], str | None)
    assert status in (400, 404) or (status == 503 and body["code"] in BUSY), (status, body)
