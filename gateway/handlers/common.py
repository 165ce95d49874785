"""What handlers share: the relay, the posted object, and who has answered."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.http.exchange import read_body
from gateway.openai.validation import parse_object
from gateway.relay.client import Relay
from gateway.relay.generation import Generation

RELAY = web.AppKey("relay", Relay)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object that was posted, nulls dropped. Raises the contract's 400, 413 or 415."""
    return parse_object(await read_body(request))


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
