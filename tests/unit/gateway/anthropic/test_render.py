"""gateway.anthropic.render: the SDK's types take every event and every answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from gateway.anthropic.render import MessagesRenderer
from gateway.anthropic.schemas import MessageAnswer, MessageEvent
from gateway.dialect import AnswerHead, ChoiceBuffer, Usage
from gateway.openai.thoughts import seal, unseal
from supervisor.errors import WorkerCrashed
from supervisor.wire.frames import Call, End, Token

import msgspec  # isort: skip

EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
HEAD = AnswerHead(1.5, "m", 1)
CALLED = (
    Token(1, "", reasoning="I "),
    Token(2, "", reasoning="look."),
    Token(3, "Let me"),
    Token(4, " look\u2028."),
    Token(5, ""),
    Token(6, "", calls=(Call(0, "look", ""),)),
    Token(7, "", calls=(Call(0, "", '{"a": '),)),
    Token(8, "", calls=(Call(0, "", "1}"), Call(1, "nap", ""))),
)
CALLED_END = End("tool_calls", 10, 8, 2)


def renderer(max_tokens: int = 50, **more: Any) -> MessagesRenderer:
    return MessagesRenderer(HEAD, "req-1", max_tokens=max_tokens, **more)


def streamed(
    tokens: Sequence[Token], end: End, made: MessagesRenderer | None = None, recoveries: int = 0
) -> bytes:
    made = made or renderer()
    parts = [made.begin(end.prompt_tokens), *(made.token(0, token) for token in tokens)]
    parts += [made.finish(0, end), made.done(Usage.of([end], 1), recoveries)]
    return b"".join(parts)


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """Each event's data, which is as the SDK and our own document have it."""
    told = []
    for event in stream.decode().split("\n\n")[:-1]:
        if event.startswith(":"):
            continue
        name, data = event.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        msgspec.convert(value, MessageEvent)
        if value["type"] not in ("ping", "error"):
            EVENTS.validate_python(value, strict=True)
        told.append(value)
    return told


