"""gateway.anthropic.request: every parameter of the SDK has a fate, and what each means."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_params
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.anthropic.request import (
    COUNT_BODY,
    MESSAGES_BODY,
    MessagesRequest,
    parse_count,
    parse_messages,
)
from gateway.openai.validation import parse_object
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
from supervisor.wire.frames import Chat, Sampling, Schema
from tests.helpers.anthropic_bodies import (
    SECRET,
    SEED,
    USER,
    WEATHER,
    chat,
    generate,
    parsed,
    refusal,
)

SCHEMA = {"type": "object", "properties": {"a": {"const": None}}}
HUGE = {"type": "json_schema", "schema": {"const": 2**70}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (
            MESSAGES_BODY,
            (
                message_create_params.MessageCreateParamsBase,
                message_create_params.MessageCreateParamsStreaming,
                beta_params.MessageCreateParamsBase,
                beta_params.MessageCreateParamsStreaming,
            ),
        ),
        (
            COUNT_BODY,
            (
                message_count_tokens_params.MessageCountTokensParams,
                beta_count_params.MessageCountTokensParams,
            ),
        ),
    ],
)
def test_every_parameter_of_the_sdk_has_a_fate(body: Any, kinds: Any) -> None:
    known = {*body.kind.__struct_fields__, *body.harmless, *body.neutral}
    told = {name for kind in kinds for name in kind.__annotations__}
    assert len(told) > 10
    assert told <= known
    # Older versions of the API, and of its beta.
    older = {"temperature", "top_p", "top_k", "output_format"}
    assert older <= known


@pytest.mark.parametrize("name", sorted(MESSAGES_BODY.harmless))
def test_what_is_harmless_changes_nothing(name: str) -> None:
    for value in ("x", 3, {"a": ["b"]}, None):
        assert generate(**{name: value}) == generate()


@pytest.mark.parametrize("name", sorted(MESSAGES_BODY.neutral))
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    for value in (None, *MESSAGES_BODY.neutral[name]):
        assert generate(**{name: value}) == generate()
    error = refusal(**{name: {"type": SECRET}})
    assert (type(error), error.param) == (UnsupportedParameter, name)
    assert name in error.message


def test_what_nobody_knows_is_refused_by_name() -> None:
    assert refusal(frobnicate=1).param == "frobnicate"


def test_a_request_of_claude_code() -> None:
    """As it was recorded, but for its texts, which are as short as filler may be."""
    asked = parsed(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>a</system-reminder>"},
                    {"type": "text", "text": "fix", "cache_control": {"type": "ephemeral"}},
                ],
            },
            {"role": "system", "content": "later"},
        ],
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cch=00001;"},
            {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "B", "cache_control": {"type": "ephemeral"}},
        ],
        tools=[WEATHER],
        metadata={"user_id": "x"},
        max_tokens=32000,
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        stream=True,
    )
    (request,) = asked.choices("r", 1.5, SEED)
    assert isinstance(request.prompt, Chat)
    assert [(m["role"], m["content"]) for m in request.prompt.messages] == [
        ("system", "A\n\nB"),
        ("user", "<system-reminder>a</system-reminder>\n\nfix"),
        ("system", "later"),
    ]
    assert request.prompt.template == {
        "enable_thinking": True,
        "thinking": True,
        "reasoning_effort": "high",
    }
    assert request.max_tokens == 32000
    assert asked.ignored() == ()
    assert asked.shows_thoughts


def test_plain_requests() -> None:
    request = generate(max_tokens=5)
    assert request.prompt == Chat([USER])
    assert (request.max_tokens, request.stop, request.calling) == (5, (), None)
    assert request.sampling == Sampling(seed=SEED)
    assert request.request_id == "r"
    assert parsed(model=None).model == ""
    assert parsed().n == 1


def test_sampling() -> None:
    request = generate(temperature=1.0, top_p=0.5, top_k=3, stop_sequences=["a", "\n\n"])
    assert request.sampling == Sampling(seed=SEED, temperature=1.0, top_p=0.5, top_k=3)
    assert request.stop == ("a", "\n\n")


def test_no_tokens_at_all() -> None:
    """A worker makes at least one, which nobody is shown."""
    assert generate(max_tokens=0).max_tokens == 1


@pytest.mark.parametrize(
    ("thinking", "options", "shown"),
    [
        (None, {}, True),
        ({"type": "disabled"}, {"enable_thinking": False, "thinking": False}, True),
        ({"type": "adaptive"}, {"enable_thinking": True, "thinking": True}, True),
        ({"type": "between_tools"}, {"enable_thinking": True, "thinking": True}, True),
        (
            {"type": "adaptive", "display": "summarized"},
            {"enable_thinking": True, "thinking": True},
            True,
        ),
        (
            {"type": "adaptive", "display": "omitted"},
            {"enable_thinking": True, "thinking": True},
            False,
        ),
        (
            {"type": "enabled", "budget_tokens": 1024, "display": None},
            {"enable_thinking": True, "thinking": True, "thinking_budget": 1024},
            True,
        ),
    ],
)
def test_thinking(thinking: Any, options: dict[str, Any], shown: bool) -> None:
    assert chat(thinking=thinking).template == options
    assert parsed(thinking=thinking).shows_thoughts is shown


@pytest.mark.parametrize("effort", ["low", "medium", "high", "xhigh", "max"])
def test_effort(effort: str) -> None:
    assert chat(output_config={"effort": effort}).template == {"reasoning_effort": effort}


def test_a_budget_that_nobody_keeps_to_is_named() -> None:
    budget = {"type": "tokens", "total": 9}
    asked = parsed(output_config={"effort": "low", "task_budget": budget})
    assert asked.ignored() == ("output_config.task_budget",)


@pytest.mark.parametrize(
    "members",
    [
        {"output_config": {"format": FORMAT, "task_budget": {"type": "tokens", "total": 9}}},
        {"output_format": FORMAT},
        {"output_format": FORMAT, "output_config": {"effort": None}},
    ],
)
def test_schemas(members: dict[str, Any]) -> None:
    place = "output_format" if "output_format" in members else "output_config.format"
    told = Schema('{"type":"object","properties":{"a":{"const":null}}}', place=f"{place}.schema")
    assert generate(**members).structure == told


@pytest.mark.parametrize(
    ("members", "kind", "param"),
    [
        ({"max_tokens": None}, MissingParameter, "max_tokens"),
        ({"max_tokens": -1}, InvalidValue, "max_tokens"),
        ({"max_tokens": "5"}, InvalidType, "max_tokens"),
        ({"messages": None}, MissingParameter, "messages"),
        ({"temperature": 1.1}, InvalidValue, "temperature"),
        ({"temperature": SECRET}, InvalidType, "temperature"),
        ({"top_p": -1}, InvalidValue, "top_p"),
        ({"top_k": -1}, InvalidValue, "top_k"),
        ({"stop_sequences": SECRET}, InvalidType, "stop_sequences"),
        ({"stop_sequences": [""]}, InvalidValue, "stop_sequences[0]"),
        ({"stop_sequences": ["a"] * 65}, InvalidValue, "stop_sequences"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            InvalidValue,
            "thinking.budget_tokens",
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 0}},
            InvalidValue,
            "thinking.budget_tokens",
        ),
        ({"thinking": {"type": SECRET}}, UnsupportedValue, "thinking.type"),
        ({"thinking": {"type": "adaptive", "x": 1}}, UnsupportedParameter, "thinking.x"),
        ({"output_config": {"effort": SECRET}}, UnsupportedValue, "output_config.effort"),
        (
            {"output_config": {"format": {"type": "xml"}}},
            UnsupportedValue,
            "output_config.format.type",
        ),
        ({"output_config": {"format": HUGE}}, InvalidValue, "output_config.format.schema"),
        ({"output_format": HUGE}, InvalidValue, "output_format.schema"),
        (
            {"output_format": FORMAT, "output_config": {"format": FORMAT}},
            InvalidValue,
            "output_format",
        ),
        (
            {"output_format": FORMAT, "tools": [WEATHER], "tool_choice": {"type": "any"}},
            UnsupportedValue,
            "output_config.format",
        ),
        (
            {"output_format": FORMAT, "messages": [USER, {"role": "assistant", "content": "{"}]},
            UnsupportedValue,
            "output_config.format",
        ),
        ({"system": [{"type": "image"}]}, UnsupportedValue, "system[0]"),
        ({"system": 3}, InvalidType, "system"),
    ],
)
def test_refusals(members: dict[str, Any], kind: type[BulkheadError], param: str) -> None:
    error = refusal(**members)
    assert isinstance(error, kind)
    assert error.param == param


# ── counting ─────────────────────────────────────────────────────────────────────────────────────


def count(**members: Any) -> Chat:
    body = {"model": "m", "messages": [USER], **members}
    return parse_count(parse_object(json.dumps(body).encode())).chat()


def test_what_is_counted_is_the_prompt_of_the_request() -> None:
    members: dict[str, Any] = {
        "system": "Be brief.",
        "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 5000},
        "output_config": {"effort": "low"},
        "tool_choice": {"type": "any"},
    }
    assert count(**members) == generate(**members, max_tokens=9000).prompt
    assert count(max_tokens="whatever", stream=True, temperature=7, betas=["x"]) == count()


def test_what_is_refused_there_is_refused_here() -> None:
    refused: list[dict[str, Any]] = [{"frobnicate": 1}, {"mcp_servers": [{}]}, {"tools": [{}]}]
    for members in (*refused, {"messages": []}):
        with pytest.raises(ClientError):
            count(**members)


# ── anything ─────────────────────────────────────────────────────────────────────────────────────

words = st.sampled_from(
    [
        *MessagesRequest.__struct_fields__,
        *("role", "content", "type", "text", "name", "id", "input", "tool_use", "tool_result"),
        *("tool_use_id", "is_error", "thinking", "signature", "document", "source", "data"),
        *("user", "assistant", "system", "enabled", "adaptive", "edits", "any", "tool", "auto"),
        *("input_schema", "custom", "bash_20250124", "web_search_20250305", "json_schema"),
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | words
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | st.text(max_size=4), inner, max_size=5)
        | st.fixed_dictionaries({"role": words, "content": inner})
        | st.fixed_dictionaries({"type": words, "text": inner, "content": inner})
    ),
    max_leaves=12,
)
blocks = st.fixed_dictionaries(
    {"type": words},
    optional={
        "text": leaves,
        "id": words,
        "name": words,
        "input": trees,
        "tool_use_id": words,
        "content": trees,
        "thinking": leaves,
        "is_error": leaves,
    },
)
bodies = st.fixed_dictionaries(
    {"max_tokens": st.integers(-1, 5) | leaves},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries({"role": words, "content": st.lists(blocks, max_size=4) | trees}),
            max_size=4,
        ),
        "system": st.lists(blocks, max_size=2) | trees,
        "tools": st.lists(
            st.fixed_dictionaries(
                {}, optional={"name": words, "type": words, "input_schema": trees}
            ),
            max_size=3,
        )
        | trees,
        "tool_choice": st.fixed_dictionaries({"type": words, "name": words}) | trees,
        "thinking": trees,
        "output_config": trees,
        "context_management": trees,
        "stop_sequences": trees,
    },
)


@settings(deadline=None, max_examples=100)
@given(tree=bodies | trees)
def test_any_json_is_a_sendable_request_or_a_400(tree: Any) -> None:
    raw = json.dumps(tree).encode()
    with contextlib.suppress(ClientError):
        asked = parse_messages(parse_object(raw))
        assert all("," not in each for each in asked.ignored())
        assert all(encode(request) for request in asked.choices("r", 1.5, SEED))
    with contextlib.suppress(ClientError):
        assert encode(generate_count(raw))


def generate_count(raw: bytes) -> Chat:
    return parse_count(parse_object(raw)).chat()
