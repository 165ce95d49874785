"""gateway.handlers.completions: scripted answers read by the openai SDK, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gateway.dialect import AnswerHead, ChoiceBuffer
from gateway.handlers import answering
from gateway.http.access_log import AccessRecord
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.render import OpenAIRenderer
from gateway.openai.render_completions import TextShape
from supervisor.wire.frames import Call, End, Logprob, Logprobs, Token
from tests.helpers.fakes.engine import PROMPT_TOKENS, REFUSED, Script, text_of
from tests.helpers.serving import DEADLINE, Server, serving

USER = {"role": "user", "content": "hello"}
SAID = Logprob(5, "Hi", b"Hi", -0.5)
CALLS = (
    Token(5, "Hi", reasoning="hm", logprobs=Logprobs(SAID, (SAID,))),
    Token(6, "", calls=(Call(0, "get", ""),)),
    Token(7, "", calls=(Call(0, "", '{"a": 1}'), Call(1, "put", ""))),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    words = Script().write(models / "words")
    caller = Script(says=CALLS, finish_reason="tool_calls").write(models / "caller")
    seeded = Script(tells_seed=True).write(models / "seeds")
    fatal = Script(deeds={"decode": "abort"}, generations=(1, 2, 3)).write(models / "fatal")
    config = f"""
