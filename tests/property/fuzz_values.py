"""What random requests are made of in every dialect."""

from __future__ import annotations

from typing import Any

MODELS = ("tiny", "vectors", "demo")
"""A random Llama, one that makes embeddings, and one that thinks and calls tools."""
KNOWN = ("What is the weather in Paris?", "Who are you?", "Give me a JSON object.", "Think: 2 + 2?")
BUSY = frozenset({"queue_full", "model_loading"})
"""Codes of 503 that a healthy server may answer."""
JUNK: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, "", "a", "\x00",
    "\U0010ffff", "é" * 300, [], [None], [[]], [{}], [1, "a"], {}, {"a": None}, {"a": [{"b": 1}]},
)  # fmt: skip
SCHEMAS: tuple[Any, ...] = (
    {}, {"type": "object"}, {"type": "array", "items": {"type": "integer"}}, {"enum": ["a", 1]},
    {"type": "string", "pattern": "^(a+)+$"}, {"type": "string", "pattern": "("}, {"$ref": "#"},
    {"$ref": "#/$defs/x"}, {"enum": []}, {"type": "objekt"}, {"anyOf": []}, {"const": 2**70},
    {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a", "b"]},
)  # fmt: skip
COMMON: dict[str, tuple[Any, ...]] = {
    "n": (1, 2, 3, 16, 0, 129, None),
    "min_tokens": (0, 1, 4, 99, None),
    "temperature": (0, 0.7, 2, 2.1, -1, 1e-300, None),
    "top_p": (0, 0.5, 1, 1.1, 1e-300, None),
    "top_k": (-1, 0, 1, 256, 257, 2**53, -2, None),
    "min_p": (0, 0.1, 1, 2, None),
    "xtc_probability": (0, 0.5, 1, 2, None),
    "xtc_threshold": (0, 0.1, 0.5, 0.51, None),
    "presence_penalty": (-2, 0, 2, 3, None),
    "frequency_penalty": (-2, 0.5, 2, -3, None),
    "repetition_penalty": (0, 1e-300, 1.1, 10, 11, None),
    "repetition_context_size": (1, 20, 4096, 4097, 0, None),
    "logit_bias": ({}, {"5": 100}, {"256": -100}, {"257": 1}, {"-1": 1}, {"x": 1}, {"5": None}),
    "seed": (0, -(2**63), 2**63 - 1, 2**63, None),
    "stop": ("a", "", [], ["a", "b"], ["a"] * 64, ["a"] * 65, [1], "x" * 1025, None),
    "ignore_eos": (True, False, None),
    "stream": (True, False, None),
    "stream_options": ({}, {"include_usage": True}, {"include_usage": None}, {"x": 1}, None),
    "user": ("me", None),
    "metadata": ({}, {"a": "b"}, None),
    "frobnicate": (1, None),
    # Of other local servers
    "keep_alive": ("5m", -1, None),
    "options": ({}, {"num_ctx": 9, "temperature": 0}, {"x": 1}, {"seed": -1}, {"top_k": None}, 1),
    "repeat_penalty": (1, 1.1, 0, 11, "x", None),
    "repeat_last_n": (0, -1, 64, 4097, None),
    "mirostat": (0, 2, None),
    "guided_regex": ("a|b", "(a+)+b", "(", "(?=a)", "", 1, None),
    "guided_choice": (["a", "b"], [], [None], ["a" * 200_000], None),
    "grammar": (
        'root ::= "(" root ")" | "x"',
        "root ::= root",
        'start: A\nA: "a"+',
        "start: <x>",
        "",
        None,
    ),
    "structured_outputs": (
        {},
        {"regex": "[0-9]+"},
        {"choice": ["x", ""]},
        {"json": {}, "regex": "a"},
        {"json": {"type": "array", "uniqueItems": True}},
        {"json_object": True},
        {"x": 1},
        1,
        None,
    ),
    "stopping_strings": (["a"], [], [1], None),
}


def check_error(status: int, body: Any) -> None:
    """Raises AssertionError."""
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"]
    assert isinstance(error["message"], str)
    assert isinstance(error["param"], str | None)
    assert status in (400, 404) or (status == 503 and error["code"] in BUSY), (status, error)
