"""gateway.openai.render: what chats and completions have in common."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion

from supervisor.errors import WorkerCrashed
from supervisor.wire.frames import End, Token
from tests.helpers.openai_answers import END, USED, buffered, events, renderer, tokens_of

patient = settings(deadline=None, max_examples=100)


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
        buffered(tokens_of(["a"]), End("stop", 3, 1)),
        buffered(tokens_of(["b"]), End("length", 3, 1)),
    ]
    body = renderer(chat=is_chat, choices=2).answer(choices, USED)
    answer: Any = (ChatCompletion if is_chat else Completion).model_validate_json(body, strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    texts = [c.message.content if is_chat else c.text for c in answer.choices]
    assert texts == ["a", "b"]


@pytest.mark.parametrize("is_chat", [True, False])
def test_an_empty_answer_has_empty_log_probabilities_if_asked(is_chat: bool) -> None:
    for asked in (True, False):
        choice = buffered([], END, logprobs=asked)
        body = renderer(chat=is_chat).answer([choice], USED)
        told = json.loads(body)["choices"][0]["logprobs"]
        if not asked:
            assert told is None
        else:
            assert told["content" if is_chat else "tokens"] == []


def test_an_error_inside_a_stream_is_one_event_and_no_done() -> None:
    (data,) = events(renderer(chat=True).error(WorkerCrashed("It died.\n\nReally.")))
    assert json.loads(data) == {
        "error": {
            "message": "It died.\n\nReally.",
            "type": "server_error",
            "param": None,
            "code": "worker_crashed",
        }
    }


def test_the_last_comment_tells_how_often_another_worker_went_on() -> None:
    assert renderer(chat=True).done(USED, 2) == b": recoveries 2\n\ndata: [DONE]\n\n"
    assert renderer(chat=True).done(USED, 0) == b"data: [DONE]\n\n"


def test_a_ping_is_a_comment() -> None:
    ping = renderer(chat=True).ping()
    assert ping.startswith(b":")
    assert ping.endswith(b"\n\n")
    assert ping.count(b"\n") == 2