def message_of(stream: bytes) -> Message:
    """What the SDK makes of it."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events_of(stream):
        if event["type"] != "ping":
            snapshot = accumulate_event(
                event=EVENTS.validate_python(event),
                current_snapshot=snapshot,
                json_bufs=buffers,
            )
    made: Message = snapshot
    return made


def whole(
    tokens: Sequence[Token], end: End, made: MessagesRenderer | None = None
) -> dict[str, Any]:
    choice = ChoiceBuffer()
    for token in tokens:
        choice.add(token)
    choice.reason, choice.stop = end.finish_reason, end.stop
    body = (made or renderer()).answer([choice], Usage.of([end], 1))
    answer: dict[str, Any] = json.loads(body)
    msgspec.convert(answer, MessageAnswer)
    Message.model_validate(answer, strict=True)
    return answer


def told(message: Any) -> list[Any]:
    """The blocks without their ids."""
    blocks = message["content"] if isinstance(message, dict) else message.model_dump()["content"]
    return [
        {name: each[name] for name in ("type", "text", "thinking", "name", "input") if name in each}
        for each in blocks
    ]


def test_the_order_of_events() -> None:
    kinds = [
        event.get("delta", event.get("content_block", {})).get("type", event["type"])
        if event["type"] in ("content_block_start", "content_block_delta")
        else event["type"]
        for event in events_of(streamed(CALLED, CALLED_END))
    ]
    assert kinds == [
        "message_start", "ping",
        "thinking", "thinking_delta", "thinking_delta", "signature_delta", "content_block_stop",
        "text", "text_delta", "text_delta", "content_block_stop",
        "tool_use", "input_json_delta", "input_json_delta", "content_block_stop",
        "tool_use", "input_json_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip


def test_a_stream_is_numbered_block_by_block() -> None:
    open_block, seen = None, []
    for event in events_of(streamed(CALLED, CALLED_END)):
        match event["type"]:
            case "content_block_start":
                assert open_block is None
                open_block = event["index"]
                seen.append(open_block)
            case "content_block_delta":
                assert event["index"] == open_block
            case "content_block_stop":
                assert event["index"] == open_block
                open_block = None
    assert seen == [0, 1, 2, 3]


def test_a_stream_and_a_whole_answer_are_the_same() -> None:
    message, answer = message_of(streamed(CALLED, CALLED_END)), whole(CALLED, CALLED_END)
    assert told(message) == told(answer)
    assert told(answer) == [
        {"type": "thinking", "thinking": "I look."},
        {"type": "text", "text": "Let me look\u2028."},
        {"type": "tool_use", "name": "look", "input": {"a": 1}},
        {"type": "tool_use", "name": "nap", "input": {}},
    ]
    assert message.stop_reason == answer["stop_reason"] == "tool_use"
    assert message.usage.to_dict() == answer["usage"]
    ids = [each["id"] for each in answer["content"][2:]]
    assert all(each.startswith("toolu_") for each in ids)
    assert len(set(ids)) == 2
    assert answer["id"].startswith("msg_")


def test_usage() -> None:
    stream = streamed(CALLED, CALLED_END)
    start, *_, delta, _ = events_of(stream)
    assert start["message"]["usage"]["input_tokens"] == 10
    assert delta["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 8,
        "output_tokens_details": {"thinking_tokens": 2},
    }
    made = renderer()
    made.finish(0, CALLED_END)
    last = made.done(Usage(prompt=10, cached=7, completion=8, reasoning=2), 0)
    usage = events_of(last)[0]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (3, 7)


@pytest.mark.parametrize(
    ("end", "reason", "stop"),
    [
        (End("stop", 1, 3), "end_turn", None),
        (End("stop", 1, 3, 0, "END"), "stop_sequence", "END"),
        (End("length", 1, 50), "max_tokens", None),
        (End("length", 1, 49), "model_context_window_exceeded", None),
        (End("tool_calls", 1, 3), "tool_use", None),
    ],
)
def test_why_an_answer_ends(end: End, reason: str, stop: str | None) -> None:
    tokens = [Token(1, "a")]
    message, answer = message_of(streamed(tokens, end)), whole(tokens, end)
    assert (message.stop_reason, message.stop_sequence) == (reason, stop)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, stop)


def test_an_answer_of_nothing() -> None:
    end = End("stop", 1, 0)
    assert message_of(streamed([], end)).content == []
    assert whole([], end)["content"] == []


def test_no_tokens_at_all() -> None:
    """A worker has made one, which nobody is shown."""
    tokens, end = [Token(1, "a", reasoning="b")], End("length", 7, 1, 1)
    message = message_of(streamed(tokens, end, renderer(0)))
    answer = whole(tokens, end, renderer(0))
    assert message.content == answer["content"] == []
    assert message.stop_reason == answer["stop_reason"] == "max_tokens"
    assert message.usage.output_tokens == answer["usage"]["output_tokens"] == 0
    assert message.usage.input_tokens == 7


def test_a_thought_that_nobody_wants_to_see() -> None:
    made = [renderer(shows_thoughts=False) for _ in range(2)]
    message = message_of(streamed(CALLED, CALLED_END, made[0]))
    answer = whole(CALLED, CALLED_END, made[1])
    assert told(message)[0] == told(answer)[0] == {"type": "thinking", "thinking": ""}
    block = message.content[0]
    assert block.type == "thinking"
    assert unseal(block.signature) == "I look."
    assert answer["content"][0]["signature"] == block.signature
    # Of one that was shown it need not hold anything.
    assert whole(CALLED, CALLED_END)["content"][0]["signature"] == seal("")


def test_text_may_come_after_a_call_and_thoughts_after_text() -> None:
    tokens = [
        Token(1, "a", reasoning="b", calls=(Call(0, "f", "{}"),)),
        Token(2, "c"),
        Token(3, "", reasoning="d"),
        Token(4, "e"),
    ]
    message = message_of(streamed(tokens, End("tool_calls", 1, 4)))
    assert [each.type for each in message.content] == [
        "thinking", "text", "tool_use", "text", "thinking", "text",
    ]  # fmt: skip


@pytest.mark.parametrize("pieces", [(), ('{"a": "b',)])
def test_a_call_that_was_cut(pieces: Sequence[str]) -> None:
    """A stream has told its beginning already; where it can still be left out, it is."""
    tokens = [Token(1, "", calls=(Call(0, "f", '{"c": 1}'), Call(1, "g", "")))]
    tokens += [Token(2, "", calls=(Call(1, "", piece),)) for piece in pieces]
    end = End("length", 1, 50)
    assert [each["name"] for each in whole(tokens, end)["content"]] == ["f"]
    events = events_of(streamed(tokens, end))
    deltas = [each["delta"]["partial_json"] for each in events if "input_json" in str(each)]
    assert deltas == ['{"c": 1}', *pieces]
    assert message_of(streamed(tokens, end)).stop_reason == "max_tokens"


def test_numbers_of_a_call_are_told_as_they_were_written() -> None:
    tokens = [Token(1, "", calls=(Call(0, "f", '{"a": 12345678901234567890123, "b": 1.0}'),))]
    choice = ChoiceBuffer()
    choice.add(tokens[0])
    body = renderer().answer([choice], Usage())
    assert b'{"a": 12345678901234567890123, "b": 1.0}' in body


def test_recoveries_are_told_before_the_last_event() -> None:
    stream = streamed(CALLED, CALLED_END, recoveries=2)
    assert stream.index(b": recoveries 2\n\n") < stream.index(b"event: message_stop")
    assert b"recoveries" not in streamed(CALLED, CALLED_END)
    assert told(message_of(stream)) == told(whole(CALLED, CALLED_END))


def test_a_stream_that_fails() -> None:
    made = renderer()
    stream = made.begin(1) + made.token(0, Token(1, "a")) + made.error(WorkerCrashed("It died."))
    last = events_of(stream)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert last["request_id"] == "req-1"


def test_a_ping_is_one_event() -> None:
    assert events_of(renderer().ping()) == [{"type": "ping"}]
