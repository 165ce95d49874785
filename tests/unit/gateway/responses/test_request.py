"""gateway.responses.request: every parameter, and what becomes of it."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from openai.types.responses.response_includable import ResponseIncludable

from gateway.openai.local_servers import CHAT_FATES
from gateway.responses.request import RESPONSE_BODY, Include
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    PreviousResponseNotFound,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Pattern, Schema, Structure
from tests.helpers.openai_bodies import SECRET, nested, refusal
from tests.helpers.responses import SEED, Known, asked, function, parsed, prompt, user

SCHEMA = {"type": "object", "properties": {"a": {"const": None}}}


def test_every_parameter_of_the_sdk_has_a_fate() -> None:
    known = {
        *RESPONSE_BODY.kind.__struct_fields__,
        *RESPONSE_BODY.harmless,
        *RESPONSE_BODY.neutral,
        *RESPONSE_BODY.fates,
    }
    params: set[str] = set()
    for kind in (ResponseCreateParamsNonStreaming, ResponseCreateParamsStreaming):
        params |= set(get_type_hints(kind))
    assert params - known == set()
    assert set(ResponseIncludable.__args__) == set(Include.__args__)  # type: ignore[attr-defined]


def test_every_parameter_of_other_servers_has_a_fate() -> None:
    own = set(RESPONSE_BODY.kind.__struct_fields__)
    assert set(CHAT_FATES) - own - set(RESPONSE_BODY.fates) == set()
    assert own & RESPONSE_BODY.fates.keys() == set()


HARMLESS: list[dict[str, Any]] = [
    {"store": False},
    {"store": True},
    {"metadata": {"a": "b"}},
    {"client_metadata": {"x-codex-installation-id": "0"}},
    {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "24h"},
    {"prompt_cache_options": {"mode": "implicit"}},
    {"safety_identifier": "s"},
    {"user": "u"},
    {"service_tier": "auto"},
    {"background": False},
    {"conversation": None},
    {"prompt": None},
    {"max_tool_calls": 3},
    {"truncation": "disabled"},
    {"truncation": "auto"},
    {"context_management": [{"type": "compaction", "compact_threshold": 100}]},
    {"stream_options": {"include_obfuscation": False}},
    {"text": {"verbosity": "low"}},
    {"text": {"format": {"type": "text"}}},
    {"text": {"format": None, "verbosity": None}},
    {"reasoning": {"summary": "auto"}},
    {"reasoning": {"generate_summary": "concise", "context": "auto"}},
    {"reasoning": None},
    {"include": ["reasoning.encrypted_content", "web_search_call.action.sources"]},
    {"include": []},
    {"parallel_tool_calls": True},
    {"instructions": None},
    {"tools": []},
    {"tool_choice": "auto"},
    {"top_logprobs": 0},
    {"n": 1},
    {"max_output_tokens": -1},
]


@pytest.mark.parametrize("members", HARMLESS)
def test_what_changes_nothing(members: dict[str, Any]) -> None:
    assert asked(**members) == asked()


def test_what_is_ignored_is_named() -> None:
    assert parsed(truncation="auto").ignored == ("truncation",)
    assert parsed(text={"verbosity": "low"}).ignored == ("text.verbosity",)
    assert parsed(reasoning={"context": "auto", "effort": "low", "summary": "auto"}).ignored == ()
    told = parsed(reasoning={"context": "current_turn", "mode": "pro"}).ignored
    assert told == ("reasoning.context", "reasoning.mode")
    ignored = RESPONSE_BODY.ignored({"context_management": [], "keep_alive": 5})
    assert set(ignored) == {"context_management", "keep_alive"}


@pytest.mark.parametrize(
    ("members", "name", "value"),
    [
        ({"max_output_tokens": 5}, "max_tokens", 5),
        ({"max_output_tokens": 5, "max_tokens": 9}, "max_tokens", 5),
        ({"max_tokens": 9}, "max_tokens", 9),
        ({"num_predict": 9}, "max_tokens", 9),
        ({"top_logprobs": 2}, "logprobs", 2),
        ({"include": ["message.output_text.logprobs"]}, "logprobs", 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, "logprobs", 3),
        ({"stop": "x"}, "stop", ("x",)),
        ({"min_tokens": 2}, "min_tokens", 2),
    ],
)
def test_what_the_worker_is_asked_for(members: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(asked(**members), name) == value


def test_sampling() -> None:
    made = asked(temperature=0.5, top_p=0.9, top_k=5, seed=3, repeat_penalty=1.1).sampling
    assert (made.temperature, made.top_p, made.top_k, made.seed) == (0.5, 0.9, 5, 3)
    assert made.repetition_penalty == 1.1
    assert asked().sampling.seed == SEED


@pytest.mark.parametrize(
    ("members", "template"),
    [
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"think": False}, {"enable_thinking": False, "thinking": False}),
        (
            {"reasoning": {"effort": "low"}, "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "low", "enable_thinking": True},
        ),
    ],
)
def test_what_templates_are_told(members: dict[str, Any], template: dict[str, Any]) -> None:
    assert prompt(**members).template == template


@pytest.mark.parametrize(
    ("members", "structure"),
    [
        ({"text": {"format": {"type": "json_object"}}}, Schema('{"type": "object"}')),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
            Schema(
                '{"type":"object","properties":{"a":{"const":null}}}', False, "text.format.schema"
            ),
        ),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "n",
                        "schema": {"type": "object"},
                        "strict": True,
                    }
                }
            },
            Schema('{"type":"object"}', True, "text.format.schema"),
        ),
        ({"response_format": {"type": "json_object"}}, Schema('{"type": "object"}')),
        ({"guided_regex": "a+"}, Pattern("a+", "guided_regex")),
        ({"format": "json"}, Schema('{"type": "object"}')),
    ],
)
def test_what_the_answer_must_be(members: dict[str, Any], structure: Structure) -> None:
    assert asked(**members).structure == structure


def test_what_came_before() -> None:
    known = Known({"resp_1": [user("a"), {"role": "assistant", "content": "b"}]})
    made = prompt(known, previous_response_id="resp_1", input="c", instructions="i")
    assert [each["content"] for each in made.messages] == ["i", "a", "b", "c"]
    error = refusal(asked, {"previous_response_id": "resp_1"})
    assert type(error) is PreviousResponseNotFound


JSON = {"format": {"type": "json_object"}}
BAD: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    ({"conversation": "conv_1"}, UnsupportedParameter, "conversation"),
    ({"conversation": {"id": "conv_1"}}, UnsupportedParameter, "conversation"),
    ({"background": True}, UnsupportedParameter, "background"),
    ({"prompt": {"id": "pmpt_1"}}, UnsupportedParameter, "prompt"),
    ({"moderation": {"model": "m"}}, UnsupportedParameter, "moderation"),
    ({"messages": [user("x")]}, UnsupportedParameter, "messages"),
    ({"unheard_of": SECRET}, UnsupportedParameter, "unheard_of"),
    ({"max_completion_tokens": 5}, UnsupportedParameter, "max_completion_tokens"),
    ({"max_output_tokens": 0}, InvalidValue, "max_output_tokens"),
    ({"max_output_tokens": SECRET}, InvalidType, "max_output_tokens"),
    ({"max_output_tokens": 4, "min_tokens": 5}, InvalidValue, "min_tokens"),
    ({"n": 2}, InvalidValue, "n"),
    ({"max_tool_calls": 2**64}, InvalidValue, "max_tool_calls"),
    # The answer repeats them, and could not be written.
    ({"metadata": {"a": 2**64}}, InvalidValue, "metadata"),
    ({"metadata": nested(200)}, InvalidValue, "metadata"),
    ({"tools": [{"type": "mcp", "x": nested(200)}]}, InvalidValue, "tools"),
    ({"tools": [function("f", output_schema={"a": -(2**64)})]}, InvalidValue, "tools"),
    ({"temperature": 3}, InvalidValue, "temperature"),
    ({"top_logprobs": 21}, InvalidValue, "top_logprobs"),
    ({"include": [SECRET]}, UnsupportedValue, "include[0]"),
    ({"truncation": SECRET}, UnsupportedValue, "truncation"),
    ({"reasoning": {"effort": SECRET}}, UnsupportedValue, "reasoning.effort"),
    ({"reasoning": {"x": 1}}, UnsupportedParameter, "reasoning.x"),
    ({"text": JSON, "guided_regex": "a+"}, InvalidValue, "guided_regex"),
    (
        {"guided_regex": "a+", "tools": [function("f")], "tool_choice": "required"},
        UnsupportedValue,
        "guided_regex",
    ),
    ({"text": {"format": {"type": SECRET}}}, UnsupportedValue, "text.format.type"),
    ({"instructions": [SECRET]}, InvalidType, "instructions"),
    ({"previous_response_id": 5}, InvalidType, "previous_response_id"),
    ({"store": SECRET}, InvalidType, "store"),
    (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": nested(200)}}},
        InvalidValue,
        "text.format.schema",
    ),
]


@pytest.mark.parametrize(("members", "kind", "param"), BAD)
def test_what_is_wrong_is_named(
    members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(asked, members)
    assert (type(error), error.param) == (kind, param)


@pytest.mark.parametrize(
    ("told", "param"),
    [
        ("messages", "input"),
        ("messages[3].content", "input"),
        ("response_format", "text.format"),
        ("response_format.json_schema.schema.properties.a", "text.format.schema.properties.a"),
        ("tools[0].function.parameters", "tools[1].parameters"),
        ("tools[1].function.parameters.a", "tools[2].tools[0].parameters.a"),
        ("tools[9].function.parameters", "tools[9].function.parameters"),
        ("tools", "tools"),
        ("model", "model"),
        (None, None),
    ],
)
def test_a_workers_error_is_told_in_this_dialects_words(
    told: str | None, param: str | None
) -> None:
    tools = [
        {"type": "web_search"},
        function("f"),
        {"type": "namespace", "name": "t", "tools": [function("g")]},
    ]
    error = InvalidValue(f"Invalid value for `{told}`.", param=told)
    made = parsed(tools=tools, text=JSON).in_its_words(error)
    assert type(made) is InvalidValue
    assert made.param == param
    assert made.message == f"Invalid value for `{param}`."


CODEX: dict[str, Any] = {
    "model": "m",
    "stream": True,
    "input": [
        {
            "type": "message",
            "id": f"msg_{number}",
            "role": role,
            "content": [{"type": "input_text", "text": "lorem"}] * parts,
        }
        for number, (role, parts) in enumerate(
            [("developer", 1), ("developer", 2), ("user", 1), ("user", 1)]
        )
    ],
    "tools": [
        function("exec_command", strict=False),
        function("write_stdin", strict=False),
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "lorem",
            "tools": [function("close_agent", strict=False), function("spawn_agent")],
        },
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "00000000-0000-0000-0000-000000000000",
    "client_metadata": {"x-codex-installation-id": "00000000-0000-0000-0000-000000000000"},
}


def test_what_was_said_as_chats_say_it_is_told_so() -> None:
    made = parsed(response_format={"type": "json_object"})
    error = InvalidValue("Invalid.", param="response_format")
    assert made.in_its_words(error).param == "response_format"


def test_the_request_of_codex() -> None:
    made = parsed(**CODEX)
    assert made.ignored == ("tools.web_search",)
    assert made.asked.wants_encrypted
    request, chat = asked(**CODEX), prompt(**CODEX)
    assert [each["role"] for each in chat.messages] == ["system", "system", "user", "user"]
    assert request.calling is not None
    assert request.calling.names == (
        "exec_command",
        "write_stdin",
        "multi_agent_v1__close_agent",
        "multi_agent_v1__spawn_agent",
    )
