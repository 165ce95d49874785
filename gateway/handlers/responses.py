"""POST /v1/responses, and what is kept of the answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from gateway.handlers.answering import Asked, answer, asked
from gateway.handlers.common import read_object
from gateway.http.exchange import IGNORED, RECORD, json_response
from gateway.openai.validation import invalid_value
from gateway.responses.render import ResponseRenderer
from gateway.responses.request import RESPONSE_BODY, ParsedResponse, parse_response
from gateway.responses.store import OwnResponses, ResponseStore
from supervisor.errors import BulkheadError, UnsupportedParameter

STORE = web.AppKey("responses", ResponseStore)

ID = r"(?!(?:compact|input_tokens)$)[^{}/]+"
"""What may be an id in a path. Those two are endpoints of OpenAI's that this version lacks."""
_LISTED_MAX = 100
_json = msgspec.json.Encoder().encode
_PREFIXES = {"function_call": "fc_", "reasoning": "rs_", "custom_tool_call": "ctc_"}


async def create(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses"""
    kept, terms, items = await _response(request)

    def keep(response: dict[str, Any]) -> None:
        _own(request).keep(response, msgspec.json.decode(items))

    keep_it = None if terms.asked.store is False else keep
    try:
        return await answer(request, kept, lambda head: ResponseRenderer(terms, head, keep_it))
    except BulkheadError as error:
        raise terms.in_its_words(error) from None


async def _response(request: web.Request) -> tuple[Asked, ParsedResponse, bytes]:
    """And what the answer needs of the request; its own items as JSON, with ids, if they are to be
    kept. Here alone the parsed body is held."""
    posted = await read_object(request, RESPONSE_BODY)
    parsed = parse_response(posted, _own(request))
    request[IGNORED] = (*request[IGNORED], *parsed.ignored)
    items = b"" if parsed.asked.store is False else _json(_with_ids(parsed.own_items))
    terms = parsed.without_items()
    return await asked(request, parsed, more=len(items) + terms.told_bytes()), terms, items


async def retrieve(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}"""
    if request.query.get("stream", "false") not in ("false", "0", ""):
        raise UnsupportedParameter(
            "`stream` is not supported here: what is kept is the whole response.", param="stream"
        )
    return json_response(_own(request).response(request.match_info["id"]))


async def delete(request: web.Request) -> web.Response:
    """DELETE /v1/responses/{id}"""
    name = request.match_info["id"]
    _own(request).forget(name)
    told = {"id": name, "object": "response", "deleted": True}
    return json_response(msgspec.json.encode(told))


async def input_items(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}/input_items: newest first unless `order` is `asc`."""
    items = _own(request).input_items(request.match_info["id"])
    query = request.query
    if query.get("order", "desc") != "asc":
        items.reverse()
    if after := query.get("after"):
        places = [place for place, each in enumerate(items) if each.get("id") == after]
        if not places:
            raise invalid_value("after", "no item has that id.")
        items = items[places[0] + 1 :]
    try:
        limit = int(query.get("limit", "20"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= _LISTED_MAX:
        raise invalid_value("limit", f"expected an integer from 1 to {_LISTED_MAX}.")
    shown = items[:limit]
    told = {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > limit,
    }
    return json_response(msgspec.json.encode(told))


def _own(request: web.Request) -> OwnResponses:
    """What the caller may know: with configured keys, what was sent with the same one."""
    return request.app[STORE].of(request[RECORD].key)


def new_store() -> ResponseStore:
    return ResponseStore(time.monotonic)


def _with_ids(items: Sequence[Any]) -> list[Any]:
    """Items of an input, each with an id, by which they can be asked for."""
    return [
        {"id": _PREFIXES.get(each["type"], "msg_") + secrets.token_hex(24), **each}
        for each in items
    ]
