"""gateway.ollama.requests: what chats and generations ask of the worker, and every parameter of the
ollama SDK."""

from __future__ import annotations

from typing import Any

import ollama
import pytest
from msgspec.structs import replace
from ollama import _types as sdk

from supervisor.errors import (
    ClientError,
    InvalidType,
    InvalidValue,
    UnsupportedParameter,
    UnsupportedValue,
)
from supervisor.wire.frames import Calling, Chat, Sampling, Schema, Text
from tests.helpers.ollama_bodies import (
    USER,
    chat,
    generate,
    parsed_chat,
    parsed_generate,
    refusal,
)

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
BOTH = pytest.mark.parametrize("ask", [chat, generate])

Fate = tuple[Any, dict[str, Any]]
"""A value, and the fields of the worker's request that it sets."""
OPTIONS: dict[str, Fate] = {
    **{
        name: (value, {})
        for name, value in {
            "numa": True, "num_ctx": 4096, "num_batch": 2, "num_gpu": 1, "main_gpu": 0,
            "low_vram": True, "f16_kv": True, "logits_all": True, "vocab_only": True,
            "use_mmap": False, "use_mlock": True, "embedding_only": True, "num_thread": 8,
            "num_keep": 5, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
            # With these values they ask for nothing, and are refused with others.
            "tfs_z": 1, "typical_p": 1.0, "mirostat": 0, "penalize_newline": True,
        }.items()
    },
    "seed": (7, {"sampling": Sampling(seed=7)}),
    "num_predict": (9, {"max_tokens": 9}),
    "top_k": (40, {"sampling": Sampling(seed=77, top_k=40)}),
    "top_p": (0.5, {"sampling": Sampling(seed=77, top_p=0.5)}),
    "min_p": (0.1, {"sampling": Sampling(seed=77, min_p=0.1)}),
    "temperature": (0.3, {"sampling": Sampling(seed=77, temperature=0.3)}),
    "repeat_penalty": (1.1, {"sampling": Sampling(seed=77, repetition_penalty=1.1)}),
    "repeat_last_n": (64, {"sampling": Sampling(seed=77, repetition_context=64)}),
    "presence_penalty": (1.5, {"sampling": Sampling(seed=77, presence_penalty=1.5)}),
    "frequency_penalty": (0.5, {"sampling": Sampling(seed=77, frequency_penalty=0.5)}),
    "stop": (["a", "b"], {"stop": ("a", "b")}),
}  # fmt: skip
REFUSED_OPTIONS = {"tfs_z": 2, "typical_p": 0.5, "mirostat": 2, "penalize_newline": False}
CHATS: dict[str, Fate] = {
    "messages": ([USER, USER], {"prompt": Chat([USER, USER])}),
    "tools": ([WEATHER], {"prompt": Chat([USER], [WEATHER])}),
}
SHARED: dict[str, Fate] = {
    "options": ({"num_predict": 3}, {"max_tokens": 3}),
    "format": ("json", {"structure": Schema('{"type": "object"}', place="format")}),
    "logprobs": (True, {"logprobs": 0}),
    "think": (True, {}),
    "top_logprobs": (0, {}),
    "keep_alive": ("5m", {}),
    "stream": (False, {}),
    "model": ("other", {}),
}
GENERATIONS: dict[str, Fate] = {
    "prompt": ("hi", {"prompt": Chat([{"role": "user", "content": "hi"}])}),
    "system": ("be", {"prompt": Chat([{"role": "system", "content": "be"}, USER])}),
    "raw": (True, {"prompt": Text("hello")}),
}
REFUSED: dict[str, Any] = {
    "suffix": "x",
    "template": "{{ .Prompt }}",
    "context": [1, 2],
    "images": ["aGk="],
    "width": 64,
    "height": 64,
    "steps": 4,
}


