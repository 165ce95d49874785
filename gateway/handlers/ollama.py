"""Ollama's API: chats and generations, embeddings, and what clients ask about models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

from aiohttp import web

from gateway.handlers.answering import Asked, answer, asked
from gateway.handlers.common import (
    DEFAULT_MODEL,
    RELAY,
    checked,
    pack,
    read_posted,
    start,
    worker_headers,
)
from gateway.handlers.embeddings import collect
from gateway.http.exchange import IGNORED, RECORD, REQUEST_ID, hold_seconds, json_response
from gateway.ollama.embeddings import (
    EmbedRequest,
    parse_embed,
    parse_embeddings,
    render_embed,
    render_embeddings,
    render_vector,
)
from gateway.ollama.models import (
    Served,
    render_ps,
    render_show,
    render_tags,
    render_version,
    served,
    wanted_name,
)
from gateway.ollama.render import (
    NDJSON,
    Content,
    Durations,
    OllamaRenderer,
    loaded,
    of_chat,
    of_generation,
)
from gateway.ollama.requests import OllamaRequest, parse_chat_body, parse_generate_body
from gateway.openai.validation import missing_parameter
from supervisor.errors import InvalidType, ModelNotFound
from supervisor.wire.control_frames import Managed

_NANOSECONDS = 1e9
_SUCCESS = b'{"status":"success"}'


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /api/chat"""
    return await _answer(request, await _asked(request, parse_chat_body), of_chat)


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /api/generate"""
    return await _answer(request, await _asked(request, parse_generate_body), of_generation)


class _Wanted(NamedTuple):
    """What is left of a parsed body."""

    model: str
    keep_alive: float | None
    asked: Asked | None
    """None = there is nothing to answer."""


async def _asked(
    request: web.Request, parse: Callable[[Mapping[str, Any]], OllamaRequest]
) -> _Wanted:
    """Here alone the parsed body is held. Raises BulkheadError."""
    parsed = parse(await read_posted(request, of_curl=True))
    request[IGNORED] = parsed.ignored
    kept = None if parsed.chat is None else await asked(request, parsed)
    return _Wanted(parsed.model, parsed.keep_alive, kept)


async def _answer(request: web.Request, wanted: _Wanted, content: Content) -> web.StreamResponse:
    if wanted.asked is not None:
        return await answer(
            request,
            wanted.asked,
            lambda head: OllamaRenderer(content, head, lambda: _durations(request)),
            wanted.keep_alive,
        )
    managed = await _load(request, wanted.model, wanted.keep_alive)
    unloaded = wanted.keep_alive == 0
    return json_response(loaded(content, managed.model, time.time(), unloaded=unloaded))


async def _load(request: web.Request, model: str, keep_alive: float | None) -> Managed:
    """What a request asks for that has nothing to answer: the model, loaded, or unloaded once
    nobody uses it. Raises BulkheadError."""
    request[RECORD].model, relay = model, request.app[RELAY]
    if keep_alive == 0:
        return await relay.expire(model)
    return await relay.warm(request[REQUEST_ID], model, hold_seconds(request), keep_alive)


def _durations(request: web.Request) -> Durations:
    """Of the answer up to now. No part of one that has tokens is nothing: clients divide by it."""
    record, now = request[RECORD], time.monotonic()
    granted = now if record.granted_at is None else record.granted_at
    first = now if record.first_at is None else record.first_at
    parts = (now - record.begun, granted - record.begun, first - granted, now - first)
    return Durations(*(max(1, round(part * _NANOSECONDS)) for part in parts))


async def embed(request: web.Request) -> web.Response:
    """POST /api/embed. The answer is buffered whole: any failure is a status."""
    vectors, model, headers = await _vectors(request, *await _embed(request, parse_embed))
    tokens = request[RECORD].prompt_tokens or 0
    body = render_embed(vectors, model, tokens, _durations(request))
    return json_response(body, headers=headers)


async def embeddings(request: web.Request) -> web.Response:
    """POST /api/embeddings, of older clients."""
    vectors, _, headers = await _vectors(request, *await _embed(request, parse_embeddings))
    return json_response(render_embeddings(vectors), headers=headers)


def _name(posted: dict[str, object]) -> str:
    """The model that is named, as far as one is."""
    name = posted.get("model")
    return name if isinstance(name, str) else ""


async def _embed(
    request: web.Request, parse: Callable[[Mapping[str, Any], str, float], EmbedRequest]
) -> tuple[EmbedRequest, int]:
    """What is to be embedded, packed, and how many inputs those are. Here alone the parsed body is
    held. Raises BulkheadError."""
    posted = await read_posted(request, of_curl=True)
    now = time.time()
    parsed = await checked(request, _name(posted), lambda: parse(posted, request[REQUEST_ID], now))
    request[IGNORED] = parsed.ignored
    if parsed.embed is None:
        return parsed, 0
    (kept,) = pack(request, [parsed.embed])
    return replace(parsed, embed=kept), len(parsed.embed.inputs)


async def _vectors(
    request: web.Request, wanted: EmbedRequest, count: int
) -> tuple[list[bytes], str, dict[str, str]]:
    """The rendered vectors of so many inputs, the served name of who has made them, and the
    answer's headers."""
    if wanted.embed is None:
        managed = await _load(request, wanted.model, wanted.keep_alive)
        return [], managed.model, {}
    started = await start(request, [wanted.embed], wanted.model, wanted.keep_alive)
    with closing(started) as generation:
        vectors = await collect(request, generation, count, render_vector)
        return vectors, generation.model, worker_headers(generation)


