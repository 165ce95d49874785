"""gateway.ollama.embeddings: what is embedded, and the answers as the ollama SDK reads them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from ollama import EmbeddingsResponse, EmbedResponse
from ollama import _types as sdk

from gateway.ollama.embeddings import (
    EmbedRequest,
    parse_embed,
    parse_embeddings,
    render_embed,
    render_embeddings,
    render_vector,
)
from gateway.ollama.render import Durations
from supervisor.errors import InvalidType, UnsupportedParameter
from supervisor.wire.frames import Embed
from tests.helpers.ollama_bodies import raw, refusal


def embed(**members: Any) -> EmbedRequest:
    return parse_embed(raw(**{"model": "m", "input": "hello", **members}), "r", 4.5)


def embeddings(**members: Any) -> EmbedRequest:
    return parse_embeddings(raw(**{"model": "m", "prompt": "hello", **members}), "r", 4.5)


KNOWN: dict[str, Any] = {
    "model": "m",
    "options": {"num_ctx": 9, "temperature": 0.1},
    "keep_alive": "5m",
}


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (sdk.EmbedRequest, {*KNOWN, "input", "truncate", "dimensions"}),
        (sdk.EmbeddingsRequest, {*KNOWN, "prompt"}),
    ],
)
def test_every_parameter_of_the_sdk_has_a_fate(kind: Any, known: set[str]) -> None:
    assert set(kind.model_fields) - known == set()


@pytest.mark.parametrize("ask", [embed, embeddings])
def test_what_both_take(ask: Any) -> None:
    asked = ask(**KNOWN)
    assert asked == EmbedRequest(
        "m",
        300.0,
        ("options.num_ctx", "options.temperature"),
        Embed("r", ("hello",), truncate=True, now=4.5),
    )


def test_several_inputs() -> None:
    asked = embed(input=["a", "b"], dimensions=8)
    assert asked.embed == Embed("r", ("a", "b"), 8, truncate=True, now=4.5)


@pytest.mark.parametrize("truncate", [True, False])
def test_what_is_too_long_is_cut_unless_told_otherwise(truncate: bool) -> None:
    assert embed(truncate=truncate).embed == Embed("r", ("hello",), truncate=truncate, now=4.5)


@pytest.mark.parametrize(
    "asked",
    [
        embed(input=""),
        embed(input=[]),
        embed(input=None, keep_alive=0),
        embeddings(prompt=""),
        embeddings(prompt=None),
    ],
)
def test_nothing_to_embed(asked: EmbedRequest) -> None:
    assert asked.embed is None


@pytest.mark.parametrize(
    ("ask", "members", "kind", "param"),
    [
        (embed, {"input": 3}, InvalidType, "input"),
        (embed, {"prompt": "x"}, UnsupportedParameter, "prompt"),
        (embed, {"frobnicate": 1}, UnsupportedParameter, "frobnicate"),
        (embed, {"truncate": 1}, InvalidType, "truncate"),
        (embed, {"options": 3}, InvalidType, "options"),
        (embed, {"encoding_format": "float"}, UnsupportedParameter, "encoding_format"),
        (embed, {"dimensions": "x"}, InvalidType, "dimensions"),
        (embeddings, {"prompt": 3}, InvalidType, "prompt"),
        (embeddings, {"input": "x"}, UnsupportedParameter, "input"),
    ],
)
def test_a_bad_value_is_named(ask: Any, members: Any, kind: Any, param: str) -> None:
    error = refusal(ask, **members)
    assert (type(error), error.param) == (kind, param)


VECTOR = render_vector(0, struct.pack("<2f", 0.5, -0.25))


def test_the_answers() -> None:
    body = render_embed([VECTOR, VECTOR], 'm"', 7, Durations(40, 10, 20, 9))
    read = EmbedResponse.model_validate_json(body)
    assert read.model == 'm"'
    assert read.embeddings == [[0.5, -0.25]] * 2
    assert (read.total_duration, read.load_duration, read.prompt_eval_count) == (40, 10, 7)
    assert EmbedResponse.model_validate_json(render_embed([], "m", 0, Durations())).embeddings == []


def test_the_older_answers() -> None:
    assert EmbeddingsResponse.model_validate_json(render_embeddings([VECTOR])).embedding == [
        *(0.5, -0.25),
    ]
    assert EmbeddingsResponse.model_validate_json(render_embeddings([])).embedding == []
