"""The document of `/openapi.json`: it lists the routes there are, and answers are as it says.

Requests are made up from the document and sent to a real server with the demo model; OpenAI's SDK,
which knows the answers' shapes from elsewhere, reads them as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pydantic
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway import app
from gateway.anthropic.schemas import MessageEvent
from gateway.document.openapi import document
from gateway.document.routes import ROUTES
from gateway.openai import schemas
from gateway.responses.schemas import ResponseEvent
from supervisor.config.schema import ServerSettings
from tests.helpers.serving import DEADLINE, ROOT, Server, serving
from tests.property.openapi import st_run

MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
POSTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", MESSAGES, COUNT, RESPONSES]
GETS = [
    *("/v1/models", "/v1/models/{id}", "/health", "/"),
    *("/v1/responses/{id}", "/v1/responses/{id}/input_items"),
    *("/api/tags", "/api/ps", "/api/version"),
]
CHUNKS: dict[str, Any] = {
    "/v1/chat/completions": schemas.ChatCompletionChunk,
    "/v1/completions": schemas.CompletionChunk,
    MESSAGES: MessageEvent,
    RESPONSES: ResponseEvent,
}
LAST = {
    MESSAGES: ("message_stop", "error"),
    RESPONSES: ("response.completed", "response.incomplete", "response.failed"),
}
"""Of the streams whose events have names, those that may be the last."""
PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}]},
    COUNT: {"messages": [{"role": "user", "content": "hi"}]},
    RESPONSES: {"input": "hi", "previous_response_id": None},
}
USER = PROMPTS["/v1/chat/completions"]
TOKENS_MAX = 3
CHOICES_MAX = 2
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"sunny": {"type": "boolean"}},
            "required": ["sunny"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, loaded."""
    with serving(tmp_path_factory.mktemp("openapi"), "--model", "demo=demo") as made:
        assert made.chat("demo", max_tokens=1).status == 200
        yield made


@pytest.fixture(scope="module")
def schema(server: Server) -> Any:
    """The document that the server gives, as schemathesis reads it."""
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


# ── the document ─────────────────────────────────────────────────────────────────────────────────


def test_the_document_has_the_routes_of_the_application_and_no_other(tmp_path: Path) -> None:
    routes = app.build(ServerSettings(), str(tmp_path / "control.sock")).router.routes()
    served = Counter(
        (route.method.lower(), route.resource.canonical)
        for route in routes
        # aiohttp adds a HEAD to every GET.
        if route.resource is not None and route.method != "HEAD"
    )
    assert Counter((route.method, route.path) for route in ROUTES) == served
    paths = document(keys=False)["paths"]
    assert {(method, path) for path in paths for method in paths[path]} == set(served)


def test_the_documents_schemas_are_schemas() -> None:
    told = document(keys=False)
    for each in told["components"]["schemas"].values():
        Draft202012Validator.check_schema(each)
    references = set(_references(told))
    known = {f"#/components/schemas/{name}" for name in told["components"]["schemas"]}
    assert references <= known
    operations = [each for path in told["paths"].values() for each in path.values()]
    names = [each["operationId"] for each in operations if "operationId" in each]
    assert len(names) == len(set(names))


