"""gateway.handlers.ollama: scripted answers and a server's state, read by the ollama SDK."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import ollama
import pytest

from gateway.relay.generation import OutputPaused
from supervisor.wire.frames import Accepted, Call, Embed, Embedded, End, Logprob, Logprobs, Token
from tests.helpers.fakes.engine import PROMPT_TOKENS, REFUSED, Script, text_of
from tests.helpers.frames import as_received
from tests.helpers.played_gateway import PATIENT, play, playing
from tests.helpers.serving import DEADLINE, Answer, Server, serving
from tests.unit.gateway.handlers.test_embeddings import VECTOR, Scripted, posted

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
SAID = Logprob(5, "Hi", b"Hi", -0.5)
CALLS = (
    Token(5, "Hi", reasoning="hm", logprobs=Logprobs(SAID, (SAID,))),
    Token(6, "", calls=(Call(0, "get", ""),)),
    Token(7, "", calls=(Call(0, "", '{"a": '),)),
    Token(8, "", calls=(Call(0, "", "1}"), Call(1, "put", ""))),
    Token(9, "!"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    words = Script().write(models / "words")
    caller = Script(says=CALLS, finish_reason="tool_calls").write(models / "caller")
    dying = Script(deeds={"decode": "abort"}).write(models / "dying")
    struck = Script(says=CALLS, finish_reason="tool_calls", deeds={"decode": "abort"})
    struck.write(models / "struck")
    fatal = Script(deeds={"decode": "abort"}, generations=tuple(range(30))).write(models / "fatal")
    unloadable = Script(deeds={"load": "unloadable"}).write(models / "unloadable")
    config = f"""
[server]
port = 0
default_model = "words"
[recovery]
max_restarts = 1000
[models.words]
source = "{words}"
aliases = ["gpt-oss:20b"]
[models.caller]
source = "{caller}"
[models.dying]
source = "{dying}"
[models.struck]
source = "{models / "struck"}"
[models.fatal]
source = "{fatal}"
[models.unloadable]
source = "{unloadable}"
[models.pinned]
source = "{words}"
pin = true
"""
    with serving(tmp_path_factory.mktemp("state"), config=config, scripted=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ollama.Client]:
    made = ollama.Client(host=server.url, timeout=DEADLINE)
    yield made
    made._client.close()


def post(server: Server, path: str, body: Any, **headers: str) -> Answer:
    return server.request(
        "POST", path, body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def lines(answer: Answer) -> list[Any]:
    return [json.loads(line) for line in answer.body.splitlines()]


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def assert_honest(last: Any, tokens: int) -> None:
    """The figures of an answer's end."""
    assert last.done
    assert (last.prompt_eval_count, last.eval_count) == (PROMPT_TOKENS, tokens)
    parts = (last.load_duration, last.prompt_eval_duration, last.eval_duration)
    assert min(parts) > 0
    assert abs(sum(parts) - last.total_duration) < 10


def test_a_chat(client: ollama.Client) -> None:
    answer = client.chat("words", [USER], options={"num_predict": 4})
    assert (answer.model, answer.message.content, answer.done_reason) == (
        *("words", text_of(4)),
        "length",
    )
    assert_honest(answer, 4)


def test_a_chat_as_a_stream(client: ollama.Client) -> None:
    *pieces, last = client.chat("words", [USER], options={"num_predict": 20}, stream=True)
    assert "".join(each.message.content or "" for each in pieces) == text_of(20)
    assert not any(each.done for each in pieces)
    assert_honest(last, 20)


def test_a_generation(client: ollama.Client) -> None:
    answer = client.generate("words", "hello", options={"num_predict": 3})
    assert answer.response == text_of(3)
    assert_honest(answer, 3)
    told = list(client.generate("words", "hello", options={"num_predict": 3}, stream=True))
    assert "".join(each.response or "" for each in told) == text_of(3)


