"""gateway.openai: every parameter's fate, and answers that OpenAI's own types accept."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway import openai
from gateway.openai import HARMLESS, PING, Renderer, error_event, parse_chat, parse_completion
from gateway.validation import parse_object
from supervisor.errors import (
    BulkheadError,
    ClientError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedParameter,
    UnsupportedValue,
    WorkerCrashed,
)
from supervisor.wire.codec import encode
from supervisor.wire.frames import Chat, End, Generate, Text

SECRET = "what-the-client-said"
USER = {"role": "user", "content": "hello"}
patient = settings(deadline=None, max_examples=200)


def chat(**members: Any) -> Generate:
    """What the worker is asked for by a chat with these members, nulls and all."""
    raw = parse_object(json.dumps({"model": "m", "messages": [USER], **members}).encode())
    return parse_chat(raw).generate("r", 1.5)


def completion(**members: Any) -> Generate:
    raw = parse_object(json.dumps({"model": "m", "prompt": "hello", **members}).encode())
    return parse_completion(raw).generate("r", 1.5)


ENDPOINTS = pytest.mark.parametrize("ask", [chat, completion])


def refusal(ask: Any, members: dict[str, Any]) -> BulkheadError:
    with pytest.raises(ClientError) as caught:
        ask(**members)
    assert SECRET not in caught.value.message
    return caught.value


# ── parameters ───────────────────────────────────────────────────────────────────────────────────


def test_a_plain_request_leaves_everything_to_the_model() -> None:
    assert chat() == Generate("r", Chat([USER]), 1.5)
    assert completion() == Generate("r", Text("hello"), 1.5)


GOOD: list[tuple[str, Any, str, Any]] = [
    ("max_tokens", 1, "max_tokens", 1),
    ("max_tokens", 2**53, "max_tokens", 2**53),
    ("temperature", 0, "temperature", 0.0),
    ("temperature", 0.7, "temperature", 0.7),
    ("temperature", 2, "temperature", 2.0),
    ("top_p", 0, "top_p", 0.0),
    ("top_p", 1, "top_p", 1.0),
    ("seed", 0, "seed", 0),
    ("seed", -(2**63), "seed", -(2**63)),
    ("seed", 2**63 - 1, "seed", 2**63 - 1),
    ("stop", "x", "stop", ("x",)),
    ("stop", [], "stop", ()),
    ("stop", ["a", "b", "c", "d"], "stop", ("a", "b", "c", "d")),
    ("ignore_eos", True, "ignore_eos", True),
    ("ignore_eos", False, "ignore_eos", False),
]
SUPPORTED = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "ignore_eos",
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
@pytest.mark.parametrize("name", [*SUPPORTED, "unknown", "n", "tools", "user"])
def test_null_means_absent(ask: Any, name: str) -> None:
    assert ask(**{name: None}) == ask()


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
    ],
)
def test_the_newer_name_of_max_tokens_wins(members: dict[str, Any], tokens: int) -> None:
    assert chat(**members).max_tokens == tokens


NO_NUMBERS: list[Any] = [SECRET, True, [], {}, [1]]
NO_FLAGS: list[Any] = [1, 0, SECRET, "true", []]
NO_TEXTS: list[Any] = [1, True, [], {}]
BAD: list[tuple[dict[str, Any], type[BulkheadError], str]] = [
    *(
        ({name: value}, InvalidType, name)
        for name in ("max_tokens", "temperature", "top_p", "seed")
        for value in NO_NUMBERS
    ),
    *(({name: 1.5}, InvalidType, name) for name in ("max_tokens", "seed")),
    *(
        ({name: value}, InvalidType, name)
        for name in ("stream", "ignore_eos")
        for value in NO_FLAGS
    ),
    *(({"model": value}, InvalidType, "model") for value in NO_TEXTS),
    *(({"max_tokens": value}, InvalidValue, "max_tokens") for value in (0, -1, 2**53 + 1, 2**64)),
    *(({"temperature": value}, InvalidValue, "temperature") for value in (-0.1, 2.1, 1e308)),
    *(({"top_p": value}, InvalidValue, "top_p") for value in (-0.1, 1.1)),
    *(({"seed": value}, InvalidValue, "seed") for value in (2**63, -(2**63) - 1, 2**200)),
    ({"stop": 5}, InvalidType, "stop"),
    ({"stop": {"a": SECRET}}, InvalidType, "stop"),
    ({"stop": ["a", 5]}, InvalidType, "stop[1]"),
    ({"stop": ""}, InvalidValue, "stop"),
    ({"stop": ["a", ""]}, InvalidValue, "stop[1]"),
    ({"stop": ["a"] * 5}, InvalidValue, "stop"),
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


NEUTRAL: dict[str, list[Any]] = {
    "n": [1],
    "presence_penalty": [0, 0.0],
    "frequency_penalty": [0, 0.0],
    "repetition_penalty": [1, 1.0],
    "logit_bias": [{}],
    "top_k": [0, -1],
    "min_p": [0, 0.0],
}
NEUTRAL_CHAT: dict[str, list[Any]] = {
    **NEUTRAL,
    "logprobs": [False],
    "top_logprobs": [0],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
}
NEUTRAL_TEXT: dict[str, list[Any]] = {**NEUTRAL, "best_of": [1], "echo": [False], "suffix": [""]}
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


@pytest.mark.parametrize("name", ["messages", "prompt"])
def test_a_request_without_a_prompt_is_told_which(name: str) -> None:
    ask = chat if name == "messages" else completion
    error = refusal(ask, {name: None})
    assert type(error) is MissingParameter
    assert error.param == name


@pytest.mark.parametrize(
    ("ask", "name"), [(completion, "messages"), (chat, "prompt"), (completion, "tools")]
)
def test_a_parameter_of_the_other_endpoint_is_unknown(ask: Any, name: str) -> None:
    assert refusal(ask, {name: [USER]}).param == name


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


def of_chat(*messages: Any) -> list[dict[str, Any]]:
    prompt = chat(messages=list(messages)).prompt
    assert isinstance(prompt, Chat)
    return prompt.messages


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_message_passes_as_it_is(role: str) -> None:
    message = {"role": role, "content": "text", "name": "ann", "tool_call_id": "call_1"}
    assert of_chat(message) == [message]


def test_a_developer_is_a_system_to_templates() -> None:
    assert of_chat({"role": "developer", "content": "x"}) == [{"role": "system", "content": "x"}]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert of_chat({"role": "user", "content": parts}) == [{"role": "user", "content": "one two"}]
    assert of_chat({"role": "user", "content": []}) == [{"role": "user", "content": ""}]


def test_an_assistant_may_have_said_nothing() -> None:
    assert of_chat({"role": "assistant", "content": None}) == [{"role": "assistant", "content": ""}]
    assert of_chat({"role": "assistant"}) == [{"role": "assistant", "content": ""}]


def test_an_answer_can_be_sent_back_as_the_sdk_dumps_it() -> None:
    body = Renderer(chat=True, id="c", created=1, model="m").answer("hi", End("stop", 1, 1))
    message = ChatCompletion.model_validate_json(body).choices[0].message
    sent = [message.model_dump(), message.model_dump(exclude_unset=True)]
    assert of_chat(*sent) == [{"role": "assistant", "content": "hi"}] * 2


@pytest.mark.parametrize(
    ("messages", "kind", "param"),
    [
        (SECRET, InvalidType, "messages"),
        ({"role": "user"}, InvalidType, "messages"),
        ([], InvalidValue, "messages"),
        ([SECRET], InvalidType, "messages[0]"),
        ([USER, {"content": SECRET}], MissingParameter, "messages[1].role"),
        ([USER, {"role": SECRET, "content": "x"}], UnsupportedValue, "messages[1].role"),
        ([{"role": 5, "content": "x"}], InvalidType, "messages[0].role"),
        ([USER, {"role": "user"}], MissingParameter, "messages[1].content"),
        ([{"role": "system", "content": None}], MissingParameter, "messages[0].content"),
        ([{"role": "user", "content": 5}], InvalidType, "messages[0].content"),
        ([{"role": "user", "content": {"text": SECRET}}], InvalidType, "messages[0].content"),
        ([{"role": "user", "content": [SECRET]}], InvalidType, "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}],
            UnsupportedValue,
            "messages[0].content[0]",
        ),
        (
            [USER, {"role": "user", "content": [{"type": "text", "text": "x"}, {"text": SECRET}]}],
            UnsupportedValue,
            "messages[1].content[1]",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            UnsupportedValue,
            "messages[0].content[0]",
        ),
        ([{**USER, "name": 5}], InvalidType, "messages[0].name"),
        ([{**USER, "audio": {"id": SECRET}}], UnsupportedParameter, "messages[0].audio"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": SECRET}]}],
            UnsupportedParameter,
            "messages[0].tool_calls",
        ),
    ],
)
def test_a_bad_message_is_named_by_its_place(
    messages: Any, kind: type[BulkheadError], param: str
) -> None:
    error = refusal(chat, {"messages": messages})
    assert type(error) is kind
    assert error.param == param


@pytest.mark.parametrize("prompt", ["", "hello", ["hello"]])
def test_a_prompt_is_one_text(prompt: Any) -> None:
    expected = prompt if isinstance(prompt, str) else prompt[0]
    assert completion(prompt=prompt).prompt == Text(expected)


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        (5, InvalidType),
        ({"text": SECRET}, InvalidType),
        ([], UnsupportedValue),
        ([SECRET, "b"], UnsupportedValue),
        ([1, 2, 3], UnsupportedValue),
        ([[1, 2]], UnsupportedValue),
    ],
)
def test_other_prompts_are_refused(prompt: Any, kind: type[BulkheadError]) -> None:
    error = refusal(completion, {"prompt": prompt})
    assert type(error) is kind
    assert error.param == "prompt"


# ── anything at all ──────────────────────────────────────────────────────────────────────────────

words = st.sampled_from(
    [
        *openai.ChatRequest.__struct_fields__,
        *openai.CompletionRequest.__struct_fields__,
        *NEUTRAL_CHAT,
        *NEUTRAL_TEXT,
        *("role", "content", "type", "text", "name", "include_usage", "user", "assistant"),
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
    ),
    max_leaves=12,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(st.fixed_dictionaries({"role": words, "content": trees}), max_size=3)
        | trees,
        "prompt": trees,
        "max_tokens": leaves,
        "stop": trees,
        "temperature": leaves,
        "stream_options": trees,
        "response_format": trees,
    },
) | st.dictionaries(words, trees, max_size=4)


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
@patient
@given(tree=bodies | trees)
def test_any_json_is_a_sendable_request_or_a_400(parse: Any, tree: Any) -> None:
    with contextlib.suppress(ClientError):
        request = parse(parse_object(json.dumps(tree).encode())).generate("r", 1.5)
        assert encode(request)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────

END = End("length", 3, 2)
NAMES = ["m", "mlx-community/Qwen3-4B-4bit", 'quo"ted', "back\\slash", "naïve 模型 😀", "</script>"]
TEXTS = ["Hel", "lo", "", 'a "quote"', "two\n\nlines", "data: [DONE]", "\u2028", "😀", "\0"]


def events(data: bytes) -> list[str]:
    """The data of each event, by SSE's rules as far as we use them."""
    *blocks, rest = data.decode().split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def renderer(*, chat: bool, model: str = "m") -> Renderer:
    return Renderer(chat=chat, id="id-1", created=1700000000, model=model)


