"""What parts of a token's way cost by themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence

from supervisor.wire.frames import FromEngine, Generate, Text
from tests.helpers.fakes.engine import Script, ScriptedEngine
from worker.engine.thread import Job, Prepared


class _Nobody:
    """A `Sink` that nobody reads."""

    def send(self, frames: Sequence[FromEngine]) -> None:
        pass

    def close(self) -> None:
        pass


def engine_rate(streams: int, tokens: int) -> float:
    """Tokens a second that the scripted engine makes for nobody."""
    engine = ScriptedEngine(Script(crowd=streams))
    for number in range(streams):
        request = Generate(f"r{number}", Text("on"), 0.0, max_tokens=tokens)
        engine.insert(Job(request, Prepared([0] * 8), _Nobody()))
    begun = time.perf_counter()
    while engine.busy:
        engine.step()
    return streams * tokens / (time.perf_counter() - begun)
