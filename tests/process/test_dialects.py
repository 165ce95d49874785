"""The same answer in every dialect, whole and streamed, and the same again across a death.

Thoughts, text and two parallel calls, one of which comes in pieces. What the SDKs read of it must
not depend on who asks, nor on where a worker dies in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import anthropic
import ollama
import openai
import pytest

from supervisor.wire.frames import Call, Token
from tests.helpers.fakes.engine import Script
from tests.helpers.serving import DEADLINE, Server, serving

SAYS = (
    Token(1, "", reasoning="Let me "),
    Token(2, "", reasoning="think."),
    Token(3, "The weather"),
    Token(4, ": "),
    Token(5, "", calls=(Call(0, "weather", '{"city": "Paris"}'),)),
    Token(6, "", calls=(Call(1, "clock", '{"zone":'),)),
    Token(7, "", calls=(Call(1, "", ' "CET"}'),)),
)
CALLS = [("weather", {"city": "Paris"}), ("clock", {"zone": "CET"})]
DEATHS = (1, 2, 4, 5, 6)
"""Before these tokens a worker dies."""
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
NAMES = ("weather", "clock")
QUESTION: Any = [{"role": "user", "content": "hello"}]


@dataclass
class Said:
    """An answer as its client knows it in the end."""

    reasoning: str = ""
    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    end: str | None = None

    def check(self, end: str) -> None:
        assert (self.reasoning, self.text) == ("Let me think.", "The weather: ")
        assert self.calls == CALLS
        assert len(set(self.ids)) == len(self.ids)
        assert all(self.ids)
        assert self.end == end


def chat(client: openai.OpenAI, model: str, stream: bool) -> Said:
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES
    ]
    asked: Any = {"model": model, "messages": QUESTION, "tools": tools}
    said = Said()
    if not stream:
        (choice,) = client.chat.completions.create(**asked).choices
        said.text = choice.message.content or ""
        said.reasoning = choice.message.to_dict()["reasoning_content"]
        for call in choice.message.tool_calls or ():
            assert call.type == "function"
            said.ids.append(call.id)
            said.calls.append((call.function.name, json.loads(call.function.arguments)))
        said.end = choice.finish_reason
        return said
    names: dict[int, str] = {}
    pieces: dict[int, str] = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        (told,) = chunk.choices
        said.text += told.delta.content or ""
        said.reasoning += told.delta.to_dict().get("reasoning_content", "")
        for piece in told.delta.tool_calls or ():
            assert piece.function is not None
            if piece.id is not None:
                assert piece.index not in names  # announced once
                said.ids.append(piece.id)
                names[piece.index] = piece.function.name or ""
            pieces[piece.index] = pieces.get(piece.index, "") + (piece.function.arguments or "")
        said.end = told.finish_reason or said.end
    said.calls = [(names[index], json.loads(pieces[index])) for index in sorted(names)]
    return said


def responses(client: openai.OpenAI, model: str, stream: bool) -> Said:
    tools: Any = [{"type": "function", "name": name, "parameters": SCHEMA} for name in NAMES]
    asked: Any = {"model": model, "input": QUESTION, "tools": tools}
    if not stream:
        return _items(client.responses.create(**asked))
    text = ""
    added: list[str | None] = []
    arguments: dict[str, str] = {}
    for number, event in enumerate(client.responses.create(**asked, stream=True)):
        assert event.sequence_number == number
        match event.type:
            case "response.output_text.delta":
                text += event.delta
            case "response.output_item.added":
                added.append(event.item.id)
            case "response.function_call_arguments.delta":
                arguments[event.item_id] = arguments.get(event.item_id, "") + event.delta
            case "response.completed":
                said = _items(event.response)
                assert [item.id for item in event.response.output] == added
    assert text == said.text
    assert [json.loads(each) for each in arguments.values()] == [each for _, each in said.calls]
    return said


def _items(response: Any) -> Said:
    said = Said(text=response.output_text, end=response.status)
    for item in response.output:
        if item.type == "function_call":
            said.ids += [item.id, item.call_id]
            said.calls.append((item.name, json.loads(item.arguments)))
        elif item.type == "reasoning":
            parts = [*item.summary, *(item.content or ())]
            said.reasoning = parts[0].text
    return said


def messages(client: anthropic.Anthropic, model: str, stream: bool) -> Said:
    tools: Any = [{"name": name, "input_schema": SCHEMA} for name in NAMES]
    asked: Any = {"model": model, "messages": QUESTION, "tools": tools, "max_tokens": 100}
    if stream:
        with client.messages.stream(**asked) as told:
            message = told.get_final_message()
    else:
        message = client.messages.create(**asked)
    said = Said(end=message.stop_reason)
    for block in message.content:
        match block.type:
            case "thinking":
                said.reasoning += block.thinking
            case "text":
                said.text += block.text
            case "tool_use":
                said.ids.append(block.id)
                said.calls.append((block.name, block.input))
    return said


def ollama_chat(client: ollama.Client, model: str, stream: bool) -> Said:
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES
    ]
    asked: Any = {"model": model, "messages": QUESTION, "tools": tools, "think": True}
    told = client.chat(**asked, stream=True) if stream else [client.chat(**asked)]
    said = Said()
    for each in told:
        said.reasoning += each.message.thinking or ""
        said.text += each.message.content or ""
        for call in each.message.tool_calls or ():
            said.calls.append((call.function.name, dict(call.function.arguments)))
        said.end = each.done_reason or said.end
    return said


DIALECTS: dict[str, tuple[Callable[[Any, str, bool], Said], str]] = {
    "chat": (chat, "tool_calls"),
    "responses": (responses, "completed"),
    "messages": (messages, "tool_use"),
    "ollama": (ollama_chat, "stop"),
}
"""How each is asked, and the word for an end with calls."""
ALL = [(name, stream) for name in DIALECTS for stream in (False, True)]


def ask(url: str, dialect: str, model: str, stream: bool) -> Said:
    """The answer in a dialect, as its own SDK reads it; nothing is tried twice."""
    client: Any
    match dialect:
        case "messages":
            client = anthropic.Anthropic(base_url=url, api_key="x", max_retries=0, timeout=DEADLINE)
        case "ollama":
            client = ollama.Client(host=url, timeout=DEADLINE)
        case _:
            client = openai.OpenAI(
                base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=DEADLINE
            )
    with client:
        return DIALECTS[dialect][0](client, model, stream)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dialects")
    sources = {"calm": Script(says=SAYS, finish_reason="tool_calls").write(folder / "calm")}
    for at in DEATHS:
        script = Script(
            says=SAYS, finish_reason="tool_calls", deeds={"decode": "abort"}, at_token=at
        )
        sources[f"dies{at}"] = script.write(folder / f"dies{at}")
    config = "[server]\nport = 0\n" + "".join(
        f'[models.{name}]\nsource = "{source}"\n' for name, source in sources.items()
    )
    with serving(folder / "state", scripted=True, config=config) as made:
        yield made


@pytest.mark.parametrize(("dialect", "stream"), ALL)
def test_every_dialect_tells_the_same(server: Server, dialect: str, stream: bool) -> None:
    ask(server.url, dialect, "calm", stream).check(DIALECTS[dialect][1])


@pytest.mark.parametrize("at", DEATHS)
def test_and_the_same_across_a_death(server: Server, at: int) -> None:
    """All ask at once, so that one death cuts them all."""
    model = f"dies{at}"
    with ThreadPoolExecutor(len(ALL)) as threads:
        asked = [threads.submit(ask, server.url, name, model, stream) for name, stream in ALL]
        for (name, _), answer in zip(ALL, asked, strict=True):
            answer.result(DEADLINE).check(DIALECTS[name][1])
    deaths = {each["name"]: each["deaths"] for each in server.health()["models"]}
    assert deaths[model] == 1
