"""Ollama's embeddings, of today (/api/embed) and of before (/api/embeddings). Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.ollama import keep_alive
from gateway.ollama.messages import want_text
from gateway.ollama.render import Durations
from gateway.openai.embeddings import EMBEDDING_BODY
from supervisor.errors import InvalidType, UnsupportedParameter
from supervisor.wire.frames import Embed

_NAME_MAX = 64


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What is to be embedded; with nothing the model is loaded, or unloaded, and that is all."""

    model: str
    keep_alive: float | None
    ignored: tuple[str, ...]
    embed: Embed | None


def parse_embed(raw: Mapping[str, Any], request_id: str, now: float) -> EmbedRequest:
    """POST /api/embed, made at `now`, seconds since the epoch. Raises the contract's 400 that names
    the parameter."""
    return _parse(dict(raw), "input", request_id, now)


def parse_embeddings(raw: Mapping[str, Any], request_id: str, now: float) -> EmbedRequest:
    """POST /api/embeddings, which takes one text. Raises the contract's 400."""
    body = dict(raw)
    body["prompt"] = want_text(body.get("prompt"), "prompt")
    return _parse(body, "prompt", request_id, now)


def _parse(body: dict[str, Any], member: str, request_id: str, now: float) -> EmbedRequest:
    stays = keep_alive.seconds(body.pop("keep_alive", None))
    truncate = body.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise InvalidType("Invalid type for `truncate`: expected `bool`.", param="truncate")
    given = body.pop(member, [])
    nothing = given in ("", [])
    for name in ("input", "prompt", "encoding_format"):
        if name in body:
            raise UnsupportedParameter(f"Unknown parameter: `{name}`.", param=name)
    without_effect: tuple[str, ...] = ()
    if isinstance(options := body.get("options"), dict):
        without_effect = tuple(f"options.{name[:_NAME_MAX]}" for name in options)
        body["options"] = {}
    body["input"] = "nothing" if nothing else given
    ignored, parsed = EMBEDDING_BODY.ignored(body), EMBEDDING_BODY.parse(body)
    embed = replace(parsed.embed(request_id, now), truncate=truncate)
    return EmbedRequest(
        parsed.model, stays, (*ignored, *without_effect), None if nothing else embed
    )


def render_vector(index: int, values: bytes) -> bytes:
    """One vector. `values` are little-endian float32 numbers."""
    return msgspec.json.encode(struct.unpack(f"<{len(values) // 4}f", values))


def render_embed(
    vectors: Sequence[bytes], model: str, prompt_tokens: int, durations: Durations
) -> bytes:
    """The answer of /api/embed, from its rendered vectors."""
    rest = {
        "total_duration": durations.total,
        "load_duration": durations.load,
        "prompt_eval_count": prompt_tokens,
    }
    head = b'{"model":' + msgspec.json.encode(model) + b',"embeddings":['
    return b"".join([head, b",".join(vectors), b"],", msgspec.json.encode(rest)[1:]])


def render_embeddings(vectors: Sequence[bytes]) -> bytes:
    """The answer of /api/embeddings."""
    return b'{"embedding":' + (vectors[0] if vectors else b"[]") + b"}"