# ── every parameter ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (sdk.ChatRequest, {*CHATS, *SHARED}),
        (sdk.GenerateRequest, {*GENERATIONS, *SHARED, *REFUSED}),
        (ollama.Options, set(OPTIONS)),
    ],
)
def test_every_parameter_of_the_sdk_has_a_fate(kind: Any, known: set[str]) -> None:
    assert set(kind.model_fields) - known == set()


@BOTH
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option(ask: Any, name: str) -> None:
    value, fields = OPTIONS[name]
    assert ask(options={name: value}) == replace(ask(), **fields)


@pytest.mark.parametrize(("name", "value"), REFUSED_OPTIONS.items())
def test_an_option_that_would_change_the_answer(name: str, value: Any) -> None:
    error = refusal(chat, options={name: value})
    assert (type(error), error.param) == (UnsupportedParameter, f"options.{name}")


def test_an_option_that_nobody_knows() -> None:
    assert refusal(chat, options={"frobnicate": 1}).param == "options.frobnicate"
    assert type(refusal(chat, options=[1])) is InvalidType


@BOTH
@pytest.mark.parametrize("name", SHARED)
def test_what_chats_and_generations_share(ask: Any, name: str) -> None:
    value, fields = SHARED[name]
    if name == "think":
        fields = {"prompt": replace(ask().prompt, template=SWITCHED)}
    assert ask(**{name: value}) == replace(ask(), **fields)


SWITCHED = {"enable_thinking": True, "thinking": True}


@pytest.mark.parametrize("name", CHATS)
def test_what_chats_have(name: str) -> None:
    value, fields = CHATS[name]
    if name == "tools":
        fields["calling"] = Calling("auto", ("weather",), growing=False)
    assert chat(**{name: value}) == replace(chat(), **fields)


@pytest.mark.parametrize("name", GENERATIONS)
def test_what_generations_have(name: str) -> None:
    value, fields = GENERATIONS[name]
    assert generate(**{name: value}) == replace(generate(), **fields)


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_what_would_change_a_generation(name: str, value: Any) -> None:
    error = refusal(generate, **{name: value})
    assert isinstance(error, UnsupportedParameter | UnsupportedValue)
    assert error.param == name


@pytest.mark.parametrize(
    "members",
    [
        {"suffix": ""},
        {"template": ""},
        {"context": []},
        {"images": []},
        {"context": None, "suffix": None, "template": None, "images": None},
        {"width": 0, "height": 0, "steps": 0},
        {"raw": False},
        {"system": ""},
        {"format": ""},
        {"options": {}},
        {"options": {"temperature": None, "stop": None}},
        {"think": None, "keep_alive": None, "stream": None},
        {"messages": []},
    ],
)
def test_what_asks_for_nothing(members: dict[str, Any]) -> None:
    assert generate(**members) == generate()


# ── what they mean ───────────────────────────────────────────────────────────────────────────────


def test_streams_are_the_default() -> None:
    assert parsed_chat().stream
    assert not parsed_chat(stream=False).stream
    assert refusal(parsed_chat, stream="no").param == "stream"


@pytest.mark.parametrize(
    ("think", "template"),
    [
        (False, {"enable_thinking": False, "thinking": False}),
        ("low", {"reasoning_effort": "low", **SWITCHED}),
        ("high", {"reasoning_effort": "high", **SWITCHED}),
        ("max", {"reasoning_effort": "max", **SWITCHED}),
        ("minimal", {"reasoning_effort": "minimal"}),
        ("none", {"reasoning_effort": "none"}),
    ],
)
def test_thinking(think: Any, template: dict[str, Any]) -> None:
    assert chat(think=think).prompt == Chat([USER], [], template)


@pytest.mark.parametrize("limit", [0, -1, -2, -5])
def test_no_limit_of_tokens(limit: int) -> None:
    assert chat(options={"num_predict": limit}).max_tokens is None


def test_a_schema_holds_for_the_answer_of_both() -> None:
    text = '{"type":"object","properties":{"a":{"type":"integer"}}}'
    held = Schema(text, strict=False, place="format")
    assert chat(format=SCHEMA).structure == generate(format=SCHEMA).structure == held
    assert generate(format=SCHEMA, raw=True).structure == held


