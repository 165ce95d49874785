"""gateway.ollama.models: lists and descriptions as the ollama SDK and choosy clients read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from ollama import ListResponse, ProcessResponse, ShowResponse

from gateway.ollama.models import (
    FOR_EVER,
    VERSION,
    render_ps,
    render_show,
    render_tags,
    render_version,
    served,
    wanted_name,
)
from supervisor.wire.about import About

CODER = About(
    size_bytes=5_000,
    modified=1700000000.0,
    digest="ab" * 32,
    architecture="qwen3",
    parameters=32_800_000_000,
    quantization="4bit",
    embedding_length=5120,
    layers=64,
    template="{{ tools }}",
    tools=True,
    thinks=True,
)
VECTORS = About(architecture="qwen3", parameters=596_000_000, embeds=True, tools=True)


def entry(name: str, *aliases: str, context: int | None = 4096) -> dict[str, Any]:
    return {"name": name, "aliases": list(aliases), "context": context, "source": f"org/{name}"}


LOADED = {
    "name": "coder",
    "memory_bytes": 7000,
    "charge_bytes": 9000,
    "expires_at": "2026-11-28T12:00:00+01:00",
    "context": 8192,
}
REPORT = msgspec.json.encode(
    {
        "models": [entry("coder", "default", "gpt-oss:20b"), entry("vectors"), entry("odd")],
        "cached_models": [
            LOADED,
            {**LOADED, "name": "odd", "memory_bytes": 0, "expires_at": None, "context": None},
        ],
    }
)
MODELS = served(REPORT, msgspec.json.encode({"coder": CODER, "vectors": VECTORS}))


def test_the_list_has_every_name_that_clients_may_send_back() -> None:
    body = render_tags(MODELS)
    listed = ListResponse.model_validate_json(body).models
    assert [each.model for each in listed] == ["coder", "default", "gpt-oss:20b", "vectors", "odd"]
    told = json.loads(body)["models"]
    assert told[0] == {
        "name": "coder",
        "model": "coder",
        "size": 5000,
        "digest": "ab" * 32,
        "details": {
            "parent_model": "",
            "format": "mlx",
            "family": "qwen3",
            "families": ["qwen3"],
            "parameter_size": "32.8B",
            "quantization_level": "4bit",
        },
        "modified_at": "2023-11-14T22:13:20.000000Z",
        "capabilities": ["completion", "tools", "thinking"],
    }
    assert told[1] == {**told[0], "name": "default", "model": "default"}
    assert told[3]["capabilities"] == ["embedding"]
    assert told[3]["details"]["parameter_size"] == "596.0M"


def test_a_model_of_unknown_files_is_listed_all_the_same() -> None:
    odd = json.loads(render_tags(MODELS))["models"][-1]
    assert len(odd["digest"]) == 64
    assert (odd["size"], odd["details"]["families"]) == (0, [])
    assert odd["capabilities"] == ["completion"]
    ShowResponse.model_validate_json(render_show(MODELS[-1], "odd"))


def test_what_is_loaded() -> None:
    body = render_ps(REPORT, MODELS)
    coder, odd = ProcessResponse.model_validate_json(body).models
    assert (coder.name, coder.size, coder.size_vram, coder.context_length) == (
        *("coder", 7000, 7000),
        8192,
    )
    assert coder.expires_at == datetime(2026, 11, 28, 11, tzinfo=UTC)
    assert odd.size == 9000
    told = json.loads(body)["models"][1]
    assert (told["expires_at"], told["context_length"]) == (FOR_EVER, 0)


@pytest.mark.parametrize("name", ["coder", "gpt-oss:20b"])
def test_what_a_model_is(name: str) -> None:
    body = render_show(MODELS[0], name)
    read = ShowResponse.model_validate_json(body)
    assert read.capabilities == ["completion", "tools", "thinking"]
    assert read.template == "{{ tools }}"
    assert read.modelinfo == {
        "general.architecture": "qwen3",
        "general.basename": name,
        "general.parameter_count": 32_800_000_000,
        "qwen3.context_length": 4096,
        "qwen3.embedding_length": 5120,
        "qwen3.block_count": 64,
    }


def test_what_is_not_known_is_not_told() -> None:
    (model,) = served(
        msgspec.json.encode({"models": [entry("m", context=None)], "cached_models": []}), b"{}"
    )
    info = json.loads(render_show(model, "m"))["model_info"]
    assert info == {"general.architecture": "unknown", "general.basename": "m"}


def test_the_version_is_one_that_clients_accept() -> None:
    told = json.loads(render_version("9.9.9"))
    assert told == {"version": VERSION, "bulkhead": "9.9.9"}
    numbers = [int(part) for part in VERSION.split(".")]
    assert numbers > [0, 14, 2]


def test_older_clients_say_name() -> None:
    assert wanted_name({"name": "a"}) == "a"
    assert wanted_name({"model": "b", "name": "a"}) == "b"
    assert wanted_name({"model": "", "name": "a"}) == "a"
    assert wanted_name({"model": ""}) == ""
    assert wanted_name({}) is None
