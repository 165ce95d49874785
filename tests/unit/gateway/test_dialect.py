"""gateway.dialect: what all dialects count and tell alike."""

from __future__ import annotations

import json

import pytest

from gateway.dialect import ChoiceBuffer, Usage, arguments_object, contract_form, new_call_id
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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("{}", {}),
        ('{"a": [1]}', {"a": [1]}),
        ("", None),
        ('{"a": ', None),
        ("[1]", None),
        ("null", None),
        ('{"a":' * 100_000, None),  # what a model that can't stop writes until its length ends it
    ],
)
def test_arguments_are_a_whole_object_or_none(arguments: str, told: object) -> None:
    assert arguments_object(arguments) == told


def test_calls_have_ids_of_their_own() -> None:
    assert len({new_call_id() for _ in range(100)}) == 100


def test_an_error_in_the_contract_s_form() -> None:
    error = QueueFull("Full.", retry_after=3)
    status, body = contract_form(error, "req-1")
    assert status == 503
    assert json.loads(body) == error.body()
