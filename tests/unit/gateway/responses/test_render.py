"""gateway.responses.render: every event is as the openai SDK's strict types have it, in order."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response

from gateway.dialect import Usage
from gateway.openai.thoughts import unseal
from gateway.responses.request import LOGPROBS
from supervisor.errors import ContextLengthExceeded, WorkerCrashed
from supervisor.wire.frames import Call, End, Logprob, Logprobs, Token
from tests.helpers.openai_answers import NAMES, TEXTS, tokens_of
from tests.helpers.responses import (
    function,
    parsed,
    read_events,
    renderer,
    streamed,
    whole,
    without_ids,
)

STOP = End("stop", 3, 2, 1)
CUT = End("length", 3, 2)
CALLED = End("tool_calls", 3, 2)
TOOLS = [
    function("look"),
    {"type": "namespace", "name": "team", "description": "", "tools": [function("ask")]},
    {"type": "custom", "name": "patch"},
]
EVERYTHING = (
    Token(1, "", reasoning="h"),
    Token(2, "", reasoning="m"),
    Token(3, "Let me"),
    Token(4, " look."),
    Token(5, "", calls=(Call(0, "look", ""), Call(0, "", '{"a"'))),
    Token(6, "", calls=(Call(0, "", ": 1}"), Call(1, "team__ask", ""))),
    Token(7, "", calls=(Call(2, "patch", '{"input": "x"}'),)),
)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [each["type"].removeprefix("response.") for each in events]


def outputs(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items as they were told complete."""
    return [each["item"] for each in events if each["type"] == "response.output_item.done"]


