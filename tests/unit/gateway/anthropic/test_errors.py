"""gateway.anthropic.errors: Anthropic's types and statuses, and the words that clients look for."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic
import httpx2
import pytest

from gateway.anthropic.errors import OVERLOADED, error_event, error_form
from supervisor import errors
from supervisor.errors import BulkheadError
from worker.prompt.encoder import PromptEncoder

CLAUDE_CODE = re.compile(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)", re.IGNORECASE)
"""How Claude Code reads by how much a conversation is too long."""
TYPES = {
    errors.InvalidValue: (400, "invalid_request_error"),
    errors.UnsupportedEndpoint: (400, "invalid_request_error"),
    errors.ModelTooLarge: (400, "invalid_request_error"),
    errors.InvalidAPIKey: (401, "authentication_error"),
    errors.Forbidden: (403, "permission_error"),
    errors.ModelNotFound: (404, "not_found_error"),
    errors.NotFound: (404, "not_found_error"),
    errors.MethodNotAllowed: (405, "invalid_request_error"),
    errors.RequestTimeout: (408, "timeout_error"),
    errors.RequestTooLarge: (413, "request_too_large"),
    errors.UnsupportedMediaType: (415, "invalid_request_error"),
    errors.RequestCrashedWorker: (422, "invalid_request_error"),
    errors.InternalError: (500, "api_error"),
    errors.WorkerCrashed: (503, "api_error"),
    errors.WorkerStalled: (503, "api_error"),
    errors.ModelLoading: (503, "api_error"),
    errors.ModelUnavailable: (503, "api_error"),
    errors.ShuttingDown: (503, "api_error"),
    errors.QueueFull: (OVERLOADED, "overloaded_error"),
    errors.InsufficientMemoryNow: (OVERLOADED, "overloaded_error"),
    errors.MemoryPressure: (OVERLOADED, "overloaded_error"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_types_and_statuses(kind: type[BulkheadError]) -> None:
    status, body = error_form(kind("It broke."), "req-1")
    told: dict[str, Any] = json.loads(body)
    assert (status, told["error"]["type"]) == TYPES[kind]
    assert told == {
        "type": "error",
        "error": {
            "type": TYPES[kind][1],
            "message": "It broke.",
            "details": {"error_code": kind.code},
        },
        "request_id": "req-1",
    }


@pytest.mark.parametrize("kind", TYPES)
def test_the_sdk_reads_them(kind: type[BulkheadError]) -> None:
    status, body = error_form(kind("It broke."), "req-1")
    request = httpx2.Request("POST", "http://localhost/v1/messages")
    response = httpx2.Response(
        status, content=body, headers={"request-id": "req-1"}, request=request
    )
    with anthropic.Anthropic(api_key="x") as client:
        error = client._make_status_error_from_response(response)
    assert (error.status_code, error.request_id) == (status, "req-1")
    assert error.error_code == kind.code
    if status == OVERLOADED:
        assert type(error).__name__ == "OverloadedError"


def test_an_error_in_a_stream() -> None:
    event = error_event(errors.QueueFull("It is\u2028full."), "req-1")
    name, data, *rest = event.decode().split("\n")
    assert (name, rest) == ("event: error", ["", ""])
    assert len(data.splitlines()) == 1
    told = json.loads(data.removeprefix("data: "))
    assert told["error"]["type"] == "overloaded_error"
    assert told["error"]["message"] == "It is\u2028full."
    assert told["request_id"] == "req-1"


class Words:
    """A tokenizer whose tokens are words of at most ten letters."""

    def get_vocab(self) -> dict[str, int]:
        return {"abcdefghij": 0}

    def encode(self, text: str, **options: bool) -> list[int]:
        return [0 for _ in text.split()]


def too_long(text: str) -> str:
    """What Claude Code is told of such a prompt, which has 100 tokens too many at least."""
    encoder: Any = PromptEncoder(Words(), context=50, vocabulary=1)  # type: ignore[arg-type]
    try:
        tokens = encoder.encode(text, "messages", "messages")
        error = encoder.too_long("messages", "messages", f"{len(tokens)} tokens")
    except errors.ContextLengthExceeded as caught:
        error = caught
    told = json.loads(error_form(error, "r").body)["error"]
    assert told["type"] == "invalid_request_error"
    message: str = told["message"]
    return message


def test_a_prompt_that_is_too_long() -> None:
    assert too_long("a " * 60) == "prompt is too long: 60 tokens > 50 maximum"


def test_a_prompt_too_long_to_be_counted() -> None:
    found = CLAUDE_CODE.search(too_long("a " * 600))
    assert found is not None
    assert found.groups() == ("51", "50")


def test_other_words_about_the_context_stay() -> None:
    error = errors.ContextLengthExceeded("The model has room for no prompt at all.")
    assert json.loads(error_form(error, "r").body)["error"]["message"] == error.message


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            "`tools[2].function.parameters` can't be enforced.",
            "`tools[2].input_schema` can't be enforced.",
        ),
        ("`tools[0].function.name` is no name.", "`tools[0].name` is no name."),
        (
            "`response_format.json_schema.schema` is no schema.",
            "`output_config.format.schema` is no schema.",
        ),
        (
            "`response_format` cannot be enforced.",
            "`output_config.format` cannot be enforced.",
        ),
    ],
)
def test_parameters_have_their_names_of_this_api(told: str, said: str) -> None:
    message = json.loads(error_form(errors.InvalidValue(told), "r").body)["error"]["message"]
    assert message == said


def test_a_prompt_too_large_for_this_machine_is_too_long_as_well() -> None:
    error = errors.PromptTooLarge(
        "This machine can hold 50 of the 4096 tokens of this model's context. However, your "
        "messages resulted in 60 tokens. Please reduce the length of the messages."
    )
    message = json.loads(error_form(error, "r").body)["error"]["message"]
    assert message == "prompt is too long: 60 tokens > 50 maximum"
