"""worker.prompt.reshape: lists of messages that strict templates refuse, and what they get."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import pytest
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.helpers.strict_templates import GEMMA_2, LLAMA_3, MISTRAL, STRICT, SYSTEM_FIRST
from worker.prompt.reshape import Message, gentler


def message(role: str, content: Any, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def called(content: str = "", call_id: str = "call_1234567890") -> Message:
    function = {"name": "look", "arguments": {"where": "CALLED"}}
    call = {"id": call_id, "type": "function", "function": function}
    return message("assistant", content, tool_calls=[call])


def result(content: str, call_id: str = "call_1234567890") -> Message:
    return message("tool", content, tool_call_id=call_id)


def _refuse(why: str) -> None:
    raise TemplateError(why)


@functools.cache
def compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def render(template: str, messages: list[Message]) -> str:
    return compiled(template).render(messages=messages, tools=None, add_generation_prompt=True)


def gentle(template: str, messages: list[Message]) -> tuple[str, str]:
    """What was done, and the text of the first shape that the template takes."""
    try:
        return "", render(template, messages)
    except TemplateError:
        for what, shape in gentler(messages, knows_calls="tool_calls" in template):
            try:
                return what, render(template, shape)
            except TemplateError:
                continue
        raise


def test_what_a_template_refuses_is_merged_in_order() -> None:
    messages = [
        message("system", "one"),
        message("system", "two"),
        message("user", "three"),
        message("user", "four"),
        message("system", "five"),
    ]
    what, text = gentle(MISTRAL, messages)
    assert text == "[INST]one\n\ntwo\n\nthree\n\nfour\n\nfive[/INST]"
    assert what == "messages merged"


def test_a_later_system_message_stays_in_its_place() -> None:
    messages = [
        message("system", "one"),
        message("user", "two"),
        message("assistant", "three"),
        message("system", "four"),
        message("user", "five"),
    ]
    _, text = gentle(SYSTEM_FIRST, messages)
    assert text == "system: one\nuser: two\nassistant: three\nuser: four\n\nfive\n"


def test_no_system_message_comes_between_calls_and_their_results() -> None:
    messages = [
        message("user", "one"),
        called("two"),
        message("system", "four"),
        message("system", "five"),
        result("three"),
        message("assistant", "six"),
    ]
    shapes = dict(gentler(messages, knows_calls=True))
    roles = [each["role"] for each in shapes["messages merged"]]
    assert roles == ["user", "assistant", "tool", "user", "assistant"]
    assert shapes["messages merged"][3]["content"] == "four\n\nfive"


def test_a_template_without_a_system_message_tells_it_to_the_user() -> None:
    what, text = gentle(GEMMA_2, [message("system", "be kind"), message("user", "hi")])
    assert text.startswith("<start_of_turn>user\nbe kind\n\nhi<end_of_turn>")
    assert what == "the system message joined to the user's"


def test_an_answer_may_come_first() -> None:
    _, text = gentle(GEMMA_2, [message("assistant", "hello"), message("user", "hi")])
    assert text.startswith("<start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\nhello<")


def test_calls_keep_their_form_where_the_template_has_one() -> None:
    """Only the ids are no nine letters, and the user speaks after a result."""
    messages = [message("user", "a"), called("b"), result("c"), message("user", "d")]
    what, text = gentle(MISTRAL, messages)
    assert "[TOOL_CALLS]" in text
    assert "[TOOL_RESULTS]c" in text
    ids = text.split("[TOOL_RESULTS]c")[1][:9]
    assert text.count(ids) == 2
    assert what == "ids of calls shortened, empty messages put between"


def test_a_template_that_takes_one_call_gets_one_at_a_time() -> None:
    both = called("a", "first")
    both["tool_calls"] += called("", "second")["tool_calls"]
    messages = [message("user", "q"), both, result("two", "second"), result("one", "first")]
    what, text = gentle(LLAMA_3, messages)
    call = '{"arguments": {"where": "CALLED"}, "name": "look"}<|eot|>'
    assert text.endswith(
        f"<|assistant|>a{call}<|ipython|>one<|eot|><|assistant|>{call}<|ipython|>two<|eot|>"
    )
    assert what == "ids of calls shortened, one call at a time"


def test_calls_are_told_where_the_template_has_no_form_for_them() -> None:
    messages = [message("user", "a"), called("b"), result("c"), message("user", "d")]
    _, text = gentle(GEMMA_2, messages)
    assert 'b\n\n{"name": "look", "arguments": {"where": "CALLED"}}<end_of_turn>' in text
    assert "<start_of_turn>user\nc\n\nd<end_of_turn>" in text


def test_parts_and_calls_of_merged_messages_are_all_there() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    messages = [
        message("user", [image]),
        message("user", "text"),
        called("a", "123456789"),
        called("b", "abcdefghi") | {"reasoning_content": "thought"},
    ]
    merged = next(shape for _, shape in gentler(messages, knows_calls=True))
    assert merged[0]["content"] == [image, {"type": "text", "text": "text"}]
    assert [call["id"] for call in merged[1]["tool_calls"]] == ["123456789", "abcdefghi"]
    assert merged[1]["reasoning_content"] == "thought"


def test_the_senders_list_stays_as_it_is() -> None:
    messages = [message("system", "a"), message("system", "b"), called(), result("c")]
    before = json.dumps(messages)
    list(gentler(messages, knows_calls=True))
    assert json.dumps(messages) == before


def test_a_plain_conversation_has_no_other_shape() -> None:
    assert list(gentler([message("user", "a"), message("assistant", "b")], knows_calls=True)) == []


def test_thousands_of_messages_are_merged_in_one_go() -> None:
    """Joined one by one, as many as a request may have took a minute and a half; and the results
    of as many calls in one message 20 s."""
    said = [message("user", f"{number} " + "x" * 1000) for number in range(10_000)]
    ((what, (merged,)),) = gentler(said, knows_calls=True)
    assert what == "messages merged"
    assert merged["content"] == "\n\n".join(each["content"] for each in said)
    ids = [f"call-{number}" for number in range(10_000)]
    calls = [called(call_id=each)["tool_calls"][0] for each in ids]
    results = [result(each, each) for each in reversed(ids)]
    asked = [message("user", "u"), message("assistant", "", tool_calls=calls), *results]
    shapes = dict(gentler(asked, knows_calls=True))
    alone = shapes["ids of calls shortened, one call at a time"]
    assert [each["content"] for each in alone if each["role"] == "tool"] == ids


@pytest.mark.parametrize("name", STRICT)
def test_any_list_is_taken_and_nothing_is_lost(name: str) -> None:
    """Whatever comes in whatever order is in the prompt, unless the template takes it as it is."""
    reshaped = 0
    for seed in range(300):
        dice = random.Random(seed)
        messages: list[Message] = []
        for number in range(dice.randrange(1, 9)):
            role = dice.choice(["system", "user", "assistant", "tool", "call"])
            text = f"<{number}>"
            if role == "call":
                messages.append(called(text))
                messages[-1]["tool_calls"] *= dice.choice([1, 1, 2])
            else:
                messages.append(result(text) if role == "tool" else message(role, text))
        done, prompt = gentle(STRICT[name], messages)
        if not done:
            continue
        reshaped += 1
        lost = [each["content"] for each in messages if each["content"] not in prompt]
        if name == "mistral":  # its form of calls has no text beside them
            lost = [text for text in lost if text not in _texts_of_calls(messages)]
            others = [each for each in messages if each["role"] != "system"]
            if others and others[0]["role"] != "user":  # nor a system message before another
                continue
        assert lost == [], (seed, messages, prompt)
        assert "CALLED" in prompt or not _texts_of_calls(messages), (seed, prompt)
    assert reshaped > 30


def _texts_of_calls(messages: list[Message]) -> list[str]:
    return [each["content"] for each in messages if each.get("tool_calls")]