def test_the_whole_sequence() -> None:
    events = streamed(EVERYTHING, CALLED, tools=TOOLS)
    assert kinds(events) == [
        *("created", "in_progress"),
        *("output_item.added", "reasoning_summary_part.added"),
        *("reasoning_summary_text.delta", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done"),
        *("output_item.done", "completed"),
    ]
    final = events[-1]["response"]
    assert final["output"] == outputs(events)
    assert [each["id"].partition("_")[0] for each in final["output"]] == [
        *("rs", "msg", "fc", "fc", "ctc")
    ]
    look, ask, patch = final["output"][2:]
    assert (look["name"], look["arguments"]) == ("look", '{"a": 1}')
    assert (ask["name"], ask["namespace"], ask["arguments"]) == ("ask", "team", "{}")
    assert (patch["name"], patch["input"]) == ("patch", "x")
    assert len({each["call_id"] for each in (look, ask, patch)}) == 3


def test_what_an_event_is_about_is_what_was_announced() -> None:
    events = streamed(EVERYTHING, CALLED, tools=TOOLS)
    announced: dict[str, int] = {}
    for event in events:
        if event["type"] == "response.output_item.added":
            announced[event["item"]["id"]] = event["output_index"]
            assert event["item"]["status"] == "in_progress"
        id = event.get("item_id") or event.get("item", {}).get("id")
        if id is not None:
            assert announced[id] == event["output_index"]
    assert list(announced.values()) == list(range(5))


@pytest.mark.parametrize("name", NAMES)
def test_deltas_are_the_text(name: str) -> None:
    made = renderer(metadata={"name": name})
    data = made.begin(0) + b"".join(made.token(0, each) for each in tokens_of(TEXTS))
    events = read_events(data + made.finish(0, STOP) + made.done(Usage(), 0))
    deltas = [each["delta"] for each in events if each["type"] == "response.output_text.delta"]
    assert deltas == [each for each in TEXTS if each]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "".join(TEXTS)
    assert events[-1]["response"]["metadata"] == {"name": name}


@pytest.mark.parametrize(
    ("tokens", "end"),
    [
        ((), STOP),
        ((), CUT),
        (EVERYTHING, CALLED),
        (EVERYTHING[:2], CUT),
        (EVERYTHING[:3], CUT),
        (EVERYTHING[:3], STOP),
        (EVERYTHING[4:], CALLED),
        (EVERYTHING[:5], CUT),
        (EVERYTHING[:6], CUT),
        (EVERYTHING, CUT),
    ],
)
@pytest.mark.parametrize("include", [[], ["reasoning.encrypted_content"]])
def test_a_whole_answer_is_what_a_stream_comes_to(
    tokens: tuple[Token, ...], end: End, include: list[str]
) -> None:
    members: dict[str, Any] = {"tools": TOOLS, "include": include}
    answer = whole(tokens, end, **members)
    Response.model_validate_json(json.dumps(answer), strict=True)
    events = streamed(tokens, end, **members)
    assert without_ids(answer) == without_ids(events[-1]["response"])
    assert kinds(events)[-1] == ("incomplete" if end is CUT else "completed")


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    (message,) = whole((), STOP)["output"]
    assert message["content"] == [{"type": "output_text", "text": "", "annotations": []}]


def test_what_is_cut_is_incomplete() -> None:
    final = streamed(EVERYTHING[:3], CUT)[-1]["response"]
    assert final["status"] == "incomplete"
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [each["status"] for each in final["output"]] == ["completed", "incomplete"]
    assert final["completed_at"] is None


def test_a_call_that_is_cut_is_never_told_complete() -> None:
    """Clients run what is complete at once, whatever comes after it."""
    events = streamed(EVERYTHING[4:5], CUT, tools=TOOLS)
    assert kinds(events)[-2:] == ["function_call_arguments.delta", "incomplete"]
    assert events[-1]["response"]["output"] == outputs(events) == []
    # One that was complete before the cut is.
    events = streamed((Token(1, "", calls=(Call(0, "look", '{"a":1}'),)),), CUT, tools=TOOLS)
    assert [each["arguments"] for each in outputs(events)] == ['{"a":1}']


def test_usage() -> None:
    usage = Usage(prompt=7, cached=4, completion=5, reasoning=2)
    made = renderer()
    made.begin(7)
    made.finish(0, STOP)
    block = made.done(usage, 0).decode()
    assert json.loads(block.partition("data: ")[2])["response"]["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }


def test_the_response_tells_what_was_asked_for() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    members: dict[str, Any] = {
        "instructions": "i",
        "max_output_tokens": 5,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s",
        "temperature": 0.5,
        "text": {"format": schema, "verbosity": "low"},
        "tool_choice": {"type": "function", "name": "look"},
        "tools": [*TOOLS, {"type": "web_search"}],
        "top_logprobs": 2,
        "top_p": 0.9,
        "user": "u",
        "store": False,
    }
    told = streamed((), STOP, **members)[0]["response"]
    for name, value in members.items():
        assert told[name] == value, name
    assert told["truncation"] == "disabled"
    assert told["created_at"] == 1700000000
    assert told["model"] == "m"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (None, "auto"),
        ("none", "none"),
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "required"}, "required"),
        (
            {"type": "function", "function": {"name": "look"}},
            {"type": "function", "name": "look"},
        ),
        ({"type": "custom", "name": "patch"}, {"type": "custom", "name": "patch"}),
        *(
            (allowed, allowed)
            for allowed in (
                {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "look"}],
                },
            )
        ),
    ],
)
def test_a_choice_is_told_in_this_dialects_form(sent: Any, told: Any) -> None:
    events = streamed((), STOP, tools=TOOLS, tool_choice=sent)
    assert events[0]["response"]["tool_choice"] == told


def test_metadata_are_texts() -> None:
    answer = whole((), STOP, metadata={"a": "b", "c": 5, "d": [1]})
    assert answer["metadata"] == {"a": "b", "c": "5", "d": "[1]"}