def _references(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if isinstance(tree.get("$ref"), str):
            yield tree["$ref"]
        for each in tree.values():
            yield from _references(each)
    elif isinstance(tree, list):
        for each in tree:
            yield from _references(each)


def test_the_document_tells_whether_a_key_is_wanted() -> None:
    assert {} in document(keys=False)["security"]
    told = document(keys=True)
    assert {} not in told["security"]
    assert told["paths"]["/health"]["get"]["security"] == [{}]
    assert "401" not in told["paths"]["/health"]["get"]["responses"]


def test_the_server_gives_the_document(server: Server) -> None:
    answer = server.request("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json == document(keys=False)


# ── requests made up from it ─────────────────────────────────────────────────────────────────────


def bounded(examples: int) -> settings:
    """The same requests every time, and few of them."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def made_up(
    schema: Any, method: str, path: str, mode: GenerationMode = GenerationMode.POSITIVE
) -> st.SearchStrategy[Any]:
    """Requests that the document allows, or such as it does not."""
    made: st.SearchStrategy[Any] = schema[path][method].as_strategy(mode)
    return made


def conforms(case: Any, server: Server) -> Any:
    """The answer, after all checks."""
    response = case.call(base_url=server.url, timeout=DEADLINE)
    checks = [status_code_conformance, content_type_conformance]
    if response.status_code != 503:  # which is documented
        checks.append(not_a_server_error)
    if "text/event-stream" in response.headers.get("content-type", [""])[0]:
        # schemathesis takes the schema of a stream's text for that of its events.
        check_events(case.path, response.content)
    else:
        checks.append(response_schema_conformance)
    case.validate_response(response, checks=checks)
    return response


def check_events(path: str, content: bytes) -> None:
    """Every event is a chunk, and the last one what the document says."""
    *events, last, rest = content.decode().split("\n\n")
    assert rest == ""
    if path in LAST:
        for event in (*events, last):
            name, data = event.removeprefix("event: ").split("\ndata: ")
            msgspec.json.decode(data, type=CHUNKS[path])
            assert json.loads(data)["type"] == name
        assert name in LAST[path]
        return
    for event in events:
        msgspec.json.decode(event.removeprefix("data: "), type=CHUNKS[path])
    if last != "data: [DONE]":
        msgspec.json.decode(last.removeprefix("data: "), type=schemas.Error)


def tame(path: str, body: Any, *, easy: bool) -> Any:
    """`body` so that it costs little; if `easy`, with a prompt and a model that are there."""
    if not isinstance(body, dict):
        return body
    tamed = {name: whole(value) for name, value in body.items()}
    if easy:
        tamed |= {**PROMPTS[path], "model": "demo"}
    if path not in CHUNKS:
        return tamed
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    if all(tamed.get(name) is None for name in names):
        tamed["max_tokens"] = TOKENS_MAX
    limits = {**dict.fromkeys(names, TOKENS_MAX), "n": 1 if path == RESPONSES else CHOICES_MAX}
    limits |= {"min_tokens": 1, "best_of": CHOICES_MAX} if easy else {}
    if easy and path == MESSAGES:
        # Of a list of anything, few are tools.
        tamed |= {"tools": None, "tool_choice": None, "thinking": None}
    for name, most in limits.items():
        if type(tamed.get(name)) is int:
            tamed[name] = min(tamed[name], most)
    if easy and tamed.get("top_logprobs") is not None:
        tamed["logprobs"] = True
    return tamed


def whole(tree: Any) -> Any:
    """1.0 is an integer to JSON Schema and to schemathesis, but not to us."""
    if isinstance(tree, float) and tree.is_integer():
        return int(tree)
    if isinstance(tree, list):
        return [whole(each) for each in tree]
    if isinstance(tree, dict):
        return {name: whole(each) for name, each in tree.items()}
    return tree


@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_allows_is_answered_as_it_says(
    path: str, schema: Any, server: Server
) -> None:
    seen: Counter[int] = Counter()

    @bounded(12)
    @given(made_up(schema, "POST", path), st.integers(0, 3))
    def run(case: Any, one_of_four: int) -> None:
        case.body = tame(path, case.body, easy=one_of_four > 0)
        seen[conforms(case, server).status_code] += 1

    run()
    if path in CHUNKS:
        # The demo model makes no embeddings.
        assert seen[200]


@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_forbids_is_refused_as_it_says(
    path: str, schema: Any, server: Server
) -> None:
    @bounded(9)
    @given(made_up(schema, "POST", path, GenerationMode.NEGATIVE))
    def run(case: Any) -> None:
        case.body = tame(path, case.body, easy=False)
        conforms(case, server)

    run()


@pytest.mark.parametrize("path", GETS)
def test_what_is_read_is_as_the_document_says(path: str, schema: Any, server: Server) -> None:
    @bounded(5)
    @given(made_up(schema, "GET", path))
    def run(case: Any) -> None:
        conforms(case, server)

    run()


def test_the_document_holds_under_all_checks(server: Server, tmp_path: Path) -> None:
    """The short form of `python -m tests.property.openapi`."""
    paths = ["/v1/completions", "/v1/embeddings", "/v1/models/{id}", "/admin/crashes", "/health"]
    done = st_run(server.url, tmp_path, seed=1, examples=3, seconds=DEADLINE * 2, only=paths)
    assert done.returncode == 0, done.stdout
    assert "0 passed" not in done.stdout


ANSWERED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"n": 2, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),
    ("/v1/completions", {"n": 2, "logprobs": 2}),
    ("/v1/completions", {"logprobs": 0}),
    ("/v1/completions", {"prompt": ["a", "b"], "echo": True}),
    (MESSAGES, {}),
    (MESSAGES, {"thinking": {"type": "adaptive", "display": "omitted"}}),
    (RESPONSES, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    (RESPONSES, {"text": {"format": {"type": "json_object"}}, "instructions": "Be brief."}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "members"), ANSWERED)
def test_answers_are_as_the_document_says(
    path: str, members: dict[str, Any], stream: bool, schema: Any, server: Server
) -> None:
    streamed: dict[str, Any] = {"stream": stream}
    if stream and path != MESSAGES:
        streamed["stream_options"] = {"include_usage": True}
    body = {"model": "demo", "max_tokens": 4, **PROMPTS[path], **members, **streamed}
    case = schema[path]["POST"].Case(body=body, media_type="application/json")
    assert conforms(case, server).status_code == 200


def test_a_name_of_a_model_is_answered_as_the_document_says(schema: Any, server: Server) -> None:
    for name, status in (("demo", 200), ("no/such:model", 404)):
        case = schema["/v1/models/{id}"]["GET"].Case(path_parameters={"id": name})
        assert conforms(case, server).status_code == status


# ── OpenAI's SDK ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """One that raises where an answer is not of the SDK's type; as it comes, it takes anything."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="unused",
        max_retries=0,
        timeout=DEADLINE,
        _strict_response_validation=True,
    ) as made:
        yield made


def test_the_sdk_reads_choices_and_log_probabilities(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=4,
        n=2,
        logprobs=True,
        top_logprobs=3,
    )
    assert [choice.index for choice in made.choices] == [0, 1]
    for choice in made.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_the_sdk_reads_calls(client: openai.OpenAI) -> None:
    tools: Any = [WEATHER]
    made = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=200,
        tools=tools,
        tool_choice="required",
    )
    (choice,) = made.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert call.function.name == "weather"
        assert set(json.loads(call.function.arguments)) == {"sunny"}


