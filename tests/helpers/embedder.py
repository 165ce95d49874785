"""An embedder in the test's own thread, step by step, with a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from supervisor.wire.frames import Allowance, Embed, Embedded, FromEngine
from tests.helpers.tiny_embedding import make_embedding
from worker.engine.embedding import Embedder
from worker.engine.kv_cost import KvCost
from worker.engine.memory import Memory
from worker.engine.native_heap import Unmanaged
from worker.engine.thread import Job, Prepared

CONTEXT = 4096
TEXTS = ["a", "The quick brown fox", "0123456789" * 9, "naïve 模型 😀", "of middling length " * 6]
POOLINGS = ("lasttoken", "mean_tokens")


def make_embeddings(base: Path) -> dict[str, Path]:
    """A model's folder for each pooling."""
    return {pooling: make_embedding(base / pooling, pooling=pooling) for pooling in POOLINGS}


class Run:
    """A job and, as its sink, what it was given."""

    def __init__(self, embedder: Embedder, inputs: Sequence[Any], **more: Any) -> None:
        self.frames: list[FromEngine] = []
        request = Embed("r", tuple(inputs), **more)
        self.job = Job(request, Prepared(inputs=embedder.prepare(request)), self)
        embedder.insert(self.job)

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.frames.extend(frames)

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def vectors(self) -> Any:
        """float32, [inputs, dimensions]."""
        assert isinstance(self.frames[-1], Embedded)
        return np.array([np.frombuffer(f.values, "<f4") for f in self.frames[:-1]])  # type: ignore[union-attr]


def busy(embedder: Embedder) -> bool:
    return embedder.busy or embedder.wanted.long is not None


def step(embedder: Embedder, memory: Memory | None = None) -> None:
    """With room for any KV cache, and for any step unless `memory` says otherwise."""
    long = embedder.wanted.long
    if long is not None and not long.under_way:
        embedder.begin_long()
    for job, frames in embedder.step(memory or _ample(), 1e9):
        job.sink.send(frames)


@cache
def _ample() -> Memory:
    return Memory(Allowance(), KvCost(()), rows=1, context=CONTEXT, chunk=512, heap=Unmanaged())


def finish(embedder: Embedder) -> None:
    while busy(embedder):
        step(embedder)


def embed(embedder: Embedder, inputs: Sequence[Any], **more: Any) -> Any:
    run = Run(embedder, inputs, **more)
    finish(embedder)
    return run.vectors


def start(folder: Path) -> tuple[Embedder, Any]:
    from mlx_lm import utils

    load: Any = utils.load
    model, tokenizer = load(str(folder))
    ticks = count()  # of a machine to which nothing takes any time
    clock = lambda: next(ticks) * 1e-6  # noqa: E731
    return Embedder(model, tokenizer, folder, CONTEXT, clock=clock), model
