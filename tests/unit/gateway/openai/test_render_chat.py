"""gateway.openai.render_chat: what OpenAI's own types accept, and strict clients too."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from supervisor.wire.frames import Call, End, Token
from tests.helpers.openai_answers import (
    END,
    LOGPROB_TOKENS,
    LOGPROBS,
    NAMES,
    TEXTS,
    USAGE,
    USED,
    buffered,
    events,
    renderer,
    tokens_of,
    total,
)


@pytest.mark.parametrize("model", NAMES)
def test_a_chat_answer_is_what_the_sdk_expects(model: str) -> None:
    choice = buffered(tokens_of(["two\n", '"lines"']), END)
    body = renderer(chat=True, model=model).answer([choice], USED)
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert re.fullmatch("chatcmpl-[0-9a-f]{24}", answer.id)
    assert (answer.created, answer.model) == (1700000000, model)
    assert answer.object == "chat.completion"
    (one,) = answer.choices
    assert (one.index, one.finish_reason, one.logprobs) == (0, "length", None)
    assert (one.message.role, one.message.content) == ("assistant", 'two\n"lines"')
    assert one.message.tool_calls is None
    assert set(json.loads(body)["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert answer.usage is not None
    assert answer.usage.to_dict() == USAGE


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("model", NAMES)
def test_a_chat_stream_is_what_the_sdk_expects(model: str, include_usage: bool) -> None:
    render = renderer(chat=True, model=model, include_usage=include_usage)
    tokens = [events(render.token(0, token)) for token in tokens_of(TEXTS)]
    assert [len(each) for each in tokens] == [1] * len(TEXTS)
    closing = events(render.finish(0, END) + render.done(USED, 0))
    assert closing.pop() == "[DONE]"
    data = [*(each[0] for each in tokens), *closing]
    chunks = [ChatCompletionChunk.model_validate_json(each, strict=True) for each in data]
    assert len({chunk.id for chunk in chunks}) == 1
    for chunk in chunks:
        assert (chunk.created, chunk.model) == (1700000000, model)
        assert chunk.object == "chat.completion.chunk"
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.to_dict() == USAGE
    assert all(chunk.usage is None for chunk in chunks)
    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.delta.content for choice in choices] == [*(text or None for text in TEXTS), None]
    assert [choice.delta.role for choice in choices] == ["assistant"] + [None] * len(TEXTS)
    assert [choice.finish_reason for choice in choices] == [None] * len(TEXTS) + ["length"]
    assert {choice.index for choice in choices} == {0}


def stream(tokens: Sequence[Token], end: End = END, **options: Any) -> list[ChatCompletionChunk]:
    """The chunks of a chat with one choice."""
    render = renderer(chat=True, **options)
    data = [event for token in tokens for event in events(render.token(0, token))]
    data += events(render.finish(0, end) + render.done(USED, 0))
    assert data.pop() == "[DONE]"
    return [ChatCompletionChunk.model_validate_json(each, strict=True) for each in data]


def test_a_stream_without_a_token_still_tells_the_role() -> None:
    choices = [chunk.choices[0] for chunk in stream([], End("stop", 3, 0))]
    assert [choice.delta.role for choice in choices] == ["assistant", None]
    assert [choice.delta.content for choice in choices] == ["", None]
    assert [choice.finish_reason for choice in choices] == [None, "stop"]


def whole(tokens: Sequence[Token], end: End = END, *, logprobs: bool = False) -> ChatCompletion:
    body = renderer(chat=True).answer([buffered(tokens, end, logprobs=logprobs)], total(end))
    return ChatCompletion.model_validate_json(body, strict=True)


THINKING = [
    Token(1, "", reasoning="let me"),
    Token(2, ""),
    Token(3, "", reasoning=" see"),
    Token(4, "so", reasoning="."),
    Token(5, " it is"),
]


# ── reasoning ────────────────────────────────────────────────────────────────────────────────────


def test_reasoning_is_told_under_both_names() -> None:
    answer = whole(THINKING, End("stop", 3, 5, 3))
    message: Any = answer.choices[0].message
    assert message.content == "so it is"
    assert message.reasoning_content == message.reasoning == "let me see."
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3


def test_reasoning_is_streamed_under_both_names() -> None:
    deltas = [chunk.choices[0].delta.to_dict() for chunk in stream(THINKING)]
    assert deltas == [
        {"role": "assistant", "reasoning_content": "let me", "reasoning": "let me"},
        {},
        {"reasoning_content": " see", "reasoning": " see"},
        {"reasoning_content": ".", "reasoning": ".", "content": "so"},
        {"content": " it is"},
        {},
    ]


CALLING = [
    Token(1, "", calls=(Call(0, "get", ""),)),
    Token(2, "", calls=(Call(0, "", '{"a"'),)),
    Token(3, ""),
    Token(4, "", calls=(Call(0, "", ": 1}"), Call(1, "put", "{}"))),
    Token(5, "", calls=(Call(2, "none", ""),)),
]
CALLED = End("tool_calls", 3, 5)


# ── tool calls ───────────────────────────────────────────────────────────────────────────────────


def test_calls_are_told_whole() -> None:
    (choice,) = whole(CALLING, CALLED).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls: Any = choice.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get", '{"a": 1}'),
        ("put", "{}"),
        ("none", "{}"),
    ]
    assert {call.type for call in calls} == {"function"}
    assert len({call.id for call in calls}) == 3
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call.id) for call in calls)


def test_text_beside_calls_stays() -> None:
    assert whole([Token(1, "I look."), *CALLING], CALLED).choices[0].message.content == "I look."


def test_id_type_and_name_are_streamed_exactly_once() -> None:
    chunks = stream(CALLING, CALLED)
    pieces = [
        piece.to_dict() for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []
    ]
    ids = [piece.pop("id") for piece in pieces if "id" in piece]
    assert len(set(ids)) == len(ids) == 3
    assert pieces == [
        {"index": 0, "type": "function", "function": {"name": "get", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "type": "function", "function": {"name": "put", "arguments": "{}"}},
        {"index": 2, "type": "function", "function": {"name": "none", "arguments": ""}},
        {"index": 2, "function": {"arguments": "{}"}},
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content is None
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"
    # One chunk a token, one for the arguments that were never told, one for the end.
    assert len(chunks) == len(CALLING) + 2


@pytest.mark.parametrize("after", [tokens_of(["so"]), CALLING])
def test_until_it_is_known_what_comes_there_is_no_content(after: list[Token]) -> None:
    """An empty content would begin a text, as it does in the AI SDK."""
    held = [Token(8, ""), Token(9, ""), Token(10, "", logprobs=LOGPROBS[0])]
    first, *others = [chunk.choices[0] for chunk in stream([*held, *after], CALLED)]
    assert first.delta.to_dict() == {"role": "assistant", "content": None}
    assert [other.delta.to_dict() for other in others[:2]] == [{}, {}]
    assert others[1].logprobs is not None
    said = [other.delta.content for other in others if "content" in other.delta.to_dict()]
    assert said == (["so"] if after != CALLING else [])


def test_arguments_that_the_length_has_cut_are_not_made_up() -> None:
    cut, told = End("length", 3, 5), []
    for end in (cut, CALLED):
        message: Any = whole(CALLING[-1:], end).choices[0].message
        (chunk, *more) = stream(CALLING[-1:], end)
        pieces = [
            piece for each in (chunk, *more) for piece in each.choices[0].delta.tool_calls or []
        ]
        streamed = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
        told.append((message.tool_calls[0].function.arguments, streamed))
    assert told == [("", ""), ("{}", "{}")]


def test_pieces_of_one_call_in_one_token_are_one_piece() -> None:
    token = Token(1, "", calls=(Call(0, "f", '{"a"'), Call(0, "", ": 1}"), Call(1, "g", "{}")))
    delta = stream([token], CALLED)[0].choices[0].delta
    assert delta.tool_calls is not None
    told = [(piece.index, piece.function) for piece in delta.tool_calls]
    assert [(i, f and f.name, f and f.arguments) for i, f in told] == [
        (0, "f", '{"a": 1}'),
        (1, "g", "{}"),
    ]


def test_choices_call_apart() -> None:
    render = renderer(chat=True, choices=2)
    token = Token(1, "", calls=(Call(0, "f", "{}"),))
    ids = []
    for choice in (0, 1):
        (event,) = events(render.token(choice, token))
        (piece,) = json.loads(event)["choices"][0]["delta"]["tool_calls"]
        assert piece["function"]["name"] == "f"
        ids.append(piece["id"])
    assert len(set(ids)) == 2


@pytest.mark.parametrize("tokens", [CALLING, THINKING, tokens_of(TEXTS), THINKING + CALLING])
def test_the_sdk_puts_a_stream_together_as_the_whole(tokens: list[Token]) -> None:
    state: Any = ChatCompletionStreamState()
    for chunk in stream(tokens, CALLED):
        state.handle_chunk(chunk)
    streamed = state.get_final_completion().choices[0].message
    answered = whole(tokens, CALLED).choices[0].message
    assert (streamed.content or "") == (answered.content or "")
    assert [
        (call.function.name, call.function.arguments) for call in streamed.tool_calls or []
    ] == [(call.function.name, call.function.arguments) for call in answered.tool_calls or []]


CHAT_FORM = [
    {
        "token": "Hé",
        "logprob": -0.5,
        "bytes": [72, 195, 169],
        "top_logprobs": [
            {"token": "Ha", "logprob": -0.25, "bytes": [72, 97]},
            {"token": "Hé", "logprob": -0.5, "bytes": [72, 195, 169]},
        ],
    },
    {
        "token": "\ufffd",
        "logprob": -1.0,
        "bytes": [0xF0, 0x9F],
        "top_logprobs": [{"token": "x", "logprob": -9999.0, "bytes": [120]}],
    },
    {"token": "\ufffd", "logprob": -2.0, "bytes": [0x98, 0x80], "top_logprobs": []},
    {"token": "!", "logprob": -9999.0, "bytes": [33], "top_logprobs": []},
]


# ── log probabilities ────────────────────────────────────────────────────────────────────────────


def test_log_probabilities_of_a_chat() -> None:
    told = whole(LOGPROB_TOKENS, logprobs=True).choices[0].logprobs
    assert told is not None
    assert told.to_dict() == {"content": CHAT_FORM, "refusal": None}


def test_log_probabilities_of_a_chat_stream() -> None:
    *chunks, last = stream([*LOGPROB_TOKENS, Token(8, "plain")])
    assert last.choices[0].logprobs is None
    for chunk, form in zip(chunks, [*CHAT_FORM, None], strict=True):
        told = chunk.choices[0].logprobs
        expected = None if form is None else {"content": [form], "refusal": None}
        assert (told and told.to_dict()) == expected
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hé", None, "😀", "!", "plain"]
