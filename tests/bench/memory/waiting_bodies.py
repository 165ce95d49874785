"""Large bodies that wait for a model: what the gateway holds before, while and after they do, and
how long `/health` takes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from pathlib import Path

from tests.bench import harness
from tests.bench.answers import Failed
from tests.bench.memory.sampler import sampling
from tests.bench.memory.scene import Findings, mb, run
from tests.helpers.fakes.engine import Script
from tests.helpers.serving import gate

QUEUE, SHORT_QUEUE = 256_000_000, 40_000_000
"""`max_queue_bytes`: as it is unless configured, and less than all bodies of the short form have
together."""
ON_THE_WAY, SHORT_ON_THE_WAY = 144_000_000, 50_000_000
"""Bytes that the gateway may grow by beyond that: as much as bodies on their way take."""
KEPT = 60_000_000
"""Bytes of it that it may keep."""
HEALTH_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_CALM_SECONDS = 2.0
"""Without an answer: all who are refused have been, and the others wait."""


def play(findings: Findings, folder: Path, short: bool) -> None:
    """They wait for a load that never ends, until their clients leave."""
    bodies = 60 if short else 600
    queue, on_the_way = (SHORT_QUEUE, SHORT_ON_THE_WAY) if short else (QUEUE, ON_THE_WAY)
    size = 2_000_000
    findings.scene(f"{bodies} x 2 MB waiting")
    with gate(folder / "gate") as stop:
        model = Script(gates={"load": str(stop.path)}).write(folder / "m")
        limit = f'max_queue_bytes = "{queue // 10**6}MB"'
        with harness.bulkhead(folder / "b", {"m": model}, scripted=True, server=limit) as server:
            gateway = server.gateway()
            with sampling(folder / "s", server.port, gateway) as samples:
                begun = time.monotonic()
                answers, until = asyncio.run(_wait(server.port, bodies, size))
                time.sleep(_CALM_SECONDS)
                server.health()
                time.sleep(_CALM_SECONDS)
            stop.arrived()
            stop.open()
    held = [each for each in samples.footprints if each.name == str(gateway)]
    before = held[0].size
    most = max(each.size for each in held)
    after = held[-1].size
    waited = bodies - sum(answers.values())
    told = ", ".join(f"{count} x {code}" for code, count in sorted(answers.items()))
    findings.note("waited, refused", f"{waited}, {told or 'none'}", [waited, dict(answers)])
    findings.note("seconds until all waited", f"{until - begun:.1f} s", until - begun)
    findings.note("gateway before", mb(before), before)
    held_bar, kept_bar = before + queue + on_the_way, before + KEPT
    findings.bar("gateway at most", mb(most), f"<= {mb(held_bar)}", most <= held_bar, most)
    findings.bar("gateway after", mb(after), f"<= {mb(kept_bar)}", after <= kept_bar, after)
    slowest = samples.slowest_health
    findings.bar(
        "/health, slowest",
        f"{slowest:.2f} s",
        f"<= {HEALTH_SECONDS:.0f} s",
        slowest <= HEALTH_SECONDS,
        slowest,
        speed=True,
    )


async def _wait(port: int, bodies: int, size: int) -> tuple[Counter[str], float]:
    """Send all at once, and leave when those that were not answered have waited in silence for a
    while. The codes of the answers, and when the last came or the last byte was sent."""
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x" * size}], "max_tokens": 1}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    answers: Counter[str] = Counter()
    happened = time.monotonic()

    async def one() -> None:
        nonlocal happened
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head)
            writer.write(body)
            with contextlib.suppress(OSError):  # it was refused before it was read
                await writer.drain()
            happened = time.monotonic()
            answer = await reader.read(1 << 16)
            code = answer.partition(b'"code":"')[2].partition(b'"')[0].decode()
            answers[code or answer[:12].decode("latin-1") or "closed"] += 1
            happened = time.monotonic()
        except OSError as error:
            answers[type(error).__name__] += 1
        finally:
            writer.transport.abort()

    tasks = [asyncio.create_task(one()) for _ in range(bodies)]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < happened + _CALM_SECONDS:
        if time.monotonic() > deadline:
            raise Failed("the bodies are not taken")
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return answers, happened


if __name__ == "__main__":
    run("waiting_bodies", __doc__, play)
