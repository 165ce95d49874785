"""gateway.openai.completions: prompts, and the parameters that chats do not have."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.openai.parameters import CHOICES_MAX, derive_seed
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Text, Tokens
from tests.helpers.openai_bodies import SECRET, USER, completion, completions, refusal


@pytest.mark.parametrize("logprobs", [None, 0, 5, 20])
def test_log_probabilities_of_a_completion(logprobs: int | None) -> None:
    assert completion(logprobs=logprobs).logprobs == logprobs


def test_an_echo_is_asked_for() -> None:
    assert completion(echo=True).echo
    assert not completion(echo=False).echo


@pytest.mark.parametrize("count", [0, 1, 20])
def test_an_echo_is_scored_if_log_probabilities_are_wanted(count: int) -> None:
    request = completion(echo=True, logprobs=count)
    assert (request.logprobs, request.prompt_logprobs) == (count, count)
    assert completion(logprobs=count).prompt_logprobs is None
    assert completion(echo=True).prompt_logprobs is None


def test_with_an_echo_there_may_be_no_output() -> None:
    assert completion(echo=True, logprobs=1, max_tokens=0).max_tokens == 0
    assert completion(echo=True, max_tokens=0).max_tokens == 0
    assert completion(echo=True, max_tokens=-1).max_tokens is None


BAD_TEXT: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    ({"logprobs": 21}, InvalidValue, "logprobs"),
    ({"logprobs": -1}, InvalidValue, "logprobs"),
    ({"logprobs": True}, InvalidType, "logprobs"),
    ({"max_tokens": 0}, InvalidValue, "max_tokens"),
    ({"max_tokens": 0, "logprobs": 1}, InvalidValue, "max_tokens"),
    ({"max_tokens": 0, "echo": True, "min_tokens": 1}, InvalidValue, "min_tokens"),
    ({"prompt_logprobs": 1}, UnsupportedParameter, "prompt_logprobs"),
    ({"echo": 1}, InvalidType, "echo"),
    ({"best_of": 2}, UnsupportedValue, "best_of"),
    ({"best_of": 2, "n": 3}, UnsupportedValue, "best_of"),
    ({"best_of": 0}, InvalidValue, "best_of"),
    ({"suffix": SECRET}, UnsupportedParameter, "suffix"),
    ({"max_completion_tokens": 5}, UnsupportedParameter, "max_completion_tokens"),
    ({"top_logprobs": 5}, UnsupportedParameter, "top_logprobs"),
    ({"messages": [USER]}, UnsupportedParameter, "messages"),
    ({"tools": []}, UnsupportedParameter, "tools"),
]


@pytest.mark.parametrize(("members", "kind", "param"), BAD_TEXT)
def test_a_bad_value_is_named(
    members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(completion, members)
    assert type(error) is kind
    assert error.param == param


def test_the_choices_of_prompts_come_one_prompt_after_the_other() -> None:
    requests = completions(prompt=["a", "b"], n=2, best_of=2, seed=5)
    assert [each.prompt for each in requests] == [Text("a"), Text("a"), Text("b"), Text("b")]
    assert [each.request_id for each in requests] == ["r", "r#1", "r#2", "r#3"]
    # As if each prompt had been alone.
    assert [each.sampling.seed for each in requests] == [5, derive_seed(5, 1)] * 2


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [Text("")]),
        ("hello", [Text("hello")]),
        (["hello"], [Text("hello")]),
        (["a", ""], [Text("a"), Text("")]),
        ([1], [Tokens((1,))]),
        ([0, 5, 2**31 - 1], [Tokens((0, 5, 2**31 - 1))]),
        ([[1, 2], [3]], [Tokens((1, 2)), Tokens((3,))]),
    ],
)
def test_a_prompt_is_a_text_or_tokens_or_several(prompt: Any, expected: Any) -> None:
    assert [each.prompt for each in completions(prompt=prompt)] == expected


@pytest.mark.parametrize(
    ("members", "kind", "param"),
    [
        ({"prompt": 5}, InvalidType, "prompt"),
        ({"prompt": {"text": SECRET}}, InvalidType, "prompt"),
        ({"prompt": []}, InvalidValue, "prompt"),
        ({"prompt": [[]]}, InvalidValue, "prompt[0]"),
        ({"prompt": [[1], []]}, InvalidValue, "prompt[1]"),
        ({"prompt": [SECRET, 1]}, InvalidType, "prompt"),
        ({"prompt": [1, [2]]}, InvalidType, "prompt"),
        ({"prompt": [SECRET, [2]]}, InvalidType, "prompt"),
        ({"prompt": [True]}, InvalidType, "prompt[0]"),
        ({"prompt": [None]}, InvalidType, "prompt[0]"),
        ({"prompt": [1.5]}, InvalidType, "prompt[0]"),
        ({"prompt": [1, -1]}, InvalidValue, "prompt[1]"),
        ({"prompt": [2**70]}, InvalidValue, "prompt[0]"),
        ({"prompt": [[2**31]]}, InvalidValue, "prompt[0][0]"),
        ({"prompt": [[True]]}, InvalidType, "prompt[0][0]"),
        ({"prompt": [[[1]]]}, InvalidType, "prompt[0][0]"),
        ({"prompt": ["a"] * (CHOICES_MAX + 1)}, InvalidValue, "n"),
        ({"prompt": ["a", "b"], "n": CHOICES_MAX}, InvalidValue, "n"),
    ],
)
def test_a_bad_prompt_is_named_by_its_place(
    members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(completions, members)
    assert type(error) is kind
    assert error.param == param
