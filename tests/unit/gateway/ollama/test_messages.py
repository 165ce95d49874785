"""gateway.ollama.messages: conversations with tools, in the form that templates take."""

from __future__ import annotations

from typing import Any

import pytest
from ollama import Message, Tool

from gateway.ollama.messages import to_openai, tools_to_openai
from gateway.openai.validation import NESTING_MAX
from supervisor.wire.frames import Chat
from tests.helpers.ollama_bodies import USER, chat, refusal


def called(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments or {}}, **more}


def as_openai(identity: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def test_a_conversation_with_a_tool() -> None:
    said = [
        USER,
        {"role": "assistant", "thinking": "hm", "tool_calls": [called("f", {"a": [1, None]})]},
        {"role": "tool", "tool_name": "f", "content": "42"},
    ]
    assert to_openai(said) == [
        USER,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [as_openai("call_0", "f", '{"a":[1,null]}')],
        },
        {"role": "tool", "content": "42", "tool_call_id": "call_0", "name": "f"},
    ]
    (_, assistant, tool) = chat(messages=said).prompt.messages  # type: ignore[union-attr]
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == "call_0"


def answers(*said: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [
        (each.get("tool_call_id"), each.get("name"))
        for each in to_openai(list(said))
        if each["role"] == "tool"
    ]


def test_which_call_a_tool_answers() -> None:
    two = {"role": "assistant", "tool_calls": [called("f"), called("g", index=1)]}
    tool = {"role": "tool", "content": "x"}
    assert answers(two, tool, tool) == [("call_0", "f"), ("call_1", "g")]
    by_name = answers(two, {**tool, "tool_name": "g"}, {**tool, "tool_name": "f"})
    assert by_name == [("call_1", "g"), ("call_0", "f")]
    same = {"role": "assistant", "tool_calls": [called("f"), called("f")]}
    assert answers(same, *[{**tool, "tool_name": "f"}] * 2) == [("call_0", "f"), ("call_1", "f")]


def test_ids_that_a_client_sends_stay() -> None:
    own = {"role": "assistant", "tool_calls": [called("f", id="mine"), called("f", id="yours")]}
    tool = {"role": "tool", "content": "x", "tool_call_id": "yours"}
    assert answers(own, tool) == [("yours", "f")]
    assert answers(own, {**tool, "tool_call_id": "nobody's"}) == [("nobody's", None)]


def test_calls_of_an_earlier_turn_are_not_answered_again() -> None:
    first = {"role": "assistant", "tool_calls": [called("f")]}
    second = {"role": "assistant", "tool_calls": [called("f")]}
    assert answers(first, second, {"role": "tool", "content": "x"}) == [("call_1", "f")]


def test_an_answer_can_be_sent_back_as_the_sdk_dumps_it() -> None:
    call = Message.ToolCall(function=Message.ToolCall.Function(name="f", arguments={"a": 1}))
    message = Message(role="assistant", content="", thinking="hm", tool_calls=[call])
    (told,) = to_openai([message.model_dump(exclude_none=True)])
    assert told["tool_calls"] == [as_openai("call_0", "f", '{"a":1}')]
    assert told["reasoning_content"] == "hm"


def test_members_that_nobody_knows_are_ignored() -> None:
    assert to_openai([{**USER, "note": 1, "images": []}]) == [USER]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({**USER, "images": ["aGk="]}, "messages[0].images"),
        ({**USER, "tool_calls": [called("f")]}, "messages[0].tool_calls"),
        (
            {"role": "assistant", "tool_calls": [called("f", {"a": 2**70})]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"role": "user", "content": 3}, "messages[0].content"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(message: dict[str, Any], param: str) -> None:
    assert refusal(chat, messages=[message]).param == param


def test_arguments_that_are_nested_too_deeply() -> None:
    tree: Any = {}
    for _ in range(NESTING_MAX + 1):
        tree = {"a": tree}
    message = {"role": "assistant", "tool_calls": [called("f", tree)]}
    assert "nested" in refusal(chat, messages=[message]).message


def test_a_tool_of_the_sdk() -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
          a: the first
          b: the second
        """
        return a + b

    from ollama._utils import convert_function_to_tool

    dumped = convert_function_to_tool(add).model_dump(exclude_none=True)
    prompt = chat(tools=[dumped]).prompt
    assert isinstance(prompt, Chat)
    assert prompt.tools[0]["function"]["name"] == "add"
    assert set(prompt.tools[0]["function"]["parameters"]["properties"]) == {"a", "b"}


def test_every_member_of_the_sdks_tools_has_a_fate() -> None:
    assert set(Tool.model_fields) == {"type", "function"}
    assert set(Tool.Function.model_fields) == {"name", "description", "parameters"}
    assert set(Message.model_fields) == {
        *("role", "content", "thinking", "images", "tool_name", "tool_calls"),
    }


def test_what_no_template_shows_is_left_out() -> None:
    bare = {"function": {"name": "f", "type": "object"}, "items": {"x": 1}}
    assert tools_to_openai([bare, 3]) == [{"type": "function", "function": {"name": "f"}}, 3]