@pytest.mark.parametrize("model", NAMES)
def test_a_chat_answer_is_what_the_sdk_expects(model: str) -> None:
    body = renderer(chat=True, model=model).answer('two\n"lines"', END)
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert (answer.id, answer.created, answer.model) == ("id-1", 1700000000, model)
    assert answer.object == "chat.completion"
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.content) == ("assistant", 'two\n"lines"')
    assert choice.message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 2
    assert answer.usage.total_tokens == 5


@pytest.mark.parametrize("model", NAMES)
def test_a_text_answer_is_what_the_sdk_expects(model: str) -> None:
    body = renderer(chat=False, model=model).answer("text", END)
    answer = Completion.model_validate_json(body, strict=True)
    assert (answer.id, answer.model, answer.object) == ("id-1", model, "text_completion")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, "text", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("model", NAMES)
def test_a_chat_stream_is_what_the_sdk_expects(model: str, include_usage: bool) -> None:
    render = renderer(chat=True, model=model)
    tokens = [events(render.token(text)) for text in TEXTS]
    assert [len(each) for each in tokens] == [1] * len(TEXTS)
    closing = events(render.end(END, include_usage=include_usage))
    assert closing.pop() == "[DONE]"
    data = [*(each[0] for each in tokens), *closing]
    chunks = [ChatCompletionChunk.model_validate_json(each, strict=True) for each in data]
    for chunk in chunks:
        assert (chunk.id, chunk.created, chunk.model) == ("id-1", 1700000000, model)
        assert chunk.object == "chat.completion.chunk"
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.total_tokens == 5
    assert all(chunk.usage is None for chunk in chunks)
    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.delta.content for choice in choices] == [*TEXTS, None]
    assert [choice.delta.role for choice in choices] == ["assistant"] + [None] * len(TEXTS)
    assert [choice.finish_reason for choice in choices] == [None] * len(TEXTS) + ["length"]
    assert {choice.index for choice in choices} == {0}


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("model", NAMES)
def test_a_text_stream_is_what_the_sdk_expects(model: str, include_usage: bool) -> None:
    render = renderer(chat=False, model=model)
    data = [event for text in TEXTS for event in events(render.token(text))]
    assert len(data) == len(TEXTS)
    data += events(render.end(END, include_usage=include_usage))
    assert data.pop() == "[DONE]"
    raw = [json.loads(each) for each in data]
    reasons = [choice["finish_reason"] for each in raw for choice in each["choices"]]
    assert reasons == [None] * len(TEXTS) + ["length"]
    for each in raw:
        for choice in each["choices"]:
            # The SDK's type knows no null here, though OpenAI's own streams have it.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    chunks = [Completion.model_validate_json(json.dumps(each), strict=True) for each in raw]
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert {chunk.model for chunk in chunks} == {model}
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.total_tokens == 5
    assert [chunk.choices[0].text for chunk in chunks] == [*TEXTS, ""]