# ── models ───────────────────────────────────────────────────────────────────────────────────────


async def tags(request: web.Request) -> web.Response:
    """GET /api/tags: at once, without any worker."""
    report = await request.app[RELAY].report(files=True)
    return json_response(render_tags(served(report.body, report.files)))


async def ps(request: web.Request) -> web.Response:
    """GET /api/ps"""
    report = await request.app[RELAY].report(files=True)
    return json_response(render_ps(report.body, served(report.body, report.files)))


async def show(request: web.Request) -> web.Response:
    """POST /api/show"""
    name, model = await _find(request)
    return json_response(render_show(model, name))


async def pull(request: web.Request) -> web.Response:
    """POST /api/pull: what is served needs none, and nothing else is downloaded by a request."""
    posted = await read_posted(request, of_curl=True)
    stream = posted.get("stream", True)
    if not isinstance(stream, bool):
        raise InvalidType("Invalid type for `stream`: expected `bool`.", param="stream")
    name = _wanted(request, posted)
    try:
        await request.app[RELAY].report(name)
    except ModelNotFound as error:
        repo = name[:200] if "/" in name else "ORG/NAME"  # Ollama's own names are no repo's
        raise ModelNotFound(
            f"{error.message} No request downloads anything: run `hf download {repo}` on the "
            "server, and name the model there under [models] or with `bulkhead serve --model`.",
            param="model",
        ) from None
    if not stream:
        return json_response(_SUCCESS)
    lines = b'{"status":"pulling manifest"}\n' + _SUCCESS + b"\n"
    return web.Response(body=lines, content_type=NDJSON)


async def version(request: web.Request) -> web.Response:
    """GET /api/version"""
    return json_response(render_version(version_of("mlx-bulkhead")))


def _wanted(request: web.Request, posted: dict[str, object]) -> str:
    """The model that a body is about. Raises MissingParameter or InvalidType."""
    name = wanted_name(posted)
    if name is None or name == "":
        raise missing_parameter("model")
    if not isinstance(name, str):
        raise InvalidType("Invalid type for `model`: expected `str`.", param="model")
    request[RECORD].model = name
    return name


async def _find(request: web.Request) -> tuple[str, Served]:
    """The name that was asked for and its model. Raises BulkheadError."""
    name = _wanted(request, await read_posted(request, of_curl=True))
    report = await request.app[RELAY].report(name or DEFAULT_MODEL, files=True)
    models = served(report.body, report.files)
    return name, next(model for model in models if model.entry["name"] == report.model)
