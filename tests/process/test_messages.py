"""Anthropic's SDK and the demo model: what is asked for is what it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.helpers.serving import DEADLINE, Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the demo model."""
    with serving(tmp_path_factory.mktemp("messages"), "--model", "demo=demo") as made:
        yield made


@pytest.fixture(scope="module")
def messages(server: Server) -> Iterator[Any]:
    """Of one that raises where an answer is not of the SDK's type."""
    with anthropic.Anthropic(
        base_url=server.url,
        api_key="unused",
        max_retries=0,
        timeout=DEADLINE,
        _strict_response_validation=True,
    ) as made:
        yield made.messages


ASKED: Any = {"role": "user", "content": "What is Bulkhead?"}
FORECAST: Any = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"sunny": {"type": "boolean"}},
        "required": ["sunny"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.mark.parametrize("stream", [False, True])
def test_this_sdk_reads_calls_and_gives_their_results(messages: Any, stream: bool) -> None:
    """A tool loop, to its end."""
    asked = {
        "model": "demo",
        "max_tokens": 200,
        "tools": [FORECAST],
        "tool_choice": {"type": "any"},
    }
    said: list[Any] = [{"role": "user", "content": "Is it sunny?"}]
    if stream:
        with messages.stream(**asked, messages=said) as events:
            made = events.get_final_message()
    else:
        made = messages.create(**asked, messages=said)
    (call, *_) = [block for block in made.content if block.type == "tool_use"]
    assert call.name == "weather"
    assert set(call.input) == {"sunny"}
    assert made.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "yes"}
    said += [made.to_param(), {"role": "user", "content": [result]}]
    end = messages.create(model="demo", max_tokens=8, tools=[FORECAST], messages=said)
    assert end.usage.input_tokens > made.usage.input_tokens


def test_an_answer_goes_on_where_it_was_begun(messages: Any) -> None:
    greedy: Any = {"model": "demo", "max_tokens": 40, "extra_body": {"temperature": 0}}
    whole = messages.create(**greedy, messages=[ASKED])
    text = whole.content[-1].text
    said = [ASKED, {"role": "assistant", "content": text[:11]}]
    rest = messages.create(**greedy, messages=said)
    assert text[:11] + rest.content[-1].text == text
    assert rest.usage.input_tokens > whole.usage.input_tokens


def test_this_sdk_reads_what_stopped_an_answer(messages: Any) -> None:
    made = messages.create(
        model="demo",
        max_tokens=40,
        stop_sequences=["x", "server"],
        messages=[ASKED],
        extra_body={"temperature": 0},
    )
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", "server")
    assert "server" not in made.content[-1].text


def test_this_sdk_reads_an_answer_under_a_schema(messages: Any) -> None:
    schema = FORECAST["input_schema"]
    made = messages.create(
        model="demo",
        max_tokens=60,
        messages=[ASKED],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert set(json.loads(made.content[-1].text)) == {"sunny"}


def test_what_is_counted_is_what_is_used(messages: Any) -> None:
    asked = {"model": "demo", "messages": [ASKED], "system": "Be brief.", "tools": [FORECAST]}
    made = messages.create(**asked, max_tokens=1)
    assert messages.count_tokens(**asked).input_tokens == made.usage.input_tokens


def test_a_conversation_that_is_too_long_is_told_in_the_words_that_agents_know(
    messages: Any,
) -> None:
    said = [{"role": "user", "content": "ab " * 70_000}]
    with pytest.raises(anthropic.BadRequestError, match=r"too long: \d+ tokens > \d+ maximum"):
        messages.create(model="demo", max_tokens=1, messages=said)
