"""gateway.openai.thoughts: what is sealed comes back; whatever else comes, holds nothing."""

from __future__ import annotations

import base64

import pytest

from gateway.openai.thoughts import seal, unseal


@pytest.mark.parametrize("thought", ["", "hm", "naïve 模型\n\0", "é\n\U0001f600" * 1000])
def test_a_thought_comes_back(thought: str) -> None:
    assert unseal(seal(thought)) == thought
    assert seal(thought).isascii()
    assert seal(thought)


@pytest.mark.parametrize(
    "sealed",
    ["", "anybody's", "é", "gAAAAABo", "EqQBCgIYAhIM", base64.b64encode(b"\xff" * 30).decode()],
)
def test_others_hold_none(sealed: str) -> None:
    assert unseal(sealed) == ""
