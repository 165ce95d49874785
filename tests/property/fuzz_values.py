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
