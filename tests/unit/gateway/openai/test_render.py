"""gateway.openai.render: answers and chunks that OpenAI's own types accept, and strict clients."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.openai.render import PING, ChoiceBuffer, Renderer, error_event, usage
from gateway.openai.render_chat import ChatChoice
from gateway.openai.render_completions import TextChoice
from supervisor.errors import WorkerCrashed
from supervisor.wire.frames import Call, End, Logprob, Logprobs, Token

patient = settings(deadline=None, max_examples=200)

END = End("length", 3, 2)
NAMES = ["m", "mlx-community/Qwen3-4B-4bit", 'quo"ted', "back\\slash", "naïve 模型 😀", "\0"]
TEXTS = ["Hel", "lo", "", 'a "quote"', "two\n\nlines", "data: [DONE]", "\u2028", "😀", "\0"]


def events(data: bytes) -> list[str]:
    """The data of each event, by SSE's rules as far as we use them."""
    *blocks, rest = data.decode().split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def renderer(*, chat: bool, model: str = "m", choices: int = 1) -> Renderer:
    shape = ChatChoice if chat else TextChoice
    return Renderer(shape, id="id-1", created=1700000000, model=model, choices=choices)


def collected(tokens: Sequence[Token], end: End, *, logprobs: bool = False) -> ChoiceBuffer:
    choice = ChoiceBuffer(logprobs=logprobs)
    for token in tokens:
        choice.add(token)
    choice.end = end
    return choice


def tokens_of(texts: Sequence[str]) -> list[Token]:
    return [Token(number, text) for number, text in enumerate(texts)]


def whole(tokens: Sequence[Token], end: End = END, *, logprobs: bool = False) -> ChatCompletion:
    body = renderer(chat=True).answer([collected(tokens, end, logprobs=logprobs)], usage([end], 1))
    return ChatCompletion.model_validate_json(body, strict=True)


def stream(tokens: Sequence[Token], end: End = END, **options: Any) -> list[ChatCompletionChunk]:
    """The chunks of a chat with one choice."""
    render = renderer(chat=True, **options)
    data = [event for token in tokens for event in events(render.token(0, token))]
    data += events(render.finish(0, end) + render.done(None))
    assert data.pop() == "[DONE]"
    return [ChatCompletionChunk.model_validate_json(each, strict=True) for each in data]


