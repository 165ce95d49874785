"""Random requests to a real server: `python -m tests.property.fuzz --requests 20000 --seed 1`.

Every request is a function of the seed and its number. None may end in a 5xx that a healthy server
has no cause for, in a malformed error or in a body that the SDK's types refuse, or replace a
worker.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.helpers.serving import Answer, Server, serving
from tests.helpers.tiny_embedding import make_embedding
from tests.helpers.tiny_llama import make_llama
from tests.property import fuzz_messages, fuzz_ollama, fuzz_responses
from tests.property.fuzz_values import COMMON, JUNK, KNOWN, MODELS, SCHEMAS, check_error

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BODIES: dict[tuple[str, bool], type[BaseModel]] = {
    (CHAT, False): ChatCompletion,
    (CHAT, True): ChatCompletionChunk,
    (TEXT, False): Completion,
    (TEXT, True): Completion,
    (EMBED, False): CreateEmbeddingResponse,
}


def tool(name: Any, parameters: Any) -> dict[str, Any]:
    """A function tool."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CHATS: dict[str, tuple[Any, ...]] = {
    "logprobs": (True, False, None),
    "top_logprobs": (0, 1, 20, 21, None),
    "max_completion_tokens": (1, 4, 0, None),
    "tools": ([], *([tool("f", each)] for each in SCHEMAS), [tool("f", {}), tool("f", {})], [{}]),
    "tool_choice": (
        "none", "auto", "required", "must", {"type": "auto"}, {"type": "any"},
        {"type": "function", "function": {"name": "f"}},
        {"type": "function", "function": {"name": "g"}}, {"type": "allowed_tools"}, None,
    ),
    "parallel_tool_calls": (True, False, None),
    "response_format": (
        {"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "xml"}, None,
        *({"type": "json_schema", "json_schema": {"name": "s", "schema": s}} for s in SCHEMAS),
    ),
    "reasoning_effort": ("none", "low", "high", "extreme", None),
    "chat_template_kwargs": ({}, {"enable_thinking": False}, {"tools": 1}, None),
    "modalities": (["text"], ["audio"], None),
    "think": (True, False, "low", {"type": "disabled"}, 3, None),
    "reasoning": ({"effort": None}, {"effort": "low"}, {"exclude": True}, "off", None),
}  # fmt: skip
TEXTS: dict[str, tuple[Any, ...]] = {
    "echo": (True, False, None),
    "logprobs": (0, 1, 20, 21, None),
    "best_of": (1, 2, 0, None),
    "suffix": ("", "x", None),
}
EMBEDS: dict[str, tuple[Any, ...]] = {
    "encoding_format": ("float", "base64", "int8", None),
    "dimensions": (1, 64, 65, 0, None),
    "user": ("me", None),
}
PROMPTS: tuple[Any, ...] = (
    "hello", "hello", "", "é\x00\U0010ffff", "<|end|>", ["a", "b"], [], [""], [1, 2, 256], [257],
    [-1], [[1], [2]], [[]], [[1], "a"], [1.5], "x" * 9000, "x " * 2**20, [1] * 500_000, None,
)  # fmt: skip
MESSAGES: tuple[Any, ...] = (
    *([{"role": role, "content": "hi"}] for role in ("user", "system", "developer", "tool", "god")),
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
    [{"role": role, "content": role} for role in ("system", "system", "user", "user", "system")],
    [{"role": "user", "content": ""}], [{"role": "user"}], [{}], [], None,
)  # fmt: skip


def request(seed: int, number: int) -> tuple[str, dict[str, Any]]:
    """The path and the body of the request with this number."""
    dice = random.Random(f"{seed}:{number}")
    path = dice.choices((CHAT, TEXT, EMBED), (5, 4, 1))[0]
    body: dict[str, Any] = {"model": dice.choices(MODELS, (5, 3, 4))[0]}
    if path == EMBED:
        choices = EMBEDS
        body["input"] = dice.choice(PROMPTS)
    else:
        choices = {**COMMON, **(CHATS if path == CHAT else TEXTS)}
        body["max_tokens"] = dice.choices((1, 3, 6, 60, 0, "4"), (8, 8, 8, 4, 1, 1))[0]
        name, values = ("messages", MESSAGES) if path == CHAT else ("prompt", PROMPTS)
        body[name] = values[0] if dice.random() < 0.6 else dice.choice(values)
        if body["model"] == "demo" and dice.random() < 0.5:
            # What it has learned to answer by thinking, with a call, in JSON.
            said = dice.choice(KNOWN)
            body[name] = [{"role": "user", "content": said}] if path == CHAT else said
            body["max_tokens"] = 200
    for name in dice.sample(sorted(choices), dice.randrange(min(6, len(choices)))):
        body[name] = dice.choice(choices[name])
    if dice.random() < 0.15:
        name = dice.choice([*choices, *body])
        # Without a limit, or with a huge one, an answer takes the whole context.
        if name not in ("max_tokens", "max_completion_tokens"):
            body[name] = dice.choice(JUNK)
    return path, body