[server]
port = 0
max_body = "1MB"
[recovery]
mode = "off"
[models.words]
source = "{words}"
[models.caller]
source = "{caller}"
[models.seeds]
source = "{seeded}"
[models.fatal]
source = "{fatal}"
"""
    with serving(tmp_path_factory.mktemp("state"), config=config, scripted=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=DEADLINE
    ) as made:
        yield made


def test_choices_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="words",
        messages=[{"role": "user", "content": "hello"}],
        n=3,
        max_tokens=4,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [text_of(4)] * 3
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
    assert answer.usage.completion_tokens == 12


def test_as_many_choices_as_allowed(client: openai.OpenAI) -> None:
    """A few at a time, of which the answer shows nothing."""
    answer = client.chat.completions.create(
        model="words", messages=[{"role": "user", "content": "hello"}], n=128, max_tokens=2
    )
    assert [choice.index for choice in answer.choices] == list(range(128))
    assert {choice.message.content for choice in answer.choices} == {text_of(2)}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 256


def test_choices_of_a_stream(client: openai.OpenAI) -> None:
    texts, reasons, last = ["", "", ""], {}, None
    for chunk in client.chat.completions.create(
        model="words",
        messages=[{"role": "user", "content": "hello"}],
        n=3,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    ):
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [text_of(20)] * 3
    assert reasons == {0: "length", 1: "length", 2: "length"}
    assert last is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == 60


@pytest.mark.parametrize("prompt", [["one", "two"], [[1, 2], [3]]])
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_with_an_echo(client: openai.OpenAI, prompt: Any, stream: bool) -> None:
    answers: Any = client.completions.create(
        model="words", prompt=prompt, n=2, echo=True, max_tokens=2, stream=stream
    )
    texts = [""] * 4
    for answer in answers if stream else [answers]:
        for choice in answer.choices:
            texts[choice.index] += choice.text
    heads = ["one", "two"] if prompt[0] == "one" else ["<1><2>", "<3>"]
    assert texts == [heads[number // 2] + text_of(2) for number in range(4)]


def test_what_a_model_thinks_and_calls(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="caller",
        messages=[{"role": "user", "content": "hello"}],
        logprobs=True,
        tools=[{"type": "function", "function": {"name": "get"}}],
    )
    (choice,) = answer.choices
    message: Any = choice.message
    assert choice.finish_reason == "tool_calls"
    assert (message.content, message.reasoning_content, message.reasoning) == ("Hi", "hm", "hm")
    called = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    assert called == [("get", '{"a": 1}'), ("put", "{}")]
    assert choice.logprobs is not None
    assert [each.token for each in choice.logprobs.content or []] == ["Hi"]


def test_the_sdk_puts_streamed_calls_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="caller",
        messages=[{"role": "user", "content": "hello"}],
        n=2,
        tools=[{"type": "function", "function": {"name": "get"}}],
    ) as stream:
        answer = stream.get_final_completion()
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        called = [
            (call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or []
        ]
        assert called == [("get", '{"a": 1}'), ("put", "{}")]
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or []]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_one_prompts_refusal_is_the_requests(server: Server, stream: bool) -> None:
    body = {"model": "words", "prompt": ["fine", REFUSED], "max_tokens": 1000, "stream": stream}
    answer = server.request("POST", "/v1/completions", body)
    if stream and answer.status == 200:  # the other choice was first
        error = json.loads(answer.events[-1])["error"]
    else:
        assert answer.status == 400
        error = answer.json["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "prompt")


@pytest.mark.parametrize("stream", [False, True])
def test_a_death_is_one_error_for_all_choices(server: Server, stream: bool) -> None:
    body = {"model": "fatal", "prompt": "x", "n": 4, "stream": stream}
    answer = server.request("POST", "/v1/completions", body)
    if stream:
        assert answer.status == 200
        *_, last = answer.events
        assert json.loads(last)["error"]["code"] == "worker_crashed"
        assert "[DONE]" not in answer.events
    else:
        assert answer.status == 503
        assert answer.json["error"]["code"] == "worker_crashed"


def test_a_large_body_cannot_be_multiplied(server: Server) -> None:
    message = {"role": "user", "content": "x" * 300_000}
    body = {"model": "words", "messages": [message], "n": 4, "max_tokens": 1}
    answer = server.request("POST", "/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.json["error"]["param"] == "n"
    assert server.request("POST", "/v1/chat/completions", {**body, "n": 2}).status == 200


def seeds(server: Server, **members: Any) -> list[str]:
    body = {"model": "seeds", "messages": [USER], "max_tokens": 1, **members}
    answer = server.request("POST", "/v1/chat/completions", body)
    return [choice["message"]["content"] for choice in answer.json["choices"]]


def test_without_a_seed_every_request_and_choice_has_another(server: Server) -> None:
    assert len({*seeds(server, n=3), *seeds(server, n=3)}) == 6


def test_with_a_seed_requests_have_the_same(server: Server) -> None:
    assert seeds(server, n=2, seed=5) == seeds(server, n=2, seed=5)
    assert seeds(server, seed=5) == seeds(server, n=2, seed=5)[:1] == ["5 "]


def test_the_log_tells_how_a_request_ended(server: Server) -> None:
    chat = {"model": "words", "messages": [USER], "max_tokens": 2}
    for name, path, body in (
        ("listed", "/v1/models", None),
        ("said", "/v1/chat/completions", chat),
        ("streamed", "/v1/chat/completions", {**chat, "stream": True}),
        ("refused", "/v1/models/unknown", None),
        ("unknown", "/v1/completions", {"model": "no such", "prompt": "x"}),
        ("bad", "/v1/chat/completions", {**chat, "stream": True, "surprise": 1}),
        ("worse", "/v1/completions", {"model": ["words"], "prompt": "x", "stream": "yes"}),
        ("polled", "/health", None),
        ("last", "/v1/models", None),  # a line follows its answer: the last one's may be missing
    ):
        method = "GET" if body is None else "POST"
        server.request(method, path, body, headers={"x-request-id": name})
    lines = {
        line.split()[2]: line
        for line in server.log("gateway.log").splitlines()
        if "method=" in line
    }
    assert "polled" not in lines
    assert " method=GET path=/v1/models status=200 total_s=" in lines["listed"]
    for name in ("said", "streamed"):
        assert " client=127.0.0.1 method=POST path=/v1/chat/completions status=200 " in lines[name]
        stream = "yes" if name == "streamed" else "no"
        told = f" model=words worker=words#1 stream={stream} finish=length prompt={PROMPT_TOKENS} "
        assert f"{told}cached=0 completion=2 queue_s=" in lines[name]
        assert re.search(r" ttft_s=\d+\.\d{3} total_s=\d+\.\d{3} tokens_per_s=", lines[name])
    assert " status=404 code=model_not_found model=unknown " in lines["refused"]
    assert ' status=404 code=model_not_found model="no such" stream=no total' in lines["unknown"]
    bad = " status=400 code=unsupported_parameter model=words stream=yes total_s="
    assert bad in lines["bad"]
    assert " status=400 code=invalid_type total_s=" in lines["worse"]


def a_record() -> AccessRecord:
    return AccessRecord(0.0, "POST", "/v1/completions", "-")


class Answering:
    """A generation of these frames, each with its choice's number."""

    model, worker, asked, recoveries = "m", "m#1", "", 0

    def __init__(self, *frames: tuple[int, Token | End]) -> None:
        self._frames = list(frames)

    async def receive(self) -> tuple[int, Token | End]:
        return self._frames.pop(0)


def test_a_prompt_counts_once_whichever_of_its_choices_ends_first() -> None:
    parsed = COMPLETION_BODY.parse({"prompt": ["x", "longer"], "n": 2})
    short, long = End("stop", 1, 1), End("stop", 5, 1)
    generation: Any = Answering((0, short), (2, long), (1, short), (3, long))
    request: Any = {}
    renderer = OpenAIRenderer(TextShape, AnswerHead(1, "m", 4))
    answer = answering._Answer(request, a_record(), parsed.n, generation, renderer, 4)
    response = asyncio.run(answer.whole([ChoiceBuffer() for _ in range(4)]))
    assert isinstance(response.body, bytes)
    assert json.loads(response.body)["usage"]["prompt_tokens"] == 6
