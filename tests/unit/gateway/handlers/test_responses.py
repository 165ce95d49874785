"""gateway.handlers.responses: scripted answers read by the openai SDK, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from supervisor.wire.frames import Call, Logprob, Logprobs, Token
from tests.helpers.fakes.engine import PROMPT_TOKENS, Script, text_of
from tests.helpers.responses import read_events
from tests.helpers.serving import DEADLINE, Server, serving

SAID = Logprob(5, "Hi", b"Hi", -0.5)
CALLS = (
    Token(4, "", reasoning="hm"),
    Token(5, "Hi", logprobs=Logprobs(SAID, (SAID,))),
    Token(6, "", calls=(Call(0, "look", ""),)),
    Token(7, "", calls=(Call(0, "", '{"a": 1}'), Call(1, "team__ask", '{"b":2}'))),
    Token(8, "", calls=(Call(2, "patch", '{"input": "a\\nb"}'),)),
)
OBJECT = {"type": "object", "properties": {}}
TOOLS: Any = [
    {"type": "function", "name": "look", "parameters": OBJECT, "strict": False},
    {
        "type": "namespace",
        "name": "team",
        "description": "A team.",
        "tools": [{"type": "function", "name": "ask", "parameters": OBJECT}],
    },
    {"type": "custom", "name": "patch"},
    {"type": "web_search"},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    words = Script().write(models / "words")
    caller = Script(says=CALLS, finish_reason="tool_calls").write(models / "caller")
    once = Script(deeds={"decode": "abort"}).write(models / "once")
    fatal = Script(deeds={"decode": "abort"}, generations=(1, 2, 3)).write(models / "fatal")
    folder = tmp_path_factory.mktemp("state")
    (folder / "keys").write_text("first-key\nsecond-key\n")
    (folder / "keys").chmod(0o600)
    config = f"""
[server]
port = 0
max_body = "1MB"
api_keys_file = "{folder / "keys"}"
[models.words]
source = "{words}"
[models.caller]
source = "{caller}"
[models.once]
source = "{once}"
[models.fatal]
source = "{fatal}"
"""
    with serving(folder / "s", config=config, scripted=True) as running:
        yield running


def connect(server: Server, key: str) -> openai.OpenAI:
    """A client that raises where an answer is not of the SDK's type."""
    return openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key=key,
        max_retries=0,
        timeout=DEADLINE,
        _strict_response_validation=True,
    )


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with connect(server, "first-key") as made:
        yield made


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="words", input="hello", max_output_tokens=4)
    assert answer.output_text == text_of(4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.input_tokens == PROMPT_TOKENS
    assert answer.usage.total_tokens == PROMPT_TOKENS + 4


def test_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="words", input="hello", max_output_tokens=20) as stream:
        texts = [each.delta for each in stream if each.type == "response.output_text.delta"]
    assert "".join(texts) == text_of(20)


def post(server: Server, body: dict[str, Any], **headers: str) -> Any:
    said = {"Authorization": "Bearer first-key", "Content-Type": "application/json", **headers}
    return server.request("POST", "/v1/responses", body, headers=said)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_all_kinds(server: Server, stream: bool) -> None:
    answer = post(server, {"model": "caller", "input": "hi", "tools": TOOLS, "stream": stream})
    assert answer.status == 200
    assert answer.headers["x-bulkhead-ignored"] == "tools.web_search"
    response = answer.json if not stream else read_events(answer.body)[-1]["response"]
    thought, message, look, ask, patch = response["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert message["content"][0]["text"] == "Hi"
    assert (look["name"], look["arguments"]) == ("look", '{"a": 1}')
    assert (ask["name"], ask["namespace"], ask["arguments"]) == ("ask", "team", '{"b":2}')
    assert (patch["type"], patch["name"], patch["input"]) == ("custom_tool_call", "patch", "a\nb")
    assert response["tools"] == TOOLS
    assert response["status"] == "completed"


def test_a_conversation_that_is_kept(server: Server, client: openai.OpenAI) -> None:
    first = client.responses.create(model="words", input="hello", max_output_tokens=4)
    second = client.responses.create(
        model="words", input="more", max_output_tokens=4, previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    assert second.usage is not None
    # The scripted model's prompt is as long as its texts.
    assert second.usage.input_tokens == len("hello" + text_of(4) + "more")
    kept = client.responses.retrieve(first.id)
    assert kept.output_text == first.output_text
    listed = client.responses.input_items.list(first.id)
    assert [each.type for each in listed.data] == ["message"]
    referred = [{"type": "item_reference", "id": first.output[0].id}]
    third: Any = client.responses.create(model="words", input=referred, max_output_tokens=1)
    assert third.usage.input_tokens == len(text_of(4))
    with connect(server, "second-key") as other:
        with pytest.raises(openai.BadRequestError) as refused:
            other.responses.create(model="words", input="x", previous_response_id=first.id)
        assert refused.value.code == "previous_response_not_found"
        assert refused.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError):
            other.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError):
            other.responses.create(model="words", input=referred)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        # The second is there, but not what it goes on with.
        client.responses.create(model="words", input="x", previous_response_id=second.id)
    assert refused.value.code == "previous_response_not_found"