def shape(value: Any) -> Any:
    """What kinds of values a body has: short, and fit to be shown."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:4]]
    return f"{value[:20]!r}…{len(value)}" if isinstance(value, str) and len(value) > 20 else value


def check(path: str, answer: Answer) -> None:
    """Raises AssertionError or ValidationError unless the answer is one of the contract's."""
    if answer.status != 200:
        check_error(answer.status, answer.json)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events = answer.events
        assert events.pop() == "[DONE]"
        for event in events:
            chunk = json.loads(event)
            for choice in chunk["choices"] if path == TEXT else ():
                # As OpenAI's own chunks: null until the last, which the SDK's type doesn't know.
                choice["finish_reason"] = choice["finish_reason"] or "stop"
                fill_first(choice)
            BODIES[path, True].model_validate(chunk)
    else:
        whole = answer.json
        for each in whole["data"] if path == EMBED else ():
            if isinstance(each["embedding"], str):  # as the SDK itself does it
                values = base64.b64decode(each["embedding"], validate=True)
                each["embedding"] = list(struct.unpack(f"<{len(values) // 4}f", values))
        for each in whole["choices"] if path == TEXT else ():
            fill_first(each)
        BODIES[path, False].model_validate(whole)


def fill_first(choice: Any) -> None:
    """Of a prompt's first token nothing is told: null at OpenAI too, which the SDK's type doesn't
    know."""
    scores = choice["logprobs"]
    if scores and scores["tokens"] and scores["token_logprobs"][0] is None:
        scores["token_logprobs"][0] = 0.0
        assert scores["top_logprobs"][0] is None
        scores["top_logprobs"][0] = {}


class Dialect(NamedTuple):
    """How its requests are made, and its answers judged."""

    request: Callable[[int, int], tuple[str, dict[str, Any]]]
    check: Callable[[str, Answer], None]


DIALECTS = {
    "openai": Dialect(request, check),
    "messages": Dialect(fuzz_messages.request, fuzz_messages.check),
    "responses": Dialect(fuzz_responses.request, fuzz_responses.check),
    "ollama": Dialect(fuzz_ollama.request, fuzz_ollama.check),
}


PATIENCE = 300.0
"""Seconds for one answer: the long run is for machines that have other things to do."""
CONTEXT = 4096
"""Of each model, in tokens: the longest prompts are refused, where sixteen choices of one in the
demo's own context would keep all others waiting for minutes."""


def fuzz(
    server: Server, seed: int, requests: int, clients: int = 4, dialect: str = "openai"
) -> Counter[int]:
    """Send them; how often each status came. Raises AssertionError with the offender's shape."""
    spoken = DIALECTS[dialect]

    def one(number: int) -> int:
        path, body = spoken.request(seed, number)
        try:
            answer = server.request("POST", path, body, seconds=PATIENCE)
            spoken.check(path, answer)
        except Exception as error:
            raise AssertionError(
                f"{dialect}, seed {seed}, request {number}: {path} {shape(body)}: {error!r}"
            ) from error
        return answer.status

    workers = workers_of(server)
    with ThreadPoolExecutor(clients) as pool:
        seen = Counter(pool.map(one, range(requests)))
    assert workers_of(server) == workers, f"seed {seed}: a worker was replaced"
    return seen


def workers_of(server: Server) -> dict[str, tuple[int, int]]:
    """The generation and the process of each model's worker, loaded first if need be."""
    for model in MODELS:
        assert server.chat(model, max_tokens=1).status == 200
    return {e["name"]: (e["generation"], e["pid"]) for e in server.health()["cached_models"]}


def fuzzed(folder: Path) -> Iterator[Server]:
    """A server with the models that the requests ask for."""
    tiny, vectors = make_llama(folder / "tiny"), make_embedding(folder / "vectors")
    sources = (tiny, vectors, "demo")
    config = "".join(
        f'[models.{name}]\nsource = "{source}"\ncontext = {CONTEXT}\n'
        for name, source in zip(MODELS, sources, strict=True)
    )
    with serving(folder / "s", config=config) as server:
        yield server


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--dialect", choices=DIALECTS, action="append", help="all, unless named")
    said = parser.parse_args()
    print(f"seed {said.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for server in fuzzed(Path(folder)):
            for name in said.dialect or DIALECTS:
                seen = fuzz(server, said.seed, said.requests, said.clients, name)
                print(
                    name, json.dumps({str(each): seen[each] for each in sorted(seen)}), flush=True
                )


if __name__ == "__main__":
    main()
