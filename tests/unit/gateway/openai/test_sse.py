"""gateway.openai.sse: an event is one line to every client."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.sse import data_event, in_one_line, named_event, recoveries_comment
from supervisor.errors import InvalidValue
from supervisor.wire.frames import Call, Logprob, Logprobs, Token
from tests.helpers.openai_answers import events, renderer

BREAKS = "\x85\u2028\u2029"


@given(st.text(alphabet=f'{BREAKS}\n\r\v\f\x1c\x1d\x1e\xc2\xe2\u0080\u2027\u202aa\\"'))
def test_json_stays_what_it_is_in_one_line(text: str) -> None:
    body = json.dumps({"a": text}, ensure_ascii=False).encode()
    line = in_one_line(body)
    assert json.loads(line) == {"a": text}
    assert len(line.decode().splitlines()) == 1
    assert data_event(body) == b"data: " + line + b"\n\n"
    if not set(text) & set(BREAKS):
        assert line == body


@pytest.mark.parametrize("chat", [True, False])
def test_whatever_holds_a_line_break_is_escaped(chat: bool) -> None:
    odd = f"a{BREAKS}b"
    logprob = Logprob(7, odd, odd.encode(), -1.0)
    tokens = [
        Token(0, odd),
        Token(1, odd),
        Token(2, odd, logprobs=Logprobs(logprob, (logprob,))),
        Token(3, "", reasoning=odd),
        Token(4, odd, reasoning=odd),
        Token(5, "", calls=(Call(0, odd, odd),)),
    ]
    render = renderer(chat=chat, model=odd)
    render.echo(0, odd)
    for token in tokens:
        (event,) = events(render.token(0, token))
        assert json.loads(event)["model"] == odd
    (event,) = events(render.error(InvalidValue(f"No {odd}.", param=odd)))
    assert json.loads(event)["error"]["param"] == odd


def test_a_named_event() -> None:
    assert named_event("response.created", b"{}") == b"event: response.created\ndata: {}\n\n"


def test_recoveries_are_told_in_a_comment_if_there_were_any() -> None:
    assert recoveries_comment(2) == b": recoveries 2\n\n"
    assert recoveries_comment(0) == b""