def test_a_streamed_answer_is_kept_as_soon_as_it_has_ended(client: openai.OpenAI) -> None:
    events = client.responses.create(model="words", input="hello", max_output_tokens=4, stream=True)
    *_, last = events
    assert last.type == "response.incomplete"
    assert client.responses.retrieve(last.response.id).output_text == text_of(4)


def test_what_is_not_to_be_kept_is_not(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="words", input="x", max_output_tokens=1, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_a_death_in_a_stream_is_told(server: Server) -> None:
    events = read_events(post(server, {"model": "fatal", "input": "x", "stream": True}).body)
    assert [each["type"] for each in events[-1:]] == ["response.failed"]
    error = events[-1]["response"]["error"]
    assert error["code"] == "request_crashed_worker"


def test_a_death_in_a_stream_is_not_noticed(server: Server) -> None:
    body = {"model": "once", "input": "x", "stream": True, "max_output_tokens": 20}
    answer = post(server, body)
    assert b": recoveries 1\n\n" in answer.body
    events = read_events(answer.body)
    kinds = [each["type"] for each in events]
    for once in ("response.created", "response.output_item.added", "response.output_item.done"):
        assert kinds.count(once) == 1
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text_of(20)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/responses/compact", 400, "unsupported_endpoint"),
        ("POST", "/v1/responses/input_tokens", 400, "unsupported_endpoint"),
        ("POST", "/v1/responses/resp_1/cancel", 400, "unsupported_endpoint"),
        ("GET", "/v1/responses/resp_1", 404, "not_found"),
        ("GET", "/responses/resp_1/input_items", 404, "not_found"),
        ("DELETE", "/v1/responses/resp_1", 404, "not_found"),
        ("POST", "/v1/responses/resp_1", 405, "method_not_allowed"),
        ("GET", "/v1/responses", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there(server: Server, method: str, path: str, status: int, code: str) -> None:
    said = {"Authorization": "Bearer first-key"}
    answer = server.request(method, path, b"{}" if method == "POST" else None, said)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)


def test_input_items_in_pages(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": str(number)} for number in range(5)]
    kept = client.responses.create(model="words", input=items, max_output_tokens=1)
    pages = client.responses.input_items.list(kept.id, limit=2, order="asc")
    assert pages.has_next_page()
    assert [each.content[0].text for each in pages] == list("01234")
    newest = client.responses.input_items.list(kept.id, limit=1).data[0]
    assert newest.content[0].text == "4"
    for bad in ({"limit": 0}, {"limit": 101}, {"after": "msg_none"}):
        with pytest.raises(openai.BadRequestError):
            client.responses.input_items.list(kept.id, **bad)


def test_a_stored_response_is_not_streamed(server: Server) -> None:
    said = {"Authorization": "Bearer first-key"}
    answer = server.request("GET", "/v1/responses/resp_1?stream=true", headers=said)
    assert (answer.status, answer.json["error"]["param"]) == (400, "stream")
