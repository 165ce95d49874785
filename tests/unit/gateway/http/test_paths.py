"""gateway.http.paths: a path with a slash or a version too many is what it means."""

from __future__ import annotations

import pytest

from gateway.http.paths import meant_path


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1", "/v1"),
        ("/v1/", "/v1"),
        ("/v1/v1", "/v1"),
        ("/health", "/health"),
        ("//health/", "/health"),
        ("/v1/health", "/health"),
        ("/v1/v1/openapi.json/", "/openapi.json"),
        ("/v1/admin//crashes", "/admin/crashes"),
        ("/v1/admin/models/a//b/load", "/admin/models/a//b/load"),
        ("/v1/healthy", "/v1/healthy"),
        ("/v1/models/health", "/v1/models/health"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("//v1//v1//models//", "/v1/models"),
        ("//chat/completions", "/chat/completions"),
        ("/chat//completions", "/chat/completions"),
        ("/v1//chat///completions/", "/v1/chat/completions"),
        ("/v1/models/org/name", "/v1/models/org/name"),
        ("/v1/models/org//name", "/v1/models/org//name"),
        ("/v1/models/org/name/", "/v1/models/org/name"),
        ("//models/v1/v1", "/models/v1/v1"),
        ("/admin/models/a//b/load/", "/admin/models/a//b/load"),
        ("/v1/models/%2F%2Fa", "/v1/models/%2F%2Fa"),
        ("/v12/models", "/v12/models"),
        ("/v1x", "/v1x"),
        ("*", "*"),
        ("", ""),
    ],
)
def test_what_a_path_means(path: str, meant: str) -> None:
    assert meant_path(path) == meant
    assert meant_path(meant) == meant