def test_a_stream_without_a_token_still_tells_the_role() -> None:
    data = events(renderer(chat=True).end(End("stop", 3, 0), include_usage=False))
    assert data.pop() == "[DONE]"
    choices = [ChatCompletionChunk.model_validate_json(each).choices[0] for each in data]
    assert [choice.delta.role for choice in choices] == ["assistant", None]
    assert [choice.delta.content for choice in choices] == ["", None]
    assert [choice.finish_reason for choice in choices] == [None, "stop"]


@patient
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1),
    st.lists(st.text(), min_size=1, max_size=5),
    st.booleans(),
)
def test_any_name_and_any_text_come_through(model: str, texts: list[str], is_chat: bool) -> None:
    render = renderer(chat=is_chat, model=model)
    chunks = [json.loads(event) for text in texts for event in events(render.token(text))]
    assert {chunk["model"] for chunk in chunks} == {model}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [c["delta"]["content"] if is_chat else c["text"] for c in choices] == texts


def test_an_error_inside_a_stream_is_one_event_and_no_done() -> None:
    (data,) = events(error_event(WorkerCrashed("It died.\n\nReally.").body()))
    assert json.loads(data) == {
        "error": {
            "message": "It died.\n\nReally.",
            "type": "server_error",
            "param": None,
            "code": "worker_crashed",
        }
    }


def test_a_ping_is_a_comment() -> None:
    assert PING.startswith(b":")
    assert PING.endswith(b"\n\n")
    assert PING.count(b"\n") == 2