def test_a_stream_is_the_default_and_lines_of_json(server: Server) -> None:
    body = {"model": "words", "messages": [USER], "options": {"num_predict": 2, "num_ctx": 9}}
    answer = post(server, "/api/chat", body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-bulkhead-ignored"] == "options.num_ctx"
    assert answer.headers["x-bulkhead-worker"] == "words#1"
    assert [each["done"] for each in lines(answer)] == [False, False, True]


def told(chat: Any) -> tuple[str, str, list[Any]]:
    """Text, thoughts and calls of an answer, or of the pieces of a stream."""
    messages = [
        each.message for each in ([chat] if isinstance(chat, ollama.ChatResponse) else chat)
    ]
    calls = [call.function for each in messages for call in each.tool_calls or []]
    return (
        "".join(each.content or "" for each in messages),
        "".join(each.thinking or "" for each in messages),
        [(call.name, dict(call.arguments)) for call in calls],
    )


WANTED = ("Hi!", "hm", [("get", {"a": 1}), ("put", {})])


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_model_thinks_and_calls(client: ollama.Client, stream: bool) -> None:
    ask: Any = client.chat
    answer: Any = ask("caller", [USER], tools=[TOOL], stream=stream, logprobs=True)
    answer = list(answer) if stream else answer
    assert told(answer) == WANTED
    last = answer[-1] if stream else answer
    assert last.done_reason == "stop"
    (entry,) = (answer[0] if stream else answer).logprobs
    assert (entry.token, entry.logprob) == ("Hi", -0.5)


# ── recovery ─────────────────────────────────────────────────────────────────────────────────────


def test_a_death_is_not_seen(client: ollama.Client, server: Server) -> None:
    pieces = list(client.chat("dying", [USER], options={"num_predict": 30}, stream=True))
    assert told(pieces)[0] == text_of(30)
    assert pieces[-1].eval_count == 30
    assert server.loaded("dying")["deaths"] == 1


def test_calls_around_a_death_are_told_once(client: ollama.Client, server: Server) -> None:
    pieces = list(client.chat("struck", [USER], tools=[TOOL], stream=True))
    assert server.loaded("struck")["deaths"] == 1
    assert told(pieces) == WANTED


def test_a_stream_that_cannot_go_on_ends_in_an_error(client: ollama.Client, server: Server) -> None:
    seen: list[Any] = []
    with pytest.raises(ollama.ResponseError, match="alone has killed the worker"):
        seen.extend(client.chat("fatal", [USER], options={"num_predict": 30}, stream=True))
    answer = post(server, "/api/chat", {"model": "fatal", "messages": [USER], "stream": False})
    assert (answer.status, answer.json["code"]) == (422, "request_crashed_worker")


# ── loading and unloading ────────────────────────────────────────────────────────────────────────


def test_models_come_and_go_as_clients_say(client: ollama.Client) -> None:
    def loaded() -> dict[str, Any]:
        return {str(each.name): each for each in client.ps().models}

    assert client.generate("caller", keep_alive="30m").done_reason == "load"
    left = loaded()["caller"].expires_at - datetime.now(UTC)
    assert timedelta(minutes=29) < left <= timedelta(minutes=30)
    assert client.chat("caller", keep_alive=-1).done_reason == "load"
    assert loaded()["caller"].expires_at.year > 2300
    client.chat("caller", [USER], keep_alive="20m")
    assert loaded()["caller"].expires_at.year < 2300
    assert client.generate("caller", keep_alive=0).done_reason == "unload"
    assert "caller" not in loaded()


def test_a_pinned_model_stays(client: ollama.Client, server: Server) -> None:
    client.generate("pinned")
    client.generate("pinned", keep_alive=0)
    assert server.loaded("pinned")["state"] == "ready"


def test_what_cannot_be_loaded_says_why(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate("unloadable")
    assert caught.value.status_code == 400


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def test_lists_need_no_worker(client: ollama.Client) -> None:
    listed = client.list().models
    names = [each.model for each in listed]
    assert names[:2] == ["words", "gpt-oss:20b"]
    assert all(len(each.digest or "") == 64 for each in listed)
    assert listed[0].details is not None
    assert listed[0].details.family == "scripted"
    for name in ("words", "gpt-oss:20b", "words:latest"):
        info = client.show(name).modelinfo
        assert info is not None
        assert info["general.architecture"] == "scripted"
        assert info["general.basename"] == name


def test_older_clients_name_it_otherwise(server: Server) -> None:
    assert post(server, "/api/show", {"name": "words"}).status == 200
    assert post(server, "/api/pull", {"name": "words", "stream": False}).json == {
        "status": "success"
    }


def test_what_is_served_is_pulled_already(client: ollama.Client) -> None:
    assert client.pull("gpt-oss:20b").status == "success"
    assert [each.status for each in client.pull("words:latest", stream=True)][-1] == "success"


def test_nothing_else_is(client: ollama.Client, server: Server) -> None:
    with pytest.raises(ollama.ResponseError, match=r'model "llama3" not found.*ORG/NAME'):
        client.pull("llama3")
    with pytest.raises(ollama.ResponseError, match="hf download mlx-community/x"):
        client.pull("mlx-community/x")
    asks: list[Callable[[], Any]] = [
        lambda: client.create("x", from_="words"),
        lambda: client.copy("words", "x"),
        lambda: client.push("words"),
        lambda: client.delete("words"),
    ]
    for ask in asks:
        with pytest.raises(ollama.ResponseError, match="no request changes") as caught:
            ask()
        assert caught.value.status_code == 400
    assert server.request("HEAD", "/api/blobs/sha256:abc").status == 400


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/api/chat", {"model": "no", "messages": [USER]}, 404, "model_not_found"),
        ("POST", "/api/chat", {"model": "no", "messages": []}, 404, "model_not_found"),
        ("POST", "/api/generate", {"model": "no", "keep_alive": 0}, 404, "model_not_found"),
        ("POST", "/api/embed", {"model": "no", "input": "x"}, 404, "model_not_found"),
        ("POST", "/api/embed", {"model": "no", "input": 3}, 404, "model_not_found"),
        ("POST", "/api/show", {"model": "no"}, 404, "model_not_found"),
        ("POST", "/api/show", {}, 400, "missing_required_parameter"),
        ("POST", "/api/show", {"model": 3}, 400, "invalid_type"),
        ("POST", "/api/pull", {"model": "words", "stream": 3}, 400, "invalid_type"),
        ("POST", "/api/chat", b"{", 400, "invalid_json"),
        ("POST", "/api/chat", {"messages": [{**USER, "images": ["x"]}]}, 400, "unsupported_value"),
        ("POST", "/v1/api/chat", {"messages": [USER], "x": 1}, 400, "unsupported_parameter"),
        ("POST", "/api/generate", {"prompt": REFUSED, "raw": True}, 400, "invalid_value"),
        ("GET", "/api/chat", None, 405, "method_not_allowed"),
        ("GET", "/api/nothing", None, 404, "not_found"),
        ("GET", "/api/v0/models", None, 400, "unsupported_endpoint"),
    ],
)
def test_errors_have_ollamas_form(
    server: Server, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = server.request(method, path, body)
    assert answer.status == status, answer.body
    assert set(answer.json) == {"error", "type", "param", "code"}
    assert answer.json["code"] == code
    assert isinstance(answer.json["error"], str)


def test_curl_need_not_say_that_it_sends_json(server: Server) -> None:
    form = "application/x-www-form-urlencoded"
    body = json.dumps({"messages": [USER], "options": {"num_predict": 1}}).encode()
    assert post(server, "/api/chat", body, Content_Type=form).status == 200
    assert post(server, "/v1/chat/completions", body, Content_Type=form).status == 415
    # A page of this very server may post; what a browser calls a form is none the less.
    page = post(server, "/api/chat", body, Content_Type=form, Origin=server.url)
    assert page.status == 415
    assert post(server, "/api/chat", body, Content_Type="text/plain").status == 415


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_embeddings() -> None:
    relay = Scripted([VECTOR, VECTOR, Embedded(7)])
    body = {"model": "m", "input": ["a", "b"], "keep_alive": "5m", "options": {"num_ctx": 1}}
    answer = posted(relay, body, "/api/embed")
    assert answer.status == 200
    read = ollama.EmbedResponse.model_validate(answer.json)
    assert [len(each) for each in read.embeddings] == [2, 2]
    assert read.prompt_eval_count == 7
    assert (relay.keep_alive, answer.headers["x-bulkhead-ignored"]) == (300.0, "options.num_ctx")
    (asked,) = map(as_received, cast(list[Embed], relay.requests[0]))
    assert asked.inputs == ("a", "b")


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_whatever_options_are_called_their_names_fit_a_header() -> None:
    for names, told in (
        (["a\r\nb: c", "é\0"], r"options.a\r\nb: c, options.\xe9\x00"),
        ([f"n{number:04}" for number in range(5000)], "options.n0000, options.n0001"),
    ):
        body = {"model": "m", "input": "a", "options": dict.fromkeys(names, 1)}
        answer = posted(Scripted([VECTOR, Embedded(7)]), body, "/api/embed")
        assert answer.status == 200
        header = answer.headers["x-bulkhead-ignored"]
        assert header.startswith(told)
        assert len(header) < 4100
    assert header.endswith(", ...")


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_older_embeddings() -> None:
    answer = posted(Scripted([VECTOR, Embedded(7)]), {"prompt": "a"}, "/api/embeddings")
    assert len(ollama.EmbeddingsResponse.model_validate(answer.json).embedding) == 2


# ── pauses ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body", "ping"),
    [
        ("/api/chat", {"messages": [USER]}, b'"message":{"role":"assistant","content":""}'),
        ("/api/generate", {"prompt": "hello"}, b'"response":""'),
    ],
)
def test_a_stream_that_pauses_is_kept_alive(path: str, body: Any, ping: bytes) -> None:
    """Before its first token and amid the answer, by lines that add nothing."""

    async def scenario() -> None:
        async with playing(replace(PATIENT, headers=0.01, silence=0.01)) as gateway:
            client = await gateway.connect()
            client.post(body, path=path)
            generation = await gateway.relay.next()
            generation.play(Accepted(3))
            await client.until(ping, times=2)
            generation.play(Token(5, "Hel"), OutputPaused())
            await client.until(b"Hel")
            seen = client.seen.count(ping)
            await client.until(ping, times=seen + 2)
            generation.play(Token(6, "lo"), End("stop", 3, 2))
            told = await client.until(b'"done":true')
        body_lines = [json.loads(line) for line in told.splitlines() if line.startswith(b"{")]
        parts = [
            each.get("response", each.get("message", {}).get("content")) for each in body_lines
        ]
        assert "".join(parts) == "Hello"
        assert body_lines[-1]["eval_count"] == 2

    play(scenario)
