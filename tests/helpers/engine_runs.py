"""Requests run by a `BatchEngine` in this thread, without its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from supervisor.wire.frames import End, FromEngine, Generate, Load, Progress, Sampling, Text, Token
from worker.engine.batch import BatchEngine
from worker.engine.thread import Job, LoadResult

TOKENS = 48
PROMPTS = [
    "a",
    "The quick brown fox",
    "0123456789" * 4,
    "naïve 模型 😀",
    "a long prompt, longer than one prefill step. " * 20,
]


class Run:
    """A job and, as its sink, what it was given."""

    def __init__(self, engine: BatchEngine, prompt: str, **options: Any) -> None:
        self.frames: list[FromEngine] = []
        sampling = {
            name: options.pop(name) for name in Sampling.__struct_fields__ if name in options
        }
        options = {"max_tokens": TOKENS, **options}
        name = options.pop("name", "r")
        request = Generate(name, Text(prompt), 1.0, sampling=Sampling(**sampling), **options)
        self.job = Job(request, engine.prepare(request), self)
        engine.insert(self.job)

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.frames.extend(frames)

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def tokens(self) -> list[int]:
        return [frame.id for frame in self.frames if isinstance(frame, Token)]

    @property
    def text(self) -> str:
        return "".join(frame.text for frame in self.frames if isinstance(frame, Token))

    @property
    def end(self) -> End:
        end = self.frames[-1]
        assert isinstance(end, End)
        return end


def said(frames: Sequence[FromEngine]) -> list[FromEngine]:
    """What a client is told: how far a prompt is depends on what goes on beside it."""
    return [frame for frame in frames if not isinstance(frame, Progress)]


def step(engine: BatchEngine) -> None:
    for job, frames in engine.step():
        job.sink.send(frames)


def finish(engine: BatchEngine) -> None:
    while engine.busy:
        step(engine)


def alone(engine: BatchEngine, prompt: str, **options: Any) -> Run:
    run = Run(engine, prompt, **options)
    finish(engine)
    return run


def start(
    folder: Path,
    *,
    context: int = 0,
    concurrency: int = 8,
    clock: Callable[[], float] = time.perf_counter,
    prefill_gate: bool = False,
) -> tuple[BatchEngine, LoadResult]:
    engine = BatchEngine(clock)
    engine.warm_up()
    load = Load("m", 1, str(folder), "/unused", concurrency, context, prefill_gate=prefill_gate)
    return engine, engine.load(load, lambda done, total: None)


def says_a(engine: BatchEngine, letter: str = "a") -> tuple[tuple[int, float], ...]:
    """A bias under which every token is the text `letter`."""
    (token,) = engine.prepare(Generate("r", Text(letter), 1.0)).prompt
    return ((token, 1000.0),)
