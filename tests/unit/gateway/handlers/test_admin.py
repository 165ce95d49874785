"""gateway.handlers.admin: what one event of `/admin/events` looks like."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from gateway.handlers.admin import _next
from supervisor.wire.control_frames import Happened


def test_an_event_is_one_line_to_every_client() -> None:
    name = "m\x85\u2028\u2029"

    class Feed:
        async def receive(self) -> Happened:
            return Happened(json.dumps({"model": name}, ensure_ascii=False).encode())

    feed: Any = Feed()
    data = asyncio.run(_next(feed))
    assert data is not None
    line, *rest = data.decode().splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: ")) == {"model": name}
