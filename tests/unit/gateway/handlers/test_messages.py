"""gateway.handlers.messages: scripted answers read by the anthropic SDK, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from supervisor.wire.frames import Call, Token
from tests.helpers.fakes.engine import PROMPT_TOKENS, Script, text_of
from tests.helpers.serving import DEADLINE, Answer, Server, serving

USER: Any = {"role": "user", "content": "hello"}
TOOLS: Any = [
    {"name": "look", "input_schema": {"type": "object"}},
    {"type": "web_search_20250305", "name": "web_search"},
]
CALLS = (
    Token(4, "", reasoning="hm"),
    Token(5, "Hi"),
    Token(6, "", calls=(Call(0, "look", ""),)),
    Token(7, "", calls=(Call(0, "", '{"a": 1}'), Call(1, "nap", ""))),
    Token(8, "", calls=(Call(2, "look", '{"b": "a\\nb"}'),)),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    sources = {
        "words": Script(),
        "caller": Script(says=CALLS, finish_reason="tool_calls"),
        "once": Script(says=CALLS, finish_reason="tool_calls", deeds={"decode": "abort"}),
        **{
            name: Script(deeds={"decode": "abort"}, generations=(1, 2, 3))
            for name in ("fatal", "doomed", "deadly")
        },
    }
    tables = [
        f'[models.{name}]\nsource = "{script.write(models / name)}"\n'
        for name, script in sources.items()
    ]
    config = '[server]\nport = 0\nmax_body = "1MB"\n' + "".join(tables)
    with serving(tmp_path_factory.mktemp("state"), config=config, scripted=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    """One that raises where an answer is not of the SDK's type."""
    with anthropic.Anthropic(
        base_url=server.url,
        api_key="unused",
        max_retries=0,
        timeout=DEADLINE,
        _strict_response_validation=True,
    ) as made:
        yield made


def post(server: Server, body: Any, path: str = "/v1/messages", **headers: str) -> Answer:
    sent = {"Content-Type": "application/json", "anthropic-version": "2023-06-01", **headers}
    return server.request("POST", path, body, headers=sent)


def body(model: str, **members: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 20, "messages": [USER], **members}