def test_log_probabilities_are_those_of_the_text() -> None:
    def told(text: str) -> Logprobs:
        said = Logprob(1, text, text.encode(), -0.5)
        return Logprobs(said, (said,))

    tokens = (
        Token(1, "", reasoning="hm", logprobs=told("hm")),
        Token(2, "", logprobs=told("\ufffd")),
        Token(3, "é", logprobs=told("\ufffd")),
        Token(4, "", logprobs=told("<call>")),
        Token(5, "", calls=(Call(0, "look", "{}"),), logprobs=told("x")),
        Token(6, "!", logprobs=told("!")),
    )
    events = streamed(tokens, CALLED, tools=TOOLS, include=[LOGPROBS])
    delta, last = [each for each in events if each["type"] == "response.output_text.delta"]
    assert [each["token"] for each in last["logprobs"]] == ["!"]
    assert [each["token"] for each in delta["logprobs"]] == ["\ufffd", "\ufffd"]
    message = events[-1]["response"]["output"][1]
    assert message["content"][0]["logprobs"] == delta["logprobs"]
    assert delta["logprobs"][0]["top_logprobs"][0]["bytes"] == list("\ufffd".encode())
    answer = whole(tokens, CALLED, tools=TOOLS, include=[LOGPROBS])
    (said,) = answer["output"][1]["content"]
    assert said["text"] == "é!"
    assert [each["token"] for each in said["logprobs"]] == ["\ufffd", "\ufffd", "!"]


def test_encrypted_content_is_the_reasoning() -> None:
    tokens = EVERYTHING[:3]
    (thought, _) = whole(tokens, STOP, include=["reasoning.encrypted_content"])["output"]
    assert unseal(thought["encrypted_content"]) == "hm"
    (thought, _) = whole(tokens, STOP)["output"]
    assert "encrypted_content" not in thought
    assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]


def test_pings_are_numbered_and_say_that_it_goes_on() -> None:
    made = renderer()
    data = made.begin(0) + made.ping() + made.token(0, Token(1, "Hi")) + made.ping()
    events = read_events(data + made.finish(0, STOP) + made.done(Usage(), 0))
    pings = [each for each in events if each["type"] == "response.in_progress"]
    assert len(pings) == 3
    assert {each["response"]["status"] for each in pings} == {"in_progress"}


def test_a_failure() -> None:
    made = renderer()
    data = (
        made.begin(0) + made.token(0, Token(1, "", reasoning="hm")) + made.token(0, Token(2, "H"))
    )
    events = read_events(data + made.error(WorkerCrashed("It died.")))
    assert kinds(events)[-1] == "failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"] == {
        "code": "worker_crashed",
        "message": "It died.",
        "type": "server_error",
        "param": None,
    }
    assert [each["type"] for each in failed["output"]] == ["reasoning"]
    error = ContextLengthExceeded("Too long for `messages`.", param="messages")
    (event,) = read_events(renderer().error(error))
    assert event["response"]["error"]["param"] == "input"


def test_recoveries_are_told_in_a_comment() -> None:
    made = renderer()
    made.begin(0)
    made.finish(0, STOP)
    assert made.done(Usage(), 2).startswith(b": recoveries 2\n\nevent: response.completed\n")


def test_complete_answers_are_kept() -> None:
    kept: list[dict[str, Any]] = []
    made = renderer(kept.append)
    made.begin(0)
    made.token(0, Token(1, "Hi"))
    made.finish(0, CUT)
    assert kept == []
    data = made.done(Usage(), 0).decode()
    told = json.loads(data.partition("data: ")[2])["response"]
    assert json.loads(msgspec.json.encode(kept[0])) == told
    failed = renderer(kept.append)
    failed.begin(0)
    failed.error(WorkerCrashed("It died."))
    assert len(kept) == 1


def test_tools_are_told_as_they_came() -> None:
    given = [{"type": "function", "name": "f", "parameters": {"x": 1.0}, "strict": False}]
    assert whole((), STOP, tools=given)["tools"] == given
    assert parsed(tools=given).raw_tools == given
