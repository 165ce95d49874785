"""What handlers share: the posted object, the way to a worker, and who has answered."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp import web

from gateway.http.access_log import AccessRecord
from gateway.http.exchange import (
    DIGEST,
    HELD,
    IGNORED,
    RECORD,
    REQUEST_ID,
    hold_seconds,
    read_body,
)
from gateway.openai.validation import Body, parse_object
from gateway.relay.client import Relay
from gateway.relay.control import unsendable
from gateway.relay.generation import Generation
from supervisor.errors import ClientError, RequestTooLarge, TransientError
from supervisor.wire.codec import (
    REQUEST_LIMIT,
    ProtocolError,
    packed,
    packed_chat,
    packed_chat_size,
    packed_size,
)
from supervisor.wire.frames import Chat, Embed, Generate

T = TypeVar("T")
W = TypeVar("W", bound=Generate | Embed)

RELAY = web.AppKey("relay", Relay)
Stable = Callable[[bytes | bytearray], bytes | bytearray]
DEFAULT_MODEL = "default_model"
"""The name that stands for none."""


async def read_object(
    request: web.Request, body: Body[Any], stable: Stable = lambda body: body
) -> dict[str, Any]:
    """The JSON object that was posted, nulls dropped; what of it changes nothing goes into the
    answer's headers. `stable` is as `read_body`'s. Raises the contract's 400, 408, 413, 415 or
    503."""
    posted = await read_posted(request, stable=stable)
    request[IGNORED] = body.ignored(posted)
    return posted


async def read_posted(
    request: web.Request, *, of_curl: bool = False, stable: Stable = lambda body: body
) -> dict[str, Any]:
    """The JSON object that was posted, nulls dropped; see `read_body` for the rest. Raises as
    `read_object`."""
    posted = parse_object(await read_body(request, of_curl=of_curl, stable=stable))
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


def pack(request: web.Request, choices: Sequence[W], more: int = 0) -> list[W]:
    """The choices in the one encoded form that is kept of them; `more` bytes are kept beside it.
    Raises BulkheadError, also QueueFull where that comes to more than the body."""
    try:
        kept = packed(choices)
    except ProtocolError as error:
        raise unsendable(choices[0].request_id, error) from None
    size = packed_size(kept)
    if size > REQUEST_LIMIT - 2**20:
        raise RequestTooLarge(
            f"With what came before it the request has {size} bytes, more than a model's worker is "
            "given. Begin a new conversation."
        )
    request[HELD].keep(size + more)
    return kept


def pack_chat(request: web.Request, chat: Chat) -> Chat:
    """The chat of a count, as `pack` has a request's. Raises as that."""
    try:
        kept = packed_chat(chat)
    except ProtocolError as error:
        raise unsendable(request[REQUEST_ID], error) from None
    request[HELD].keep(packed_chat_size(kept))
    return kept


async def start(
    request: web.Request,
    choices: Sequence[Generate | Embed],
    model: str,
    keep_alive: float | None = None,
) -> Generation:
    """Wait for a worker and give it the request, whose choices are packed. `keep_alive` is as
    `Acquire`'s. The caller closes the generation. Raises BulkheadError."""
    record = request[RECORD]
    record.model = model
    digest, hold = request[DIGEST], hold_seconds(request)
    generation = await request.app[RELAY].start(choices, model, hold, digest, keep_alive)
    request[HELD].run()
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
