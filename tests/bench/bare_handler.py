"""An aiohttp handler that only writes: `python -m tests.bench.bare_handler FILE`.

It listens as the gateway does, on the gateway's own server and event loop, prints its port, and
answers each POST with the chunks in FILE (a JSON list of texts), once as many requests are there as
the header `x-crowd` says. With `x-turns` each chunk has a turn of the loop to itself, so that none
waits for the next.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from gateway.dialect import contract_form
from gateway.http.bodies import BodyBytes
from gateway.http.exchange import BODIES, FORM_OF, TIMING
from gateway.http.server import listening
from gateway.http.timing import Timing
from gateway.main import yield_to_engines
from gateway.openai.sse import EVENT_STREAM
from supervisor.wire.stream import BACKLOG


class Bare:
    """The handler."""

    def __init__(self, answers: dict[str, list[bytes]]) -> None:
        self._answers = answers
        """By the number of their chunks."""
        self._came = 0
        self._all_came = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        chunks = self._answers[str(body["max_tokens"])]
        response = web.StreamResponse(
            headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        await self._await_crowd(int(request.headers["x-crowd"]))
        if "x-turns" in request.headers:
            for chunk in chunks:
                await response.write(chunk)
                await asyncio.sleep(0)
        else:
            for chunk in chunks:
                await response.write(chunk)
        await response.write_eof()
        return response

    async def _await_crowd(self, crowd: int) -> None:
        self._came += 1
        if self._came == crowd:
            all_came, self._came, self._all_came = self._all_came, 0, asyncio.Event()
            all_came.set()
        else:
            await self._all_came.wait()


async def serve(answers: dict[str, list[str]]) -> None:
    """Until the process is ended."""
    handler = Bare({k: [chunk.encode() for chunk in chunks] for k, chunks in answers.items()})
    app = web.Application()
    app[TIMING], app[FORM_OF] = Timing(), lambda _: contract_form
    app[BODIES] = BodyBytes(2**30)
    app.router.add_post("/v1/chat/completions", handler.__call__)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with listening(app, listener, backlog=BACKLOG, shutdown_seconds=1.0):
            print(listener.getsockname()[1], flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    yield_to_engines()
    uvloop.run(serve(json.loads(Path(sys.argv[1]).read_text())))