def test_a_schema_is_named_as_it_was_sent() -> None:
    strict = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    named = chat(response_format=strict)
    assert isinstance(named.structure, Schema)
    assert named.structure.place == "response_format.json_schema.schema"
    assert chat(response_format=strict, format="json").structure == named.structure


def test_calls_never_grow_for_arguments_are_objects() -> None:
    strict = {"type": "function", "function": {"name": "f", "strict": True}}
    calling = chat(tools=[strict], stream=True).calling
    assert calling is not None
    assert not calling.growing


def test_log_probabilities() -> None:
    assert chat(logprobs=True, top_logprobs=3).logprobs == 3
    assert refusal(chat, top_logprobs=3).param == "top_logprobs"


def test_what_changes_nothing_is_named() -> None:
    asked = parsed_chat(options={"num_ctx": 4096, "top_k": 4}, keep_alive=3)
    assert asked.ignored == ("options.num_ctx",)


@pytest.mark.parametrize("ask", [parsed_chat, parsed_generate])
def test_how_long_it_stays(ask: Any) -> None:
    assert ask().keep_alive is None
    assert ask(keep_alive="10m").keep_alive == 600.0
    assert ask(keep_alive=0).keep_alive == 0.0
    assert refusal(ask, keep_alive="soon").param == "keep_alive"


@pytest.mark.parametrize(
    "asked",
    [
        parsed_chat(messages=[], keep_alive=0),
        parsed_chat(messages=None),
        parsed_generate(prompt=""),
        parsed_generate(prompt=None, keep_alive=-1),
        parsed_generate(prompt="", system="be nice", raw=False),
    ],
)
def test_nothing_to_answer(asked: Any) -> None:
    assert asked.chat is None
    assert asked.model == "m"


BAD: list[tuple[Any, dict[str, Any], type[ClientError], str]] = [
    (chat, {"messages": "hi"}, InvalidType, "messages"),
    (chat, {"messages": [{"content": "x"}]}, ClientError, "messages[0].role"),
    (chat, {"messages": [{"role": "god", "content": "x"}]}, UnsupportedValue, "messages[0].role"),
    (chat, {"messages": [], "options": {"top_p": 2}}, InvalidValue, "options.top_p"),
    (chat, {"model": 3}, InvalidType, "model"),
    (chat, {"n": 2}, UnsupportedParameter, "n"),
    (chat, {"stream_options": {"include_usage": True}}, UnsupportedParameter, "stream_options"),
    (chat, {"frobnicate": 1}, UnsupportedParameter, "frobnicate"),
    (chat, {"think": 3}, InvalidType, "think"),
    (chat, {"format": 3}, InvalidType, "format"),
    (chat, {"options": {"num_predict": "x"}}, InvalidType, "options.num_predict"),
    (chat, {"tools": [{"function": {}}]}, ClientError, "tools[0].function.name"),
    (chat, {"tools": "x"}, InvalidType, "tools"),
    (generate, {"prompt": 3}, InvalidType, "prompt"),
    (generate, {"prompt": ["a"]}, InvalidType, "prompt"),
    (generate, {"system": 3}, InvalidType, "system"),
    (generate, {"raw": 1}, InvalidType, "raw"),
    (generate, {"raw": True, "system": "x"}, InvalidValue, "system"),
    (generate, {"messages": [USER]}, UnsupportedParameter, "messages"),
    (generate, {"tools": [WEATHER]}, UnsupportedParameter, "tools"),
]


@pytest.mark.parametrize(("ask", "members", "kind", "param"), BAD)
def test_a_bad_value_is_named(
    ask: Any, members: dict[str, Any], kind: type[ClientError], param: str
) -> None:
    error = refusal(ask, **members)
    assert isinstance(error, kind)
    assert error.param == param
