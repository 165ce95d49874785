"""gateway.openai: every parameter's fate."""

from __future__ import annotations

import contextlib
import json
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase as SDKChat,
)
from openai.types.completion_create_params import CompletionCreateParamsBase as SDKText

from gateway import openai
from gateway.messages import MESSAGES_MAX
from gateway.openai import CHOICES_MAX, HARMLESS, derived, parse_chat, parse_completion
from gateway.validation import NESTING_MAX, parse_object
from supervisor.errors import (
    BulkheadError,
    ClientError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.codec import encode
from supervisor.wire.frames import (
    Chat,
    Generate,
    Sampling,
    Structure,
    Text,
    Tokens,
)

SECRET = "what-the-client-said"
CHANCE = 77
"""The seed of requests that bring none."""
USER = {"role": "user", "content": "hello"}
patient = settings(deadline=None, max_examples=200)


def chats(**members: Any) -> list[Generate]:
    """What the worker is asked for by a chat with these members, nulls and all."""
    raw = parse_object(json.dumps({"model": "m", "messages": [USER], **members}).encode())
    return parse_chat(raw).choices("r", 1.5, CHANCE)


def completions(**members: Any) -> list[Generate]:
    raw = parse_object(json.dumps({"model": "m", "prompt": "hello", **members}).encode())
    return parse_completion(raw).choices("r", 1.5, CHANCE)


def chat(**members: Any) -> Generate:
    (request,) = chats(**members)
    return request


def completion(**members: Any) -> Generate:
    (request,) = completions(**members)
    return request


ENDPOINTS = pytest.mark.parametrize("ask", [chat, completion])


def refusal(ask: Any, members: dict[str, Any]) -> BulkheadError:
    with pytest.raises(ClientError) as caught:
        ask(**members)
    assert SECRET not in caught.value.message
    return caught.value


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
        *((chat, name) for name in sorted([*openai._CHAT_FIELDS, *openai.NEUTRAL_CHAT, *HARMLESS])),
        *(
            (completion, name)
            for name in sorted([*openai._TEXT_FIELDS, *openai.NEUTRAL_TEXT, *HARMLESS])
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
        (SDKChat, openai._CHAT_FIELDS | HARMLESS | set(openai.NEUTRAL_CHAT)),
        (SDKText, openai._TEXT_FIELDS | HARMLESS | set(openai.NEUTRAL_TEXT)),
    ],
)
def test_every_parameter_of_the_sdk_has_a_fate(sdk: type, known: set[str]) -> None:
    assert set(get_type_hints(sdk)) - known == set()


NEUTRAL_CHAT: dict[str, list[Any]] = {
    "functions": [[]],
    "function_call": ["none", "auto"],
    "modalities": [["text"]],
    "audio": [],
    "moderation": [],
    "web_search_options": [],
}
NEUTRAL_TEXT: dict[str, list[Any]] = {"suffix": [""]}
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
        Sampling(seed=derived(5, place)) for place in (1, 2)
    ]
    assert all(each.prompt == alone.prompt and each.max_tokens == 4 for each in more)


def test_derived_seeds_are_many_and_always_the_same() -> None:
    seeds = {derived(seed, place) for seed in (-(2**63), 0, 1, 2**63 - 1) for place in range(128)}
    assert len(seeds) == 4 * 128
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived(1, 2) == 7020988164444819289


def test_the_choices_of_prompts_come_one_prompt_after_the_other() -> None:
    requests = completions(prompt=["a", "b"], n=2, best_of=2, seed=5)
    assert [each.prompt for each in requests] == [Text("a"), Text("a"), Text("b"), Text("b")]
    assert [each.request_id for each in requests] == ["r", "r#1", "r#2", "r#3"]
    # As if each prompt had been alone.
    assert [each.sampling.seed for each in requests] == [5, derived(5, 1)] * 2


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


def test_as_many_choices_as_allowed() -> None:
    assert len(chats(n=CHOICES_MAX)) == CHOICES_MAX
    assert len(completions(prompt=["a"] * CHOICES_MAX)) == CHOICES_MAX
    assert len(completions(prompt=[7] * 5000)) == 1


# ── templates, formats ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("members", "template"),
    [
        ({}, {}),
        ({"reasoning_effort": "minimal"}, {"reasoning_effort": "minimal"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none"}),
        ({"chat_template_kwargs": {}}, {}),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": True}},
            {"enable_thinking": False, "thinking": True},
        ),
        (
            {"chat_template_kwargs": {"thinking_budget": 0, "date_string": "1 Jan 2026"}},
            {"thinking_budget": 0, "date_string": "1 Jan 2026"},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            {"reasoning_effort": "high"},
        ),
    ],
)
def test_what_the_template_is_told(members: dict[str, Any], template: dict[str, Any]) -> None:
    assert chat(**members).prompt == Chat([USER], [], template)


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (schema_format({}), {}),
        (schema_format({"const": None}, strict=True), {"const": None}),
        (schema_format({"type": "object"}, strict=False), {"type": "object"}),
        (schema_format({"type": "array"}, strict=None, description="x"), {"type": "array"}),
        (schema_format({"é": [1, 1.5, "x", {"": True}]}), {"é": [1, 1.5, "x", {"": True}]}),
    ],
)
def test_a_format_is_a_schema(wanted: Any, schema: Any) -> None:
    structure = chat(response_format=wanted).structure
    if schema is None:
        assert structure is None
    else:
        assert isinstance(structure, Structure)
        assert json.loads(structure.schema) == schema


