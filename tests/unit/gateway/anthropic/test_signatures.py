"""gateway.anthropic.signatures: what is signed comes back; whatever else comes, is nobody's."""

from __future__ import annotations

import base64

import pytest

from gateway.anthropic.signatures import sign, thought_in


@pytest.mark.parametrize("thought", ["", "hm", "é\n\U0001f600" * 1000])
def test_a_thought_comes_back(thought: str) -> None:
    assert thought_in(sign(thought)) == thought
    assert sign(thought)


@pytest.mark.parametrize(
    "signature", ["", "anybody's", "é", "EqQBCgIYAhIM", base64.b64encode(b"\xff" * 30).decode()]
)
def test_others_hold_none(signature: str) -> None:
    assert thought_in(signature) == ""