def text_chunks(data: Sequence[str]) -> list[Completion]:
    """Chunks of a completion; the SDK's type knows no null where OpenAI's own streams have it."""
    chunks = []
    for each in map(json.loads, data):
        for choice in each["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        chunks.append(Completion.model_validate_json(json.dumps(each), strict=True))
    return chunks


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", NAMES)
def test_a_chat_answer_is_what_the_sdk_expects(model: str) -> None:
    choice = collected(tokens_of(["two\n", '"lines"']), END)
    body = renderer(chat=True, model=model).answer([choice], usage([END], 1))
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert (answer.id, answer.created, answer.model) == ("id-1", 1700000000, model)
    assert answer.object == "chat.completion"
    (one,) = answer.choices
    assert (one.index, one.finish_reason, one.logprobs) == (0, "length", None)
    assert (one.message.role, one.message.content) == ("assistant", 'two\n"lines"')
    assert one.message.tool_calls is None
    assert set(json.loads(body)["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert answer.usage is not None
    assert answer.usage.to_dict() == USAGE


USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


@pytest.mark.parametrize("model", NAMES)
def test_a_text_answer_is_what_the_sdk_expects(model: str) -> None:
    choice = collected(tokens_of(["te", "xt"]), END)
    body = renderer(chat=False, model=model).answer([choice], usage([END], 1))
    answer = Completion.model_validate_json(body, strict=True)
    assert (answer.id, answer.model, answer.object) == ("id-1", model, "text_completion")
    (one,) = answer.choices
    assert (one.index, one.text, one.finish_reason, one.logprobs) == (0, "text", "length", None)
    assert answer.usage is not None
    assert answer.usage.to_dict() == USAGE


def test_usage_is_the_sum_and_a_prompt_counts_once() -> None:
    ends = [End("stop", 3, 1, 1), End("stop", 3, 2), End("length", 7, 4, 2), End("stop", 7, 8)]
    assert usage(ends, 2) == {
        "prompt_tokens": 10,
        "completion_tokens": 15,
        "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert usage(ends, 4)["prompt_tokens"] == 3
    assert usage(ends, 1)["prompt_tokens"] == 20


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("model", NAMES)
def test_a_chat_stream_is_what_the_sdk_expects(model: str, include_usage: bool) -> None:
    render = renderer(chat=True, model=model)
    tokens = [events(render.token(0, token)) for token in tokens_of(TEXTS)]
    assert [len(each) for each in tokens] == [1] * len(TEXTS)
    totals = usage([END], 1) if include_usage else None
    closing = events(render.finish(0, END) + render.done(totals))
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
        assert last.usage.to_dict() == USAGE
    assert all(chunk.usage is None for chunk in chunks)
    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.delta.content for choice in choices] == [*(text or None for text in TEXTS), None]
    assert [choice.delta.role for choice in choices] == ["assistant"] + [None] * len(TEXTS)
    assert [choice.finish_reason for choice in choices] == [None] * len(TEXTS) + ["length"]
    assert {choice.index for choice in choices} == {0}


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("model", NAMES)
def test_a_text_stream_is_what_the_sdk_expects(model: str, include_usage: bool) -> None:
    render = renderer(chat=False, model=model)
    data = [event for token in tokens_of(TEXTS) for event in events(render.token(0, token))]
    assert len(data) == len(TEXTS)
    data += events(render.finish(0, END) + render.done(usage([END], 1) if include_usage else None))
    assert data.pop() == "[DONE]"
    reasons = [each["finish_reason"] for event in data for each in json.loads(event)["choices"]]
    assert reasons == [None] * len(TEXTS) + ["length"]
    chunks = text_chunks(data)
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert {chunk.model for chunk in chunks} == {model}
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.to_dict() == USAGE
    assert [chunk.choices[0].text for chunk in chunks] == [*TEXTS, ""]


def test_a_stream_without_a_token_still_tells_the_role() -> None:
    choices = [chunk.choices[0] for chunk in stream([], End("stop", 3, 0))]
    assert [choice.delta.role for choice in choices] == ["assistant", None]
    assert [choice.delta.content for choice in choices] == ["", None]
    assert [choice.finish_reason for choice in choices] == [None, "stop"]


@patient
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.lists(st.text(), min_size=1, max_size=5),
    st.booleans(),
)
def test_any_name_and_any_text_come_through(model: str, texts: list[str], is_chat: bool) -> None:
    render = renderer(chat=is_chat, model=model)
    data = [event for token in tokens_of(texts) for event in events(render.token(0, token))]
    chunks = [json.loads(event) for event in data]
    assert {chunk["model"] for chunk in chunks} == {model}
    choices = [chunk["choices"][0] for chunk in chunks]
    if is_chat:
        assert [choice["delta"].get("content") or "" for choice in choices] == texts
    else:
        assert [choice["text"] for choice in choices] == texts


# ── several choices ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_chat", [True, False])
def test_each_choice_has_its_own_number_role_and_end(is_chat: bool) -> None:
    render = renderer(chat=is_chat, choices=3)
    order = [2, 0, 2, 1, 0, 2]
    data = [
        event
        for number, choice in enumerate(order)
        for event in events(render.token(choice, Token(number, f"t{number}")))
    ]
    for choice, reason in ((1, "stop"), (2, "length"), (0, "stop")):
        data += events(render.finish(choice, End(reason, 3, 2)))  # type: ignore[arg-type]
    choices = [json.loads(event)["choices"][0] for event in data]
    assert [choice["index"] for choice in choices] == [*order, 1, 2, 0]
    reasons = {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]}
    assert reasons == {0: "stop", 1: "stop", 2: "length"}
    if is_chat:
        roles = [choice["index"] for choice in choices if "role" in choice["delta"]]
        assert roles == [2, 0, 1]
        assert [choice["delta"].get("content") for choice in choices[:6]] == [
            f"t{number}" for number in range(6)
        ]
    else:
        assert [choice["text"] for choice in choices[:6]] == [f"t{number}" for number in range(6)]


@pytest.mark.parametrize("is_chat", [True, False])
def test_an_answer_has_all_its_choices(is_chat: bool) -> None:
    choices = [
        collected(tokens_of(["a"]), End("stop", 3, 1)),
        collected(tokens_of(["b"]), End("length", 3, 1)),
    ]
    body = renderer(chat=is_chat, choices=2).answer(choices, usage([END, END], 2))
    answer: Any = (ChatCompletion if is_chat else Completion).model_validate_json(body, strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    texts = [c.message.content if is_chat else c.text for c in answer.choices]
    assert texts == ["a", "b"]


# ── echo ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_prompt_comes_before_the_completion() -> None:
    choice = collected(tokens_of(["a", "b"]), END)
    choice.echo = "prompt "
    body = renderer(chat=False).answer([choice], usage([END], 1))
    assert Completion.model_validate_json(body).choices[0].text == "prompt ab"


@pytest.mark.parametrize("texts", [[], ["a"], ["", "b"]])
def test_a_stream_begins_with_the_prompt(texts: list[str]) -> None:
    render = renderer(chat=False, choices=2)
    render.echo(1, "prompt ")
    data = [event for token in tokens_of(texts) for event in events(render.token(1, token))]
    assert len(data) == len(texts)
    data += events(render.finish(1, END))
    assert "".join(chunk.choices[0].text for chunk in text_chunks(data)) == "prompt " + "".join(
        texts
    )
    other = text_chunks(events(render.token(0, Token(1, "x")) + render.finish(0, END)))
    assert "".join(chunk.choices[0].text for chunk in other) == "x"


# ── reasoning ────────────────────────────────────────────────────────────────────────────────────

THINKING = [
    Token(1, "", reasoning="let me"),
    Token(2, ""),
    Token(3, "", reasoning=" see"),
    Token(4, "so", reasoning="."),
    Token(5, " it is"),
]


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


# ── tool calls ───────────────────────────────────────────────────────────────────────────────────

CALLING = [
    Token(1, "", calls=(Call(0, "get", ""),)),
    Token(2, "", calls=(Call(0, "", '{"a"'),)),
    Token(3, ""),
    Token(4, "", calls=(Call(0, "", ": 1}"), Call(1, "put", "{}"))),
    Token(5, "", calls=(Call(2, "none", ""),)),
]
CALLED = End("tool_calls", 3, 5)


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


# ── log probabilities ────────────────────────────────────────────────────────────────────────────


def logprob(text: str, value: float, raw: bytes | None = None) -> Logprob:
    return Logprob(7, text, text.encode() if raw is None else raw, value)


LOGPROBS = [
    Logprobs(logprob("Hé", -0.5), (logprob("Ha", -0.25), logprob("Hé", -0.5))),
    Logprobs(logprob("\ufffd", -1.0, b"\xf0\x9f"), (logprob("x", -math.inf),)),
    Logprobs(logprob("\ufffd", -2.0, b"\x98\x80"), ()),
    Logprobs(logprob("!", math.nan), ()),
]
TOLD = [
    Token(7, text, logprobs=told)
    for text, told in zip(["Hé", "", "😀", "!"], LOGPROBS, strict=True)
]
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
LEGACY_FORM = {
    "tokens": ["Hé", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "!"],
    "token_logprobs": [-0.5, -1.0, -2.0, -9999.0],
    "top_logprobs": [
        {"Ha": -0.25, "Hé": -0.5},
        {"x": -9999.0, "bytes:\\xf0\\x9f": -1.0},
        {"bytes:\\x98\\x80": -2.0},
        {"!": -9999.0},
    ],
    "text_offset": [0, 2, 2, 3],
}


def test_log_probabilities_of_a_chat() -> None:
    told = whole(TOLD, logprobs=True).choices[0].logprobs
    assert told is not None
    assert told.to_dict() == {"content": CHAT_FORM, "refusal": None}


def test_log_probabilities_of_a_chat_stream() -> None:
    *chunks, last = stream([*TOLD, Token(8, "plain")])
    assert last.choices[0].logprobs is None
    for chunk, form in zip(chunks, [*CHAT_FORM, None], strict=True):
        told = chunk.choices[0].logprobs
        expected = None if form is None else {"content": [form], "refusal": None}
        assert (told and told.to_dict()) == expected
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hé", None, "😀", "!", "plain"]


def test_log_probabilities_of_a_completion() -> None:
    body = renderer(chat=False).answer([collected(TOLD, END, logprobs=True)], usage([END], 1))
    told = Completion.model_validate_json(body, strict=True).choices[0].logprobs
    assert told is not None
    assert told.to_dict() == LEGACY_FORM


def test_log_probabilities_of_a_completion_stream() -> None:
    render = renderer(chat=False)
    data = [event for token in TOLD for event in events(render.token(0, token))]
    forms = [chunk.choices[0].logprobs for chunk in text_chunks(data)]
    assert len(forms) == len(TOLD)
    for name, expected in LEGACY_FORM.items():
        joined = [value for form in forms for value in getattr(form, name)]
        assert joined == expected


@pytest.mark.parametrize("is_chat", [True, False])
def test_an_empty_answer_has_empty_log_probabilities_if_asked(is_chat: bool) -> None:
    for asked in (True, False):
        choice = collected([], END, logprobs=asked)
        body = renderer(chat=is_chat).answer([choice], usage([END], 1))
        told = json.loads(body)["choices"][0]["logprobs"]
        if not asked:
            assert told is None
        else:
            assert told["content" if is_chat else "tokens"] == []


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


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
