"""What handlers share: the posted object, the way to a worker, and who has answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from gateway.http.exchange import RECORD, body_digest, hold_seconds, read_body
from gateway.openai.validation import parse_object
from gateway.relay.client import Relay
from gateway.relay.generation import Generation
from supervisor.wire.frames import Embed, Generate

RELAY = web.AppKey("relay", Relay)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object that was posted, nulls dropped. Raises the contract's 400, 413 or 415."""
    return parse_object(await read_body(request))


async def start(
    request: web.Request, choices: Sequence[Generate | Embed], model: str
) -> Generation:
    """Wait for a worker and give it the request, whose body has been read. The caller closes the
    generation. Raises BulkheadError."""
    record = request[RECORD]
    record.model = model
    digest = await body_digest(request)
    generation = await request.app[RELAY].start(choices, model, hold_seconds(request), digest)
    record.granted_at = time.monotonic()
    record.model, record.worker = generation.model, generation.worker
    return generation


def worker_headers(generation: Generation) -> dict[str, str]:
    """Who answers. Model names may hold any character, headers may not."""
    headers = {"x-bulkhead-model": generation.model, "x-bulkhead-worker": generation.worker}
    if generation.asked:
        headers["x-bulkhead-fallback"] = generation.asked
    if generation.recoveries:
        headers["x-bulkhead-recoveries"] = str(generation.recoveries)
    return {
        name: value.encode("ascii", "backslashreplace").decode() for name, value in headers.items()
    }
