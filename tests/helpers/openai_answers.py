"""Answers as they are rendered, and as the openai SDK reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.dialect import AnswerHead, ChoiceBuffer, Usage
from gateway.openai.render import OpenAIRenderer
from gateway.openai.render_chat import ChatShape
from gateway.openai.render_completions import TextShape
from supervisor.wire.frames import End, Logprob, Logprobs, Token

END = End("length", 3, 2)
NAMES = [
    "m",
    "mlx-community/Qwen3-4B-4bit",
    'quo"ted',
    "back\\slash",
    "naïve 模型 😀",
    "\0",
    "m\u2028",
]
TEXTS = [
    "Hel",
    "lo",
    "",
    'a "quote"',
    "two\n\nlines",
    "data: [DONE]",
    "\u2028",
    "a\x85\u2029b",
    "😀",
    "\0",
]
USED = Usage(prompt=3, completion=2)
"""As `END` says, which is `USAGE` to OpenAI."""
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def events(data: bytes) -> list[str]:
    """The data of each event, by SSE's rules as far as we use them."""
    *blocks, rest = data.decode().split("\n\n")
    assert rest == ""
    # One line to everybody: Python's idea of a line's end has all others in it.
    assert all(block.startswith("data: ") and len(block.splitlines()) == 1 for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def renderer(
    *, chat: bool, model: str = "m", choices: int = 1, include_usage: bool = False
) -> OpenAIRenderer:
    shape = ChatShape if chat else TextShape
    head = AnswerHead(1700000000.5, model, choices)
    return OpenAIRenderer(shape, head, include_usage=include_usage)


def total(*ends: End) -> Usage:
    """Of a single choice each."""
    return Usage.of(ends, 1)


def buffered(tokens: Sequence[Token], end: End, *, logprobs: bool = False) -> ChoiceBuffer:
    choice = ChoiceBuffer(logprobs=logprobs)
    for token in tokens:
        choice.add(token)
    choice.reason = end.finish_reason
    return choice


def tokens_of(texts: Sequence[str]) -> list[Token]:
    return [Token(number, text) for number, text in enumerate(texts)]


def logprob(text: str, value: float, raw: bytes | None = None) -> Logprob:
    return Logprob(7, text, text.encode() if raw is None else raw, value)


LOGPROBS = [
    Logprobs(logprob("Hé", -0.5), (logprob("Ha", -0.25), logprob("Hé", -0.5))),
    Logprobs(logprob("\ufffd", -1.0, b"\xf0\x9f"), (logprob("x", -math.inf),)),
    Logprobs(logprob("\ufffd", -2.0, b"\x98\x80"), ()),
    Logprobs(logprob("!", math.nan), ()),
]
LOGPROB_TOKENS = [
    Token(7, text, logprobs=told)
    for text, told in zip(["Hé", "", "😀", "!"], LOGPROBS, strict=True)
]
