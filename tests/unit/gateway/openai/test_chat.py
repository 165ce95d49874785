"""gateway.openai.chat: every parameter's fate."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as SDKChat
from openai.types.completion_create_params import CompletionCreateParamsBase as SDKText

from gateway.openai import chat as chat_module
from gateway.openai.chat import CHOICES_MAX, HARMLESS
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Chat, Generate, Sampling, Text
from tests.helpers.openai_bodies import (
    CHANCE,
    ENDPOINTS,
    NEUTRAL_CHAT,
    NEUTRAL_TEXT,
    SECRET,
    USER,
    chat,
    completion,
    refusal,
)

# ── parameters ───────────────────────────────────────────────────────────────────────────────────


def test_a_plain_request_leaves_everything_to_the_model() -> None:
    plain = Sampling(seed=CHANCE)
    assert chat() == Generate("r", Chat([USER]), 1.5, sampling=plain)
    assert completion() == Generate("r", Text("hello"), 1.5, sampling=plain)


GOOD: list[tuple[str, Any, str, Any]] = [
    ("max_tokens", 1, "max_tokens", 1),
    ("max_tokens", 2**53, "max_tokens", 2**53),
    ("min_tokens", 0, "min_tokens", 0),
    ("min_tokens", 2**53, "min_tokens", 2**53),
    ("stop", "x", "stop", ("x",)),
    ("stop", [], "stop", ()),
    ("stop", ["a", "b", "c", "d"], "stop", ("a", "b", "c", "d")),
    ("stop", "x" * 1024, "stop", ("x" * 1024,)),
    ("ignore_eos", True, "ignore_eos", True),
    ("ignore_eos", False, "ignore_eos", False),
]
GOOD_SAMPLING: list[tuple[str, Any, str, Any]] = [
    ("temperature", 0, "temperature", 0.0),
    ("temperature", 0.7, "temperature", 0.7),
    ("temperature", 2, "temperature", 2.0),
    ("top_p", 0, "top_p", 0.0),
    ("top_p", 1, "top_p", 1.0),
    ("seed", 0, "seed", 0),
    ("seed", -(2**63), "seed", -(2**63)),
    ("seed", 2**63 - 1, "seed", 2**63 - 1),
    ("top_k", -1, "top_k", 0),
    ("top_k", 0, "top_k", 0),
    ("top_k", 2**53, "top_k", 2**53),
    ("min_p", 0, "min_p", 0.0),
    ("min_p", 1, "min_p", 1.0),
    ("xtc_probability", 1, "xtc_probability", 1.0),
    ("xtc_threshold", 0.5, "xtc_threshold", 0.5),
    ("presence_penalty", -2, "presence_penalty", -2.0),
    ("presence_penalty", 2, "presence_penalty", 2.0),
    ("frequency_penalty", -2, "frequency_penalty", -2.0),
    ("frequency_penalty", 0.5, "frequency_penalty", 0.5),
    ("repetition_penalty", 0, "repetition_penalty", 1.0),
    ("repetition_penalty", 1.1, "repetition_penalty", 1.1),
    ("repetition_penalty", 10, "repetition_penalty", 10.0),
    ("repetition_context_size", 1, "repetition_context", 1),
    ("logit_bias", {}, "logit_bias", ()),
    ("logit_bias", {"5": 100, "0": -100}, "logit_bias", ((5, 100.0), (0, -100.0))),
    ("logit_bias", {"05": 1, "5": 0.5}, "logit_bias", ((5, 0.5),)),
    ("logit_bias", {"5": None, "6": 1}, "logit_bias", ((6, 1.0),)),
    ("logit_bias", {"999999999": 1}, "logit_bias", ((999_999_999, 1.0),)),
]


@ENDPOINTS
@pytest.mark.parametrize(("name", "value", "field", "expected"), GOOD)
def test_a_good_value_reaches_the_worker(
    ask: Any, name: str, value: Any, field: str, expected: Any
) -> None:
    request = ask(**{name: value})
    assert getattr(request, field) == expected
    assert type(getattr(request, field)) is type(expected)


@ENDPOINTS
@pytest.mark.parametrize(("name", "value", "field", "expected"), GOOD_SAMPLING)
def test_a_good_value_reaches_the_sampler(
    ask: Any, name: str, value: Any, field: str, expected: Any
) -> None:
    sampling = ask(**{name: value}).sampling
    assert getattr(sampling, field) == expected
    assert type(getattr(sampling, field)) is type(expected)
    assert sampling.seed == (expected if name == "seed" else CHANCE)


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        *(
            (chat, name)
            for name in sorted([*chat_module._CHAT_FIELDS, *chat_module.NEUTRAL_CHAT, *HARMLESS])
        ),
        *(
            (completion, name)
            for name in sorted([*chat_module._TEXT_FIELDS, *chat_module.NEUTRAL_TEXT, *HARMLESS])
        ),
        (chat, "unknown"),
        (completion, "unknown"),
    ],
)
def test_null_means_absent(ask: Any, name: str) -> None:
    if name in ("messages", "prompt"):
        assert type(refusal(ask, {name: None})) is MissingParameter
    else:
        assert ask(**{name: None}) == ask()


@pytest.mark.parametrize(
    "members",
    [
        {"stream_options": {"include_usage": None, "include_obfuscation": None}},
        {"chat_template_kwargs": dict.fromkeys(["enable_thinking", "reasoning_effort"])},
        {
            "messages": [
                {**USER, "name": None, "tool_calls": None, "audio": None, "function_call": None}
            ]
        },
    ],
)
def test_null_means_absent_inside_too(members: dict[str, Any]) -> None:
    assert chat(**members) == chat()


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
        ({"max_completion_tokens": 5, "min_tokens": 5}, 5),
    ],
)
def test_the_newer_name_of_max_tokens_wins(members: dict[str, Any], tokens: int) -> None:
    assert chat(**members).max_tokens == tokens


@pytest.mark.parametrize(
    ("members", "logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities_of_a_chat(members: dict[str, Any], logprobs: int | None) -> None:
    assert chat(**members).logprobs == logprobs


@pytest.mark.parametrize("logprobs", [None, 0, 5, 20])
def test_log_probabilities_of_a_completion(logprobs: int | None) -> None:
    assert completion(logprobs=logprobs).logprobs == logprobs


def test_an_echo_is_asked_for() -> None:
    assert completion(echo=True).echo
    assert not completion(echo=False).echo


NO_NUMBERS: list[Any] = [SECRET, True, [], {}, [1]]
NO_FLAGS: list[Any] = [1, 0, SECRET, "true", []]
NO_TEXTS: list[Any] = [1, True, [], {}]
INTEGERS = (*("max_tokens", "min_tokens", "seed", "n", "top_k", "repetition_context_size"),)
NUMBERS = (
    *("temperature", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
TOO_MUCH = (
    *[("max_tokens", v) for v in (0, -1, 2**53 + 1, 2**64, 2**70)],
    *[("min_tokens", v) for v in (-1, 2**53 + 1, 2**70)],
    *[("n", v) for v in (0, -1, CHOICES_MAX + 1, 2**70)],
    *[("temperature", v) for v in (-0.1, 2.1, 1e308, 2**70, 10**400)],
    *[("top_p", v) for v in (-0.1, 1.1)],
    *[("min_p", v) for v in (-0.1, 1.1)],
    *[("top_k", v) for v in (-2, 2**70)],
    *[("seed", v) for v in (2**63, -(2**63) - 1, 2**200)],
    *[("xtc_probability", v) for v in (-0.1, 1.1)],
    *[("xtc_threshold", v) for v in (-0.1, 0.51, 1)],
    *[("presence_penalty", v) for v in (-2.1, 2.1)],
    *[("frequency_penalty", v) for v in (-2.1, 2.1)],
    *[("repetition_penalty", v) for v in (-0.1, 10.1)],
    *[("repetition_context_size", v) for v in (0, -1, 4097)],
)
BAD: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    *(({name: value}, InvalidType, name) for name in INTEGERS + NUMBERS for value in NO_NUMBERS),
    *(({name: 1.5}, InvalidType, name) for name in INTEGERS),
    *(
        ({name: value}, InvalidType, name)
        for name in ("stream", "ignore_eos")
        for value in NO_FLAGS
    ),
    *(({"model": value}, InvalidType, "model") for value in NO_TEXTS),
    *(({name: value}, InvalidValue, name) for name, value in TOO_MUCH),
    ({"min_tokens": 6, "max_tokens": 5}, InvalidValue, "min_tokens"),
    ({"stop": 5}, InvalidType, "stop"),
    ({"stop": {"a": SECRET}}, InvalidType, "stop"),
    ({"stop": ["a", 5]}, InvalidType, "stop[1]"),
    ({"stop": ["a", None]}, InvalidType, "stop[1]"),
    ({"stop": ""}, InvalidValue, "stop"),
    ({"stop": ["a", ""]}, InvalidValue, "stop[1]"),
    ({"stop": ["a"] * 5}, InvalidValue, "stop"),
    ({"stop": "x" * 1025}, InvalidValue, "stop"),
    ({"logit_bias": [SECRET]}, InvalidType, "logit_bias"),
    ({"logit_bias": {SECRET: 1}}, InvalidValue, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, InvalidValue, "logit_bias"),
    ({"logit_bias": {"1.0": 1}}, InvalidValue, "logit_bias"),
    ({"logit_bias": {"1e3": 1}}, InvalidValue, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, InvalidValue, "logit_bias"),
    ({"logit_bias": {str(2**70): 1}}, InvalidValue, "logit_bias"),
    ({"logit_bias": {"5": 100.1}}, InvalidValue, "logit_bias[...]"),
    ({"logit_bias": {"5": SECRET}}, InvalidType, "logit_bias[...]"),
    ({"logit_bias": {"5": True}}, InvalidType, "logit_bias[...]"),
    ({"logit_bias": {str(k): 1 for k in range(10_001)}}, InvalidValue, "logit_bias"),
    ({"stream_options": SECRET}, InvalidType, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, InvalidType, "stream_options.include_usage"),
    ({"stream_options": {"other": SECRET}}, UnsupportedParameter, "stream_options.other"),
    ({"unknown": SECRET}, UnsupportedParameter, "unknown"),
    ({"previous_response_id": SECRET}, UnsupportedParameter, "previous_response_id"),
]


@ENDPOINTS
@pytest.mark.parametrize(("members", "kind", "param"), BAD)
def test_a_bad_value_is_named_and_not_quoted(
    ask: Any, members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(ask, members)
    assert type(error) is kind
    assert error.param == param
    assert f"`{param}`" in error.message


BAD_CHAT: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    ({"max_completion_tokens": 0}, InvalidValue, "max_completion_tokens"),
    ({"max_completion_tokens": 4, "max_tokens": 9, "min_tokens": 5}, InvalidValue, "min_tokens"),
    ({"logprobs": 1}, InvalidType, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, InvalidValue, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, InvalidValue, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": True}, InvalidType, "top_logprobs"),
    ({"top_logprobs": 1}, InvalidValue, "top_logprobs"),
    ({"reasoning_effort": SECRET}, UnsupportedValue, "reasoning_effort"),
    ({"reasoning_effort": 5}, InvalidType, "reasoning_effort"),
    ({"chat_template_kwargs": SECRET}, InvalidType, "chat_template_kwargs"),
    *(
        (
            {"chat_template_kwargs": {name: SECRET}},
            UnsupportedParameter,
            f"chat_template_kwargs.{name}",
        )
        for name in ("add_generation_prompt", "messages", "tools", "strftime_now", "tokenize", "x")
    ),
    (
        {"chat_template_kwargs": {"enable_thinking": SECRET}},
        InvalidType,
        "chat_template_kwargs.enable_thinking",
    ),
    ({"echo": False}, UnsupportedParameter, "echo"),
    ({"best_of": 1}, UnsupportedParameter, "best_of"),
]
BAD_TEXT: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    ({"logprobs": 21}, InvalidValue, "logprobs"),
    ({"logprobs": -1}, InvalidValue, "logprobs"),
    ({"logprobs": True}, InvalidType, "logprobs"),
    ({"logprobs": 0, "echo": True}, UnsupportedValue, "logprobs"),
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


@pytest.mark.parametrize(
    ("ask", "members", "kind", "param"),
    [*((chat, *each) for each in BAD_CHAT), *((completion, *each) for each in BAD_TEXT)],
)
def test_a_bad_value_of_one_endpoint_is_named(
    ask: Any, members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(ask, members)
    assert type(error) is kind
    assert error.param == param


@ENDPOINTS
@pytest.mark.parametrize("name", sorted(HARMLESS))
@pytest.mark.parametrize("value", ["text", 5, {"a": [1]}, [], True])
def test_what_cannot_be_seen_in_the_answer_is_accepted(ask: Any, name: str, value: Any) -> None:
    assert ask(**{name: value}) == ask()


def test_the_harmless_are_those_that_the_facts_call_so() -> None:
    assert {"user", "metadata", "store", "service_tier", "prediction"} <= HARMLESS
    dangerous = {"response_format", "tool_choice", "n", "logprobs", "logit_bias", "echo", "suffix"}
    assert not dangerous & HARMLESS


@pytest.mark.parametrize(
    ("sdk", "known"),
    [
        (SDKChat, chat_module._CHAT_FIELDS | HARMLESS | set(chat_module.NEUTRAL_CHAT)),
        (SDKText, chat_module._TEXT_FIELDS | HARMLESS | set(chat_module.NEUTRAL_TEXT)),
    ],
)
def test_every_parameter_of_the_sdk_has_a_fate(sdk: type, known: set[str]) -> None:
    assert set(get_type_hints(sdk)) - known == set()


OF_BOTH = [(chat, NEUTRAL_CHAT), (completion, NEUTRAL_TEXT)]


@pytest.mark.parametrize(
    ("ask", "name", "value"),
    [(ask, name, value) for ask, table in OF_BOTH for name in table for value in table[name]],
)
def test_a_value_that_asks_for_nothing_is_accepted(ask: Any, name: str, value: Any) -> None:
    assert ask(**{name: value}) == ask()


@pytest.mark.parametrize(
    ("ask", "name", "value"),
    [
        (ask, name, value)
        for ask, table in OF_BOTH
        for name in table
        for value in (SECRET, 7, [SECRET], {SECRET: 1}, {"type": "json_schema"})
    ],
)
def test_what_is_not_implemented_is_refused(ask: Any, name: str, value: Any) -> None:
    error = refusal(ask, {name: value})
    assert type(error) is UnsupportedParameter
    assert error.param == name