def test_the_sdk_reads_a_stream_of_a_chat(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=4,
            n=2,
            logprobs=True,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert {choice.index for piece in pieces for choice in piece.choices} == {0, 1}


def test_the_sdk_reads_completions(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="demo", prompt=["one", "two"], max_tokens=3, echo=True, temperature=0
    )
    assert [choice.index for choice in made.choices] == [0, 1]
    assert [choice.text[:3] for choice in made.choices] == ["one", "two"]
    probable = client.completions.create(model="demo", prompt="one", max_tokens=3, logprobs=2)
    assert probable.choices[0].logprobs is not None
    assert probable.choices[0].logprobs.tokens


def test_the_sdk_reads_a_stream_of_a_completion(server: Server) -> None:
    # Its type for the chunks is that of a whole answer, and has no null for `finish_reason`.
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        *pieces, last = client.completions.create(
            model="demo",
            prompt="one",
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    assert last.usage is not None
    assert last.choices == []
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")


def test_the_sdk_reads_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("nope")
    assert raised.value.code == "model_not_found"


def test_the_sdk_reads_the_refusal_of_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="demo", input="hi")
    assert raised.value.code == "unsupported_value"
    assert raised.value.type == "invalid_request_error"


def test_it_needs_no_docstrings() -> None:
    """Python drops them where PYTHONOPTIMIZE is 2."""
    code = "from gateway.document.openapi import document; document(keys=False)"
    subprocess.run([sys.executable, "-OO", "-c", code], cwd=ROOT, check=True, timeout=DEADLINE)


def test_the_sdk_runs_a_tool_loop_of_responses(client: openai.OpenAI) -> None:
    class Weather(pydantic.BaseModel):
        sunny: bool

    tools: Any = [{"type": "function", "strict": True, **WEATHER["function"]}]  # type: ignore[dict-item]
    items: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    with client.responses.stream(
        model="demo", input=items, tools=tools, tool_choice="required", max_output_tokens=200
    ) as stream:
        kinds = {event.type for event in stream}
        made = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    calls = [each for each in made.output if each.type == "function_call"]
    assert calls
    answers = [
        {"type": "function_call_output", "call_id": each.call_id, "output": "sunny"}
        for each in calls
    ]
    parsed = client.responses.parse(
        model="demo",
        input=[*items, *made.output, *answers],
        text_format=Weather,
        max_output_tokens=200,
    )
    assert isinstance(parsed.output_parsed, Weather)
    again = client.responses.create(
        model="demo", previous_response_id=parsed.id, input="And now?", max_output_tokens=3
    )
    assert again.usage is not None
    assert parsed.usage is not None
    assert again.usage.input_tokens > parsed.usage.input_tokens
