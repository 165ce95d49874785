"""gateway.dialect: what all dialects count and tell alike."""

from __future__ import annotations

import json

from gateway.dialect import ChoiceBuffer, Usage, contract_form
from supervisor.errors import QueueFull
from supervisor.wire.frames import Call, End, Token


def test_usage_is_the_sum_and_a_prompt_counts_once() -> None:
    ends = [End("stop", 3, 1, 1), End("stop", 3, 2), End("length", 7, 4, 2), End("stop", 7, 8)]
    assert Usage.of(ends, 2) == Usage(prompt=10, completion=15, reasoning=3)
    assert Usage.of(ends, 4).prompt == 3
    assert Usage.of(ends, 1).prompt == 20


def test_a_choice_gathers_its_tokens() -> None:
    choice = ChoiceBuffer()
    choice.echo = "a"
    choice.add(Token(1, "b", reasoning="x", calls=(Call(1, "f", "{"), Call(0, "g", ""))))
    choice.add(Token(2, "c", calls=(Call(1, "", "}"),)))
    assert (choice.text, choice.reasoning) == ("abc", ["x"])
    assert choice.calls == {1: ("f", ["{", "}"]), 0: ("g", [""])}
    assert choice.logprobs is None


def test_an_error_in_the_contract_s_form() -> None:
    error = QueueFull("Full.", retry_after=3)
    status, body = contract_form(error, "req-1")
    assert status == 503
    assert json.loads(body) == error.body()
