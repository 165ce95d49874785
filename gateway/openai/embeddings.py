"""OpenAI's embeddings: a body becomes the worker's request, vectors become the answer. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.openai.local_servers import EMBEDDING_FATES
from gateway.openai.parameters import TokenId
from gateway.openai.validation import Body, invalid_value
from supervisor.errors import InvalidType
from supervisor.wire.frames import Embed

INPUTS_MAX = 2048
"""Inputs of one request; OpenAI's figure."""

InputText = Annotated[str, Meta(min_length=1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
Encoding = Literal["float", "base64"]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`input` is a text, token ids, or a list of up to 2048 of either."""

    input: InputText | Annotated[list[InputText | TokenId | TokenIds], Meta(min_length=1)]
    model: str = ""
    encoding_format: Encoding = "float"
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None

    def embed(self, request_id: str, now: float) -> Embed:
        """The worker's request, made at `now`, seconds since the epoch. Raises InvalidType or
        InvalidValue."""
        return Embed(request_id, self._inputs(), self.dimensions, now=now)

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
            raise invalid_value(
                "input", f"{len(inputs)} inputs, at most {INPUTS_MAX} go into one request."
            )
        return tuple(inputs)


EMBEDDING_BODY = Body(
    EmbeddingRequest, harmless=frozenset({"user"}), neutral={}, fates=EMBEDDING_FATES
)


def render_vector(index: int, values: bytes, encoding: Encoding) -> bytes:
    """One member of the answer's `data`. `values` are little-endian float32 numbers."""
    embedding: object = (
        base64.b64encode(values).decode()
        if encoding == "base64"
        else struct.unpack(f"<{len(values) // 4}f", values)
    )
    return msgspec.json.encode({"object": "embedding", "index": index, "embedding": embedding})


def render_answer(vectors: Sequence[bytes], model: str, prompt_tokens: int) -> bytes:
    """The whole body, from its rendered vectors."""
    rest = {
        "model": model,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
    # The vectors are tens of megabytes at worst: copied once, not encoded again.
    first, last = b'{"object":"list","data":[', b"]," + msgspec.json.encode(rest)[1:]
    pieces = [piece for vector in vectors for piece in (b",", vector)]
    return b"".join([first, *pieces[1:], last])
