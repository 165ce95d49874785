"""gateway.openai.parameters: every parameter's fate, on both endpoints, and the choices."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as SDKChat
from openai.types.completion_create_params import CompletionCreateParamsBase as SDKText

from gateway.openai.chat import CHAT_BODY
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.parameters import CHOICES_MAX, HARMLESS, derive_seed
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
)
from supervisor.wire.frames import Chat, Generate, Sampling, Text
from tests.helpers.openai_bodies import (
    ENDPOINTS,
    NEUTRAL_CHAT,
    NEUTRAL_TEXT,
    SECRET,
    SEED,
    USER,
    chat,
    chats,
    completion,
    completions,
    refusal,
)

CHAT_FIELDS = set(CHAT_BODY.kind.__struct_fields__)
TEXT_FIELDS = set(COMPLETION_BODY.kind.__struct_fields__)


def test_a_plain_request_leaves_everything_to_the_model() -> None:
    plain = Sampling(seed=SEED)
    assert chat() == Generate("r", Chat([USER]), 1.5, sampling=plain)
    assert completion() == Generate("r", Text("hello"), 1.5, sampling=plain)


GOOD: list[tuple[str, Any, str, Any]] = [
    ("max_tokens", 1, "max_tokens", 1),
    ("max_tokens", 2**53, "max_tokens", 2**53),
    ("max_tokens", -1, "max_tokens", None),
    ("min_tokens", 0, "min_tokens", 0),
    ("min_tokens", 2**53, "min_tokens", 2**53),
    ("stop", "x", "stop", ("x",)),
    ("stop", [], "stop", ()),
    ("stop", ["a", "b", "c", "d"], "stop", ("a", "b", "c", "d")),
    ("stop", ["x"] * 64, "stop", ("x",) * 64),
    ("stop", "x" * 1024, "stop", ("x" * 1024,)),
    ("ignore_eos", True, "ignore_eos", True),
    ("ignore_eos", False, "ignore_eos", False),
]


@ENDPOINTS
@pytest.mark.parametrize(("name", "value", "field", "expected"), GOOD)
def test_a_good_value_reaches_the_worker(
    ask: Any, name: str, value: Any, field: str, expected: Any
) -> None:
    request = ask(**{name: value})
    assert getattr(request, field) == expected
    assert type(getattr(request, field)) is type(expected)


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
    ("logit_bias", [], "logit_bias", ()),
    ("logit_bias", {"5": 100, "0": -100}, "logit_bias", ((5, 100.0), (0, -100.0))),
    ("logit_bias", {"05": 1, "5": 0.5}, "logit_bias", ((5, 0.5),)),
    ("logit_bias", {"5": None, "6": 1}, "logit_bias", ((6, 1.0),)),
    ("logit_bias", {"999999999": 1}, "logit_bias", ((999_999_999, 1.0),)),
]


@ENDPOINTS
@pytest.mark.parametrize(("name", "value", "field", "expected"), GOOD_SAMPLING)
def test_a_good_value_reaches_the_sampler(
    ask: Any, name: str, value: Any, field: str, expected: Any
) -> None:
    sampling = ask(**{name: value}).sampling
    assert getattr(sampling, field) == expected
    assert type(getattr(sampling, field)) is type(expected)
    assert sampling.seed == (expected if name == "seed" else SEED)


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        *((chat, name) for name in sorted([*CHAT_FIELDS, *CHAT_BODY.neutral, *HARMLESS])),
        *(
            (completion, name)
            for name in sorted([*TEXT_FIELDS, *COMPLETION_BODY.neutral, *HARMLESS])
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


NO_NUMBERS: list[Any] = [SECRET, True, [], {}, [1]]
NO_FLAGS: list[Any] = [1, 0, SECRET, "true", []]
NO_TEXTS: list[Any] = [1, True, [], {}]
INTEGERS = (*("max_tokens", "min_tokens", "seed", "n", "top_k", "repetition_context_size"),)
NUMBERS = (
    *("temperature", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
TOO_MUCH = (
    *[("max_tokens", v) for v in (0, -2, 2**53 + 1, 2**64, 2**70)],
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
    ({"stop": ["a"] * 65}, InvalidValue, "stop"),
    ({"stop": "x" * 1025}, InvalidValue, "stop"),
    ({"logit_bias": [SECRET]}, InvalidValue, "logit_bias"),
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
        (SDKChat, CHAT_FIELDS | HARMLESS | set(CHAT_BODY.neutral)),
        (SDKText, TEXT_FIELDS | HARMLESS | set(COMPLETION_BODY.neutral)),
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


# ── choices ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ask", [chats, completions])
def test_choices_differ_in_id_and_seed_alone(ask: Any) -> None:
    alone, *more = ask(n=3, seed=5, max_tokens=4)
    assert [alone] == ask(seed=5, max_tokens=4)
    assert [each.request_id for each in more] == ["r#1", "r#2"]
    assert [each.sampling for each in more] == [
        Sampling(seed=derive_seed(5, place)) for place in (1, 2)
    ]
    assert all(each.prompt == alone.prompt and each.max_tokens == 4 for each in more)


def test_derived_seeds_are_many_and_always_the_same() -> None:
    seeds = {
        derive_seed(seed, place) for seed in (-(2**63), 0, 1, 2**63 - 1) for place in range(128)
    }
    assert len(seeds) == 4 * 128
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) == 7020988164444819289


def test_as_many_choices_as_allowed() -> None:
    assert len(chats(n=CHOICES_MAX)) == CHOICES_MAX
    assert len(completions(prompt=["a"] * CHOICES_MAX)) == CHOICES_MAX
    assert len(completions(prompt=[7] * 5000)) == 1
