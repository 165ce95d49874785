"""POST /v1/embeddings: parse, lease, collect, render."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from gateway.http.exchange import (
    OUTCOME,
    RELAY,
    REQUEST_ID,
    body_digest,
    hold_seconds,
    json_response,
    read_object,
    worker_headers,
)
from gateway.openai.validation import check_known, convert
from gateway.relay.generation import Generation
from supervisor.errors import InternalError, InvalidType, InvalidValue
from supervisor.wire.frames import Embed, Embedded

INPUTS_MAX = 2048
"""Inputs of one request; OpenAI's figure."""
HARMLESS = frozenset({"user"})
"""Accepted and without effect."""
_TURN = 16
"""Vectors rendered in one go: one of 4096 numbers takes half a millisecond, and streams wait."""

InputText = Annotated[str, Meta(min_length=1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`input` is a text, token ids, or a list of up to 2048 of either."""

    input: InputText | Annotated[list[InputText | TokenId | TokenIds], Meta(min_length=1)]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None

    def embed(self, request_id: str) -> Embed:
        """The worker's request. Raises InvalidType or InvalidValue."""
        return Embed(request_id, self._inputs(), self.dimensions)

    def _inputs(self) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(self.input, str):
            return (self.input,)
        numbers = tuple(item for item in self.input if isinstance(item, int))
        if len(numbers) == len(self.input):
            return (numbers,)
        inputs = []
        for index, item in enumerate(self.input):
            if isinstance(item, int):
                raise InvalidType(
                    f"Invalid type for `input[{index}]`: token ids stand in a list of their own, "
                    "not beside other inputs.",
                    param=f"input[{index}]",
                )
            inputs.append(item if isinstance(item, str) else tuple(item))
        if len(inputs) > INPUTS_MAX:
            raise InvalidValue(
                f"Invalid value for `input`: {len(inputs)} inputs, at most {INPUTS_MAX} go into one "
                "request.",
                param="input",
            )
        return tuple(inputs)


_FIELDS = frozenset(EmbeddingRequest.__struct_fields__)


def parse(raw: Mapping[str, Any]) -> EmbeddingRequest:
    """Raises the contract's 400 that names the parameter."""
    return convert(check_known(raw, _FIELDS, HARMLESS, {}), EmbeddingRequest)


async def embeddings(request: web.Request) -> web.Response:
    """POST /v1/embeddings. The answer is buffered whole: any failure is a status."""
    parsed = parse(await read_object(request))
    embed = parsed.embed(request[REQUEST_ID])
    digest = await body_digest(request)
    relay = request.app[RELAY]
    generation = await relay.start(embed, parsed.model, hold_seconds(request), digest)
    try:
        body = await _collect(generation, len(embed.inputs), parsed.encoding_format)
    finally:
        generation.close()
    request[OUTCOME] = f"200 {len(embed.inputs)} embeddings"
    return json_response(body, headers=worker_headers(generation))


async def _collect(
    generation: Generation, wanted: int, encoding_format: Literal["float", "base64"]
) -> bytes:
    """The body, rendered as the vectors come. Raises BulkheadError."""
    data: list[bytes] = []
    while not isinstance(frame := await generation.receive_vector(), Embedded):
        data.append(datum(len(data), frame.values, encoding_format))
        if len(data) % _TURN == 0:
            # What has arrived together is received without a pause.
            await asyncio.sleep(0)
    if len(data) != wanted:
        raise InternalError("The model's worker sent another number of embeddings than asked for.")
    return answer(data, generation.model, frame.prompt_tokens)


def datum(index: int, values: bytes, encoding_format: Literal["float", "base64"]) -> bytes:
    """One member of `data`. `values` are little-endian float32 numbers."""
    embedding: object = (
        base64.b64encode(values).decode()
        if encoding_format == "base64"
        else struct.unpack(f"<{len(values) // 4}f", values)
    )
    return msgspec.json.encode({"object": "embedding", "index": index, "embedding": embedding})


def answer(data: list[bytes], model: str, prompt_tokens: int) -> bytes:
    """The whole body, from its rendered members."""
    rest = {
        "model": model,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
    # The members are tens of megabytes at worst: copied once, not encoded again.
    first, last = b'{"object":"list","data":[', b"]," + msgspec.json.encode(rest)[1:]
    return b"".join([first, *(part for member in data for part in (member, b","))][:-1] + [last])
