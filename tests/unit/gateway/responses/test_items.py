"""gateway.responses.items: the shapes of input, and what the model reads of them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.openai.thoughts import seal
from gateway.responses.items import HOSTED_ITEMS
from supervisor.errors import (
    BulkheadError,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnsupportedValue,
)
from tests.helpers.openai_bodies import SECRET, refusal
from tests.helpers.responses import (
    Known,
    asked,
    call,
    function,
    messages,
    output,
    parsed,
    prompt,
    user,
)

EMPTY = [{"role": "user", "content": ""}]


def part(text: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": text}


def reasoning(**members: Any) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs_1", "summary": [], **members}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(*told: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in told
    ]


# ── texts and messages ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("hello", [user("hello")]),
        ("", EMPTY),
        ([], EMPTY),
        (None, EMPTY),
        ([{"type": "web_search_call", "id": "ws_1", "status": "completed"}], EMPTY),
        ([user("hello")], [user("hello")]),
        ([{"type": "message", **user("hello")}], [user("hello")]),
        ([{"type": None, "id": None, **user("hello")}], [user("hello")]),
        ([{"role": "user", "content": [part("a"), part("b")]}], [user("a\nb")]),
        ([{"role": "user", "content": []}], EMPTY),
        ([{"role": "user", "content": [part("a", "text")]}], [user("a")]),
        ([{"role": "developer", "content": "d"}], [{"role": "system", "content": "d"}]),
        ([{"role": "system", "content": "s"}], [{"role": "system", "content": "s"}]),
    ],
)
def test_input(given: Any, read: list[Any]) -> None:
    assert prompt(input=given).messages == read


def test_no_input_at_all() -> None:
    assert prompt().messages == EMPTY
    system = {"role": "system", "content": "Be brief."}
    assert prompt(instructions="Be brief.").messages == [system, *EMPTY]


def test_system_messages_stay_where_they_are() -> None:
    read = messages(
        user("a"), {"role": "developer", "content": "d"}, user("b"), instructions="Be brief."
    )
    assert [each["content"] for each in read] == ["Be brief.", "a", "d", "b"]
    assert [each["role"] for each in read] == ["system", "user", "system", "user"]


def test_an_answer_comes_back_as_it_was_given() -> None:
    given = {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "phase": "final_answer",
        "content": [{**part("yes", "output_text"), "annotations": [], "logprobs": []}],
    }
    refused = {**given, "content": [{"type": "refusal", "refusal": "no"}]}
    assert messages(user("q"), given) == [user("q"), said("yes")]
    assert messages(refused) == [said("no")]


# ── calls, their outputs, and reasoning ──────────────────────────────────────────────────────────


def test_a_turn_is_one_message() -> None:
    read = messages(
        user("q"),
        reasoning(content=[{"type": "reasoning_text", "text": "hm"}]),
        said("Let me look."),
        call("look", "c1", '{"a":1}'),
        call("put", "c2"),
        output("c1", "one"),
        output("c2", [part("two"), part("three")]),
        said("Done."),
    )
    assert read == [
        user("q"),
        said(
            "Let me look.",
            reasoning_content="hm",
            tool_calls=calls(("c1", "look", '{"a":1}'), ("c2", "put", "{}")),
        ),
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two\nthree"},
        said("Done."),
    ]


def test_turns_are_told_apart() -> None:
    read = messages(call("look", "c1"), output("c1", "x"), call("look", "c2"), output("c2", "y"))
    assert [each["role"] for each in read] == ["assistant", "tool"] * 2
    assert messages(said("a"), said("b")) == [said("a"), said("b")]
    read = messages(said("a"), reasoning(summary=[part("hm", "summary_text")]), said("b"))
    assert read == [said("a"), said("b", reasoning_content="hm")]


def test_what_stands_between_calls_and_their_outputs_does_not_part_them() -> None:
    hm = reasoning(summary=[part("hm", "summary_text")])
    read = messages(hm, call("a", "c1"), hm, call("b", "c2"), said("soon"), output("c1", "x"))
    assert read == [
        said(
            "soon",
            reasoning_content="hm\n\nhm",
            tool_calls=calls(("c1", "a", "{}"), ("c2", "b", "{}")),
        ),
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]


def test_texts_around_calls_are_one() -> None:
    read = messages(said("a"), call("f", "c1"), said("b"), output("c1", "x"), said("c"))
    assert read == [
        said("a\nb", tool_calls=calls(("c1", "f", "{}"))),
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        said("c"),
    ]


def test_an_output_without_an_id() -> None:
    read = messages({"type": "function_call_output", "output": "x", "name": "f"})
    assert read == [{"role": "tool", "content": "x"}]


@pytest.mark.parametrize(
    ("members", "thought"),
    [
        ({"content": [{"type": "reasoning_text", "text": "a"}, {"text": "b"}]}, "a\n\nb"),
        ({"summary": [part("a", "summary_text")]}, "a"),
        ({"encrypted_content": seal("a"), "summary": [part("b")]}, "a"),
        ({"encrypted_content": "gAAAA-of-another-server", "summary": [part("b")]}, "b"),
        ({"encrypted_content": "bulkhead-1.%%%", "summary": [part("b")]}, "b"),
        ({"encrypted_content": None, "content": None, "summary": []}, None),
        ({"encrypted_content": "gAAAA-of-another-server"}, None),
    ],
)
def test_reasoning(members: dict[str, Any], thought: str | None) -> None:
    read = messages(reasoning(**members), said("yes"))
    assert read == [said("yes") if thought is None else said("yes", reasoning_content=thought)]


def test_custom_calls() -> None:
    given = {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'a "b"\n'}
    back = {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"}
    read = messages(given, back, tools=[{"type": "custom", "name": "patch"}])
    assert read == [
        said("", tool_calls=calls(("c1", "patch", '{"input": "a \\"b\\"\\n"}'))),
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
    ]


def test_calls_of_a_namespace() -> None:
    tools = [{"type": "namespace", "name": "team", "tools": [function("ask")]}]
    for offered in (tools, []):  # also when it is not offered any more
        read = messages(call("ask", "c1", namespace="team"), tools=offered)
        assert read == [said("", tool_calls=calls(("c1", "team__ask", "{}")))]


# ── what is elsewhere ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", sorted(HOSTED_ITEMS))
def test_what_hosted_tools_have_left_is_dropped_and_named(kind: str) -> None:
    item = {"type": kind, "id": "x", "anything": [None, {"a": 1}]}
    assert messages(item, user("q")) == [user("q")]
    assert parsed(input=[item, item, user("q")]).ignored == (f"input.{kind}",)


@pytest.mark.parametrize(
    "reference",
    [{"type": "item_reference", "id": "m1"}, {"id": "m1"}, {"type": None, "id": "m1"}],
)
def test_references(reference: dict[str, Any]) -> None:
    known = Known(items={"m1": {"type": "message", "id": "m1", **said("yes")}})
    assert messages(user("q"), reference, known=known) == [user("q"), said("yes")]
    made = parsed(known, input=[reference])
    (kept,) = made.own_items
    assert (kept["id"], kept["content"][0]["text"]) == ("m1", "yes")
    error = refusal(asked, {"input": [user("q"), reference]})
    assert (type(error), error.param) == (InvalidValue, "input[1].id")


def test_an_item_is_referred_to_once() -> None:
    known = Known(items={"m1": {"type": "message", "id": "m1", **said("yes")}})
    error = refusal(lambda **body: asked(known, **body), {"input": [{"id": "m1"}, user("q")] * 2})
    assert (type(error), error.param) == (InvalidValue, "input[2].id")


def test_additional_tools() -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [function("more")]}
    chat = prompt(input=[user("q"), item], tools=[function("look")])
    assert [each["function"]["name"] for each in chat.tools] == ["look", "more"]
    newer = {**item, "tools": [function("look", description="newer"), {"type": "web_search"}]}
    chat = prompt(input=[user("q"), newer], tools=[function("look")])
    assert [each["function"]["description"] for each in chat.tools] == ["newer"]
    made = parsed(input=[user("q"), newer, newer], tools=[{"type": "web_search"}])
    assert made.ignored == ("tools.web_search",)


def test_additional_tools_are_there_again_in_what_follows() -> None:
    tools = [function("more"), {"type": "web_search"}]
    first = parsed(input=[user("q"), {"type": "additional_tools", "tools": tools}])
    assert first.ignored == ("tools.web_search",)
    known = Known({"resp_1": first.own_items})
    chat = prompt(known, input="next", previous_response_id="resp_1")
    assert [each["function"]["name"] for each in chat.tools] == ["more"]


def test_what_is_kept_is_read_again_as_it_was() -> None:
    items: list[Any] = [
        {**user("q"), "id": "m1", "x": 2**70},
        said("yes"),
        {"role": "assistant", "content": [part("a", "output_text"), part("b", "output_text")]},
        {"role": "developer", "content": "d"},
        reasoning(summary=[part("hm", "summary_text")], encrypted_content=seal("hmm")),
        call("f", "c1", namespace="team", status="completed"),
        output("c1", [part("x")]),
        {"type": "custom_tool_call", "call_id": "c2", "name": "p", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "y"},
        {"type": "web_search_call", "id": "ws_1", "x": [[[]]]},
    ]
    kept = parsed(input=items).own_items
    assert len(kept) == len(items) - 1
    assert kept[0] == {
        "type": "message",
        "id": "m1",
        "role": "user",
        "content": [{"type": "input_text", "text": "q"}],
    }
    assert messages(*kept) == messages(*items)
    assert parsed(input=kept).own_items == kept


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────

IMAGE = {"type": "input_image", "image_url": SECRET}
BAD: list[tuple[Any, type[BulkheadError], str]] = [
    (5, InvalidType, "input"),
    ([5], InvalidType, "input[0]"),
    ([{}], MissingParameter, "input[0].type"),
    ([{"type": SECRET}], UnsupportedValue, "input[0].type"),
    ([{"type": "hosted"}], UnsupportedValue, "input[0].type"),
    ([{"type": 5}], InvalidType, "input[0].type"),
    ([{"type": "compaction", "encrypted_content": SECRET}], UnsupportedValue, "input[0]"),
    ([user("q"), {"role": "user"}], MissingParameter, "input[1].content"),
    ([{"role": SECRET, "content": "x"}], UnsupportedValue, "input[0].role"),
    ([{"role": "tool", "content": "x"}], UnsupportedValue, "input[0].role"),
    ([{"role": "user", "content": [SECRET]}], InvalidType, "input[0].content[0]"),
    ([{"role": "user", "content": [part("a"), IMAGE]}], UnsupportedValue, "input[0].content[1]"),
    (
        [{"role": "user", "content": [{"type": SECRET}]}],
        UnsupportedValue,
        "input[0].content[0].type",
    ),
    ([output("c1", [IMAGE])], UnsupportedValue, "input[0].output[0]"),
    (
        [{"type": "function_call", "name": "f", "call_id": "c"}],
        MissingParameter,
        "input[0].arguments",
    ),
    ([call("f", "c") | {"arguments": {}}], InvalidType, "input[0].arguments"),
    ([{"type": "function_call_output", "call_id": "c"}], MissingParameter, "input[0].output"),
    ([reasoning(summary=SECRET)], InvalidType, "input[0].summary"),
    (
        [{"type": "additional_tools", "tools": [{"type": SECRET}]}],
        UnsupportedValue,
        "input[0].tools[0].type",
    ),
    ([user("q")] * 10_001, InvalidValue, "input"),
]


@pytest.mark.parametrize(("given", "kind", "param"), BAD)
def test_what_is_wrong_is_named(given: Any, kind: type[BulkheadError], param: str) -> None:
    error = refusal(asked, {"input": given})
    assert (type(error), error.param) == (kind, param)


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_what_is_no_text_is_said_plainly(kind: str) -> None:
    error = refusal(asked, {"input": [{"role": "user", "content": [{"type": kind}]}]})
    assert "text only" in error.message
    assert error.param == "input[0].content[0]"
