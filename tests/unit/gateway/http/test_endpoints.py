"""gateway.http.endpoints: what other APIs have and this version lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.document.routes import ROUTES
from gateway.http.endpoints import ANTHROPIC, BULKHEAD, LOCAL, OPENAI, lacking

API = Path(__file__).parents[4] / "docs" / "api.md"


@pytest.mark.parametrize(
    ("path", "whose"),
    [
        ("/v1/responses", "OpenAI's API"),
        ("/responses/r/cancel", "OpenAI's API"),
        ("/v1/vector_stores/v/files", "OpenAI's API"),
        ("/v1/chat/completions/c", "OpenAI's API"),
        ("/v1/messages/batches", "Anthropic's API"),
        ("/api/v0/models", "other local servers"),
        ("/api/generate", None),
        ("/metrics", "other local servers"),
        ("/v1/deployments/d/chat/completions", "OpenAI's API"),
        ("/v2/embed", "other local servers"),
        ("/v1/model/info", "other local servers"),
        ("/v1/load_lora_adapter", "other local servers"),
        ("/v1/models/m/x", None),
        ("/admin/logs/x", "a later version of Bulkhead"),
        ("/", None),
        ("/v1", None),
        ("/v1/nothing", None),
        ("/v1/responsesX", None),
        ("/admin", None),
        ("/nothing/responses", None),
    ],
)
def test_whose_an_endpoint_is(path: str, whose: str | None) -> None:
    assert lacking(path) == whose


def test_nothing_that_is_served_is_refused() -> None:
    """What lies below what is served is not, and is looked up after the routes."""
    above = ("/chat/completions", "/completions", "/embeddings", "/responses")
    paths = [route.path for route in ROUTES]
    served = {path for path in paths if not path.removeprefix("/v1").startswith(above)}
    assert [path for path in served if lacking(path)] == []


def test_the_docs_list_them() -> None:
    text = API.read_text()
    listed = text.split("with all that lies below them:\n\n")[1].split("\n")[0]
    names = {*OPENAI, *ANTHROPIC, *LOCAL, *BULKHEAD, "/v2/rerank"}
    assert re.findall(r"`([^`]+)`", listed) == sorted(names)