def test_a_whole_answer(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(**body("words", max_tokens=4))
    answer = raw.parse()
    assert [each.type for each in answer.content] == ["text"]
    assert answer.content[0].to_dict()["text"] == text_of(4)
    assert (answer.model, answer.stop_reason) == ("words", "max_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (PROMPT_TOKENS, 4)
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert raw.headers["x-bulkhead-worker"] == "words#1"


def test_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**body("words")) as stream:
        assert "".join(stream.text_stream) == text_of(20)
        message = stream.get_final_message()
    assert message.usage.input_tokens == PROMPT_TOKENS
    assert message.usage.output_tokens == 20


def test_calls_whole_and_streamed(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**body("caller", tools=TOOLS))
    with client.messages.stream(**body("caller", tools=TOOLS)) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        thought, said, *calls = message.content
        assert (thought.type, said.type) == ("thinking", "text")
        assert [(c.type, c.to_dict()["name"], c.to_dict()["input"]) for c in calls] == [
            ("tool_use", "look", {"a": 1}),
            ("tool_use", "nap", {}),
            ("tool_use", "look", {"b": "a\nb"}),
        ]
        assert message.stop_reason == "tool_use"
        again = [*body("caller")["messages"], message.to_param()]
        results = [
            {"type": "tool_result", "tool_use_id": c.to_dict()["id"], "content": "x"} for c in calls
        ]
        more = client.messages.create(
            **body("words", messages=[*again, {"role": "user", "content": results}])
        )
        assert more.usage.input_tokens == len("hello" + "Hi" + 3 * "x")


def test_what_is_left_out_is_named(server: Server) -> None:
    edits = [{"type": "clear_tool_uses_20250919"}]
    asked = body("words", tools=TOOLS, context_management={"edits": edits})
    for path in ("/v1/messages?beta=true", "/messages", "//v1/v1/messages"):
        answer = post(server, asked, path, **{"anthropic-beta": "a-2025-01-01,b"})
        assert answer.status == 200
        assert answer.headers["x-bulkhead-ignored"] == (
            "tools.web_search_20250305, context_management.clear_tool_uses_20250919"
        )


def test_a_death_in_a_stream_is_not_noticed(server: Server, client: anthropic.Anthropic) -> None:
    """What was announced is not announced again, and the numbers go on."""
    answer = post(server, body("once", stream=True))
    assert b": recoveries 1\n\n" in answer.body
    events = [
        json.loads(line.removeprefix("data: "))
        for line in answer.body.decode().split("\n")
        if line.startswith("data: ")
    ]
    kinds = [each["type"] for each in events]
    assert kinds.count("message_start") == kinds.count("message_stop") == 1
    begun = [each["index"] for each in events if each["type"] == "content_block_start"]
    ended = [each["index"] for each in events if each["type"] == "content_block_stop"]
    assert begun == ended == [0, 1, 2, 3, 4]
    pieces = [e["delta"]["partial_json"] for e in events if "partial_json" in str(e)]
    assert pieces == ['{"a": 1}', "{}", '{"b": "a\\nb"}']
    assert server.loaded("once")["generation"] == 2


def test_a_death_that_is_the_requests_own_fault_is_told_in_the_stream(server: Server) -> None:
    answer = post(server, body("fatal", stream=True))
    assert answer.status == 200
    *_, last, rest = answer.body.decode().split("\n\n")
    assert rest == ""
    name, data = last.split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["details"] == {"error_code": "request_crashed_worker"}
    assert error["request_id"] == answer.headers["request-id"]


def test_the_sdk_raises_what_a_stream_ends_in(client: anthropic.Anthropic) -> None:
    with (
        client.messages.stream(**body("doomed")) as stream,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        list(stream)
    assert caught.value.error_code == "request_crashed_worker"


def test_a_request_that_kills_is_known_again_whatever_its_header_says(server: Server) -> None:
    """Claude Code's differs each time, which must not make another request of it."""
    header = "x-anthropic-billing-header: cc_version=2.1.0; cch="
    for number in range(3):
        system = [{"type": "text", "text": f"{header}{number};"}]
        answer = post(server, body("deadly", system=system))
        assert answer.status == 422
        assert answer.headers["x-should-retry"] == "false"
        known = {model["name"]: model["deaths"] for model in server.health()["models"]}
        assert known["deadly"] == 3


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "kind"),
    [
        ("POST", "/v1/messages", {"model": "nope"}, 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"x" * 2_000_000, 413, "request_too_large"),
        ("POST", "/messages", body("nope"), 404, "not_found_error"),
        ("POST", "/v1/messages", body("words", top_k=-1), 400, "invalid_request_error"),
        ("GET", "/v1/messages", None, 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", {}, 400, "invalid_request_error"),
        ("GET", "/v1/messages/msg_1", None, 404, "not_found_error"),
        ("POST", "/v1/messages/count_tokens", {}, 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", body("nope"), 404, "not_found_error"),
    ],
)
def test_errors_are_in_this_form(
    server: Server, method: str, path: str, sent: Any, status: int, kind: str
) -> None:
    answer = server.request(method, path, sent)
    assert answer.status == status, answer.body
    told = answer.json
    assert set(told) == {"type", "error", "request_id"}
    assert told["error"]["type"] == kind
    assert told["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"Host": "evil.example"}, 403, "permission_error"),
        ({"Content-Type": "text/plain"}, 415, "invalid_request_error"),
    ],
)
def test_what_is_refused_before_it_is_read_is_refused_in_this_form(
    server: Server, headers: dict[str, str], status: int, kind: str
) -> None:
    answer = server.request("POST", "/v1/messages", body("words"), headers=headers)
    assert answer.status == status
    assert answer.json["error"]["type"] == kind


def test_models_are_read_by_this_sdk_as_well(client: anthropic.Anthropic) -> None:
    page = client.models.list()
    assert "words" in [model.id for model in page.data]
    assert not page.has_more
    assert (page.first_id, page.last_id) == (page.data[0].id, page.data[-1].id)
    model = client.models.retrieve("words")
    assert (model.type, model.display_name, model.created_at.tzinfo is not None) == (
        "model",
        "words",
        True,
    )


def test_the_look_that_claude_code_takes_first(server: Server) -> None:
    answer = server.request("HEAD", "/")
    assert (answer.status, answer.body) == (200, b"")
