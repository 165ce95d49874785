"""What real agent programs were recorded sending, as it is, to the demo: each request is served."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.recorded import Recorded, recorded
from tests.helpers.serving import DEADLINE, Server, serving

WHOLE = ("pi", "continue")
"""Of the other chats, longer ones, tests/unit/worker/demo shows that they are taken;
`python -m tests.bench.recorded` waits for the whole answers of all seven."""
OTHER_DIALECTS = ("codex", "claude-code")
SECONDS = 4 * DEADLINE
"""For ten thousand tokens on a machine that does other things as well."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    programs = (*WHOLE, *OTHER_DIALECTS)
    names = sorted({recorded(program).body["model"] for program in programs} - {"demo"})
    config = f"""
[server]
port = 0
[models.demo]
source = "demo"
aliases = {json.dumps(names)}
"""
    with serving(tmp_path_factory.mktemp("state"), config=config) as running:
        yield running


def sent(request: Recorded) -> dict[str, str]:
    """Its headers, but for what this client's own connection decides."""
    return {k: v for k, v in request.headers.items() if k.lower() != "accept-encoding"}


@pytest.mark.parametrize("program", WHOLE)
def test_a_recorded_request_gets_a_whole_answer(server: Server, program: str) -> None:
    request = recorded(program)
    answer = server.request(
        request.method, request.path, request.body, sent(request), seconds=SECONDS
    )
    assert answer.status == 200, answer.body
    *events, done = answer.events
    assert done == "[DONE]"
    chunks: list[dict[str, Any]] = [json.loads(event) for event in events]
    assert not [chunk for chunk in chunks if "error" in chunk]
    usage = chunks[-1]["usage"]
    assert usage["prompt_tokens"] > 2048
    assert usage["completion_tokens"] > 0
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[-1]["finish_reason"] in ("stop", "tool_calls", "length")
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert answer.text or calls
    offered = {tool["function"]["name"] for tool in request.body["tools"]}
    named = [call["function"]["name"] for call in calls if "name" in call["function"]]
    assert set(named) <= offered
    for call in calls:
        json.loads(call["function"]["arguments"])


@pytest.mark.parametrize("program", OTHER_DIALECTS)
def test_a_recorded_request_of_another_dialect_is_taken(server: Server, program: str) -> None:
    """Its answer begins, which needs no wait for its prefill."""
    request = recorded(program)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    try:
        body = json.dumps(request.body)
        connection.request(request.method, request.path, body, sent(request))
        response = connection.getresponse()
        assert response.status == 200, response.read()
    finally:
        connection.close()