def nested(levels: int) -> Any:
    tree: Any = SECRET
    for _ in range(levels):
        tree = {"items": tree}
    return tree


@pytest.mark.parametrize(
    ("wanted", "kind", "param"),
    [
        (SECRET, InvalidType, "response_format"),
        ({}, MissingParameter, "response_format.type"),
        ({"type": SECRET}, UnsupportedValue, "response_format.type"),
        ({"type": None}, MissingParameter, "response_format.type"),
        ({"type": "json_schema"}, MissingParameter, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": None},
            MissingParameter,
            "response_format.json_schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            MissingParameter,
            "response_format.json_schema.schema",
        ),
        (schema_format(None), MissingParameter, "response_format.json_schema.schema"),
        (schema_format(True), InvalidType, "response_format.json_schema.schema"),
        (schema_format({"minimum": 2**70}), InvalidValue, "response_format.json_schema.schema"),
        (schema_format(nested(NESTING_MAX)), InvalidValue, "response_format.json_schema.schema"),
        (
            schema_format({}, other=SECRET),
            UnsupportedParameter,
            "response_format.json_schema.other",
        ),
        ({"type": "json_object", "schema": {}}, UnsupportedParameter, "response_format.schema"),
    ],
)
def test_a_bad_format_is_named_by_its_place(
    wanted: Any, kind: type[BulkheadError], param: str
) -> None:
    error = refusal(chat, {"response_format": wanted})
    assert type(error) is kind
    assert error.param == param


def test_a_schema_may_be_nested_as_deep_as_anyone_writes_them() -> None:
    assert chat(response_format=schema_format(nested(NESTING_MAX - 1))).structure


# ── anything at all ──────────────────────────────────────────────────────────────────────────────

words = st.sampled_from(
    [
        *openai.ChatRequest.__struct_fields__,
        *openai.CompletionRequest.__struct_fields__,
        *NEUTRAL_CHAT,
        *NEUTRAL_TEXT,
        *("role", "content", "type", "text", "name", "include_usage", "user", "assistant"),
        *("function", "json_schema", "schema", "parameters", "tool_calls", "arguments", "id"),
        *("allowed_tools", "required", "auto", "json_object"),
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | words
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | st.text(max_size=4), inner, max_size=5)
        | st.fixed_dictionaries({"role": leaves, "content": inner})
        | st.fixed_dictionaries({"type": words, "function": inner})
    ),
    max_leaves=12,
)
functions = st.fixed_dictionaries(
    {"name": words | leaves}, optional={"parameters": trees, "strict": leaves}
)
tools = st.fixed_dictionaries({"type": st.just("function"), "function": functions | trees})
messages = st.fixed_dictionaries({"role": words, "content": trees}) | st.fixed_dictionaries(
    {"role": st.just("assistant"), "tool_calls": st.lists(tools, max_size=3)}
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(messages, max_size=3) | trees,
        "prompt": trees | st.lists(st.integers(-1, 2**33), max_size=3),
        "max_tokens": leaves,
        "n": leaves,
        "stop": trees,
        "temperature": leaves,
        "stream_options": trees,
        "tools": st.lists(tools, max_size=3) | trees,
        "tool_choice": words | tools | trees,
        "logit_bias": st.dictionaries(st.integers().map(str) | st.text(max_size=3), leaves),
        "chat_template_kwargs": trees,
        "response_format": trees
        | st.builds(schema_format, trees)
        | st.fixed_dictionaries({"type": words, "json_schema": trees}),
    },
) | st.dictionaries(words, trees, max_size=4)


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
@patient
@given(tree=bodies | trees)
def test_any_json_is_a_sendable_request_or_a_400(parse: Any, tree: Any) -> None:
    with contextlib.suppress(ClientError):
        requests = parse(parse_object(json.dumps(tree).encode())).choices("r", 1.5, CHANCE)
        assert all(encode(request) for request in requests)


@pytest.mark.parametrize(
    "members",
    [
        {"messages": [USER] * (MESSAGES_MAX + 1)},
        {"messages": [{"role": "user", "content": nested(900)}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 10_001}]},
        {"metadata": nested(900)},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(900)}}]},
        {"tool_choice": nested(900)},
        {"chat_template_kwargs": nested(900)},
        {"stop": ["x" * 2_000_000]},
    ],
)
def test_what_is_far_too_much_is_accepted_or_a_400(members: dict[str, Any]) -> None:
    with contextlib.suppress(ClientError):
        assert encode(chat(**members))


def test_as_many_messages_as_allowed() -> None:
    prompt = chat(messages=[USER] * MESSAGES_MAX).prompt
    assert isinstance(prompt, Chat)
    assert len(prompt.messages) == MESSAGES_MAX
