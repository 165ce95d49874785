"""POST /v1/embeddings: parse, lease, collect, render."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing

from aiohttp import web

from gateway.handlers.common import checked, pack, read_object, start, worker_headers
from gateway.http.exchange import RECORD, REQUEST_ID, json_response
from gateway.openai.embeddings import EMBEDDING_BODY, Encoding, render_answer, render_vector
from gateway.relay.generation import Generation
from supervisor.errors import InternalError
from supervisor.wire.frames import Embed, Embedded

_TURN = 16
"""Vectors rendered in one go: one of 4096 numbers takes half a millisecond, and streams wait."""


async def embeddings(request: web.Request) -> web.Response:
    """POST /v1/embeddings. The answer is buffered whole: any failure is a status."""
    embed, count, model, encoding = await _embed(request)
    with closing(await start(request, [embed], model)) as generation:
        vectors = await collect(
            request,
            generation,
            count,
            lambda index, values: render_vector(index, values, encoding),
        )
        body = render_answer(vectors, generation.model, request[RECORD].prompt_tokens or 0)
    return json_response(body, headers=worker_headers(generation))


async def _embed(request: web.Request) -> tuple[Embed, int, str, Encoding]:
    """The worker's request, packed, its inputs' count, and what the answer needs. Here alone the
    parsed body is held."""
    parsed = EMBEDDING_BODY.parse(await read_object(request, EMBEDDING_BODY))
    now = time.time()
    embed = await checked(request, parsed.model, lambda: parsed.embed(request[REQUEST_ID], now))
    (kept,) = pack(request, [embed])
    return kept, len(embed.inputs), parsed.model, parsed.encoding_format


async def collect(
    request: web.Request,
    generation: Generation,
    wanted: int,
    render: Callable[[int, bytes], bytes],
) -> list[bytes]:
    """The vectors, rendered as they come from number and values; the log's record learns the tokens
    of all inputs. Raises BulkheadError."""
    vectors: list[bytes] = []
    while not isinstance(frame := await generation.receive_vector(), Embedded):
        vectors.append(render(len(vectors), frame.values))
        if len(vectors) % _TURN == 0:
            # What has arrived together is received without a pause.
            await asyncio.sleep(0)
    if len(vectors) != wanted:
        raise InternalError("The model's worker sent another number of embeddings than asked for.")
    record = request[RECORD]
    record.worker, record.recoveries = generation.worker, generation.recoveries
    record.prompt_tokens = frame.prompt_tokens
    return vectors
