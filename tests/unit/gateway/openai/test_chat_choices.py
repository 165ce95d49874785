"""gateway.openai.chat: choices, prompts, templates and formats; any JSON is a sendable request or a 400."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.openai import chat as chat_module
from gateway.openai.chat import CHOICES_MAX, derived, parse_chat, parse_completion
from gateway.openai.messages import MESSAGES_MAX
from gateway.openai.validation import NESTING_MAX, parse_object
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
from supervisor.wire.frames import Chat, Sampling, Structure, Text, Tokens
from tests.helpers.openai_bodies import (
    CHANCE,
    NEUTRAL_CHAT,
    NEUTRAL_TEXT,
    SECRET,
    USER,
    chat,
    chats,
    completions,
    nested,
    refusal,
    schema_format,
)

patient = settings(deadline=None, max_examples=200)


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
        (
            schema_format(nested(NESTING_MAX + 1)),
            InvalidValue,
            "response_format.json_schema.schema",
        ),
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
    assert chat(response_format=schema_format(nested(NESTING_MAX))).structure


# ── anything at all ──────────────────────────────────────────────────────────────────────────────

words = st.sampled_from(
    [
        *chat_module.ChatRequest.__struct_fields__,
        *chat_module.CompletionRequest.__struct_fields__,
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
