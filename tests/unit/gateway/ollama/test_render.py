"""gateway.ollama.render: lines and whole answers, as the ollama SDK reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from ollama import ChatResponse, GenerateResponse

from gateway.dialect import AnswerHead, ChoiceBuffer, Usage
from gateway.ollama.render import (
    NDJSON,
    Content,
    Durations,
    OllamaRenderer,
    error_form,
    loaded,
    of_chat,
    of_generation,
    timestamp,
)
from supervisor.errors import ModelNotFound, WorkerCrashed
from supervisor.wire.frames import Call, End, Logprob, Logprobs, Token
from tests.helpers.openai_answers import NAMES, TEXTS

CREATED = 1700000000.25
TIMES = Durations(40, 10, 20, 9)
USED = Usage(prompt=3, completion=2)
SAID = Logprob(5, "Hi", b"Hi", -0.5)
OTHER = Logprob(6, "Ho", b"Ho", float("-inf"))
BOTH = pytest.mark.parametrize("content", [of_chat, of_generation])


def renderer(content: Content = of_chat, model: str = "m") -> OllamaRenderer:
    return OllamaRenderer(content, AnswerHead(CREATED, model, 1), lambda: TIMES)


def lines(data: bytes) -> list[Any]:
    """By everybody's idea of a line's end."""
    assert data == b"" or data.endswith(b"\n")
    split = data.decode().splitlines()
    assert len(split) == data.count(b"\n")
    return [json.loads(line) for line in split]


def streamed(
    tokens: Sequence[Token], reason: Any = "stop", content: Content = of_chat, model: str = "m"
) -> list[Any]:
    made = renderer(content, model)
    data = made.begin(3) + b"".join(made.token(0, token) for token in tokens)
    return lines(data + made.finish(0, End(reason, 3, 2)) + made.done(USED, 0))


def whole(tokens: Sequence[Token], reason: Any = "stop", content: Content = of_chat) -> Any:
    logprobs = any(token.logprobs for token in tokens)
    buffer = ChoiceBuffer(logprobs=logprobs)
    for token in tokens:
        buffer.add(token)
    buffer.reason = reason
    return json.loads(renderer(content).answer([buffer], USED))


@pytest.mark.parametrize("model", NAMES)
def test_a_stream_is_what_the_sdk_expects(model: str) -> None:
    told = streamed([Token(1, text) for text in TEXTS], "length", model=model)
    for each in told:
        read = ChatResponse.model_validate(each)
        assert read.model == model
        assert read.message.role == "assistant"
    assert "".join(each["message"]["content"] for each in told) == "".join(TEXTS)
    assert [each["done"] for each in told] == [False] * (len(told) - 1) + [True]
    assert told[0] == {
        "model": model,
        "created_at": "2023-11-14T22:13:20.250000Z",
        "message": {"role": "assistant", "content": "Hel"},
        "done": False,
    }
    assert told[-1] == {
        "model": model,
        "created_at": "2023-11-14T22:13:20.250000Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "total_duration": 40,
        "load_duration": 10,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 20,
        "eval_count": 2,
        "eval_duration": 9,
    }


def test_a_generation_is_what_the_sdk_expects() -> None:
    told = streamed([Token(1, text) for text in TEXTS], content=of_generation)
    assert "".join(GenerateResponse.model_validate(each).response or "" for each in told) == (
        "".join(TEXTS)
    )
    assert "message" not in told[0]
    assert told[-1]["response"] == ""
    assert whole([Token(1, "a"), Token(2, "b")], content=of_generation)["response"] == "ab"


@BOTH
def test_what_a_model_thinks_is_told_apart(content: Content) -> None:
    tokens = [Token(1, "", reasoning="h"), Token(2, "", reasoning="m"), Token(3, "Hi")]
    told = streamed(tokens, content=content)
    where = [each.get("message", each) for each in told]
    assert [each.get("thinking") for each in where] == ["h", "m", None, None]
    answer = whole(tokens, content=content)
    assert answer.get("message", answer)["thinking"] == "hm"


CALLS = [
    Token(1, "Hi"),
    Token(2, "", calls=(Call(0, "f", ""),)),
    Token(3, "", calls=(Call(0, "", '{"a":'),)),
    Token(4, "", calls=(Call(0, "", ' {"b": "}"}}'), Call(1, "g", ""))),
    Token(5, ""),
]


def calls_of(told: Any) -> list[tuple[int, str, Any]]:
    calls = [call for each in told for call in each["message"].get("tool_calls", ())]
    functions = [call["function"] for call in calls]
    return [(each["index"], each["name"], each["arguments"]) for each in functions]


def test_calls_are_told_once_whole_and_in_their_order() -> None:
    told = streamed(CALLS, "tool_calls")
    assert calls_of(told) == [(0, "f", {"a": {"b": "}"}}), (1, "g", {})]
    assert calls_of([whole(CALLS, "tool_calls")]) == calls_of(told)
    assert told[-1]["done_reason"] == whole(CALLS, "tool_calls")["done_reason"] == "stop"
    ids = [call["id"] for each in told for call in each["message"].get("tool_calls", ())]
    assert len(set(ids)) == 2
    for each in told:
        ChatResponse.model_validate(each)


def test_a_call_that_the_length_has_cut_is_none() -> None:
    assert calls_of(streamed(CALLS[:3], "length")) == []
    assert calls_of([whole(CALLS[:3], "length")]) == []
    assert calls_of([whole(CALLS[:4], "length")]) == [(0, "f", {"a": {"b": "}"}})]


def test_a_token_that_brings_nothing_makes_no_line() -> None:
    assert renderer().token(0, Token(1, "")) == b""
    assert renderer().token(0, CALLS[1]) == b""


@BOTH
def test_log_probabilities(content: Content) -> None:
    tokens = [Token(5, "Hi", logprobs=Logprobs(SAID, (SAID, OTHER))), Token(5, "", logprobs=None)]
    entry = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    other = {"token": "Ho", "logprob": -9999.0, "bytes": [72, 111]}
    wanted = [{**entry, "top_logprobs": [entry, other]}]
    assert streamed(tokens, content=content)[0]["logprobs"] == wanted
    assert whole(tokens, content=content)["logprobs"] == wanted
    alone = [Token(5, "", logprobs=Logprobs(SAID, ()))]
    assert streamed(alone, content=content)[0]["logprobs"] == [entry]


@BOTH
def test_what_keeps_a_stream_alive_adds_nothing(content: Content) -> None:
    (told,) = lines(renderer(content).ping())
    assert not told["done"]
    assert told.get("message", {}).get("content", told.get("response")) == ""
    assert renderer().content_type == NDJSON


def test_an_error_is_text_to_clients_and_whole_to_others() -> None:
    error = WorkerCrashed("The worker `m#1` died (SIGABRT).")
    (told,) = lines(renderer().error(error))
    assert told == {
        "error": "The worker `m#1` died (SIGABRT).",
        "type": "server_error",
        "param": None,
        "code": "worker_crashed",
    }
    answer = error_form(error, "r")
    assert (answer.status, json.loads(answer.body)) == (503, told)


def test_an_unknown_model_in_ollamas_words() -> None:
    error = ModelNotFound("The model `a:b` does not exist.", param="model")
    told = json.loads(error_form(error, "r").body)
    assert told["error"] == 'model "a:b" not found: The model `a:b` does not exist.'
    assert json.loads(error_form(ModelNotFound("Which?"), "r").body)["error"] == "Which?"


@BOTH
@pytest.mark.parametrize("unloaded", [False, True])
def test_a_load_without_a_question(content: Content, unloaded: bool) -> None:
    told = json.loads(loaded(content, "m", CREATED, unloaded=unloaded))
    assert told["done"]
    assert told["done_reason"] == ("unload" if unloaded else "load")
    kind = ChatResponse if content is of_chat else GenerateResponse
    kind.model_validate(told)


def test_times_have_a_zone_and_one_form() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000000Z"
