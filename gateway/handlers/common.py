"""What handlers share: the posted object, the way to a worker, and who has answered."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp import web

from gateway.http.access_log import AccessRecord
from gateway.http.exchange import IGNORED, RECORD, body_digest, hold_seconds, read_body
from gateway.openai.validation import Body, parse_object
from gateway.relay.client import Relay
from gateway.relay.generation import Generation
from supervisor.errors import ClientError, TransientError
from supervisor.wire.frames import Embed, Generate

T = TypeVar("T")

RELAY = web.AppKey("relay", Relay)
DEFAULT_MODEL = "default_model"
"""The name that stands for none."""


async def read_object(request: web.Request, body: Body[Any]) -> dict[str, Any]:
    """The JSON object that was posted, nulls dropped; what of it changes nothing goes into the
    answer's headers. Raises the contract's 400, 413 or 415."""
    posted = await read_posted(request)
    request[IGNORED] = body.ignored(posted)
    return posted


async def read_posted(request: web.Request, *, of_curl: bool = False) -> dict[str, Any]:
    """The JSON object that was posted, nulls dropped; see `read_body` for `of_curl`. Raises the
    contract's 400, 413 or 415."""
    posted = parse_object(await read_body(request, of_curl=of_curl))
    _note_asked(request[RECORD], posted)
    return posted


def _note_asked(record: AccessRecord, posted: dict[str, Any]) -> None:
    """For the access log: what was asked for, also when the body is refused for something else."""
    if isinstance(model := posted.get("model"), str):
        record.model = model
    if isinstance(stream := posted.get("stream"), bool):
        record.stream = stream


async def checked(request: web.Request, model: str, make: Callable[[], T]) -> T:
    """What `make` makes of the body. That there is no such model is told before what else is wrong:
    whether a value fits may depend on the model. Raises BulkheadError."""
    try:
        return make()
    except ClientError:
        with contextlib.suppress(TransientError):
            await request.app[RELAY].report(model or DEFAULT_MODEL)
        raise


async def start(
    request: web.Request,
    choices: Sequence[Generate | Embed],
    model: str,
    keep_alive: float | None = None,
) -> Generation:
    """Wait for a worker and give it the request, whose body has been read. `keep_alive` is as
    `Acquire`'s. The caller closes the generation. Raises BulkheadError."""
    record = request[RECORD]
    record.model = model
    digest = await body_digest(request)
    hold = hold_seconds(request)
    generation = await request.app[RELAY].start(choices, model, hold, digest, keep_alive)
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
