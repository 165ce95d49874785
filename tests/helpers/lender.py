"""A real engine under an allowance, step by step in the test's own thread, and what a supervisor
would see of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from supervisor.models.estimate import estimate
from supervisor.wire.frames import Allowance, FromEngine, Load, LoanFrame, Recall, Repaid, Token
from tests.helpers.engine_runs import Run, said
from tests.helpers.tiny_llama import Shape
from worker.engine.batch import BatchEngine

SHAPE = Shape(num_key_value_heads=4)
MB = 2**20


class Lender:
    """An engine under an allowance, and what a supervisor would see of it."""

    def __init__(self, folder: Path, room: int, *, limit: int = 0, places: int = 8) -> None:
        files = estimate(folder, fused=False)
        self.allowance = Allowance(room, limit, files.activations, files.scores, files.logits)
        self.engine = BatchEngine()
        self.engine.warm_up()
        load = Load("m", 1, str(folder), "/unused", places, 0, self.allowance)
        self.loaded = self.engine.load(load, lambda done, total: None)
        self.base = mx.get_active_memory()
        self.lent = 0
        self.ever = 0
        """All that was ever lent."""
        self.told: list[LoanFrame] = []
        self.peak = 0
        """The most that was held at once, in bytes beside the weights."""

    def hear(self) -> list[LoanFrame]:
        news = list(self.engine.news())
        self.told += news
        self.lent -= sum(frame.bytes for frame in news if isinstance(frame, Repaid))
        return news

    def lend(self, size: int) -> None:
        self.lent += size
        self.ever += size
        self.engine.lend(size)
        self.hear()

    def recall(self, size: int, *, park: bool = False) -> int:
        self.engine.recall(Recall(7, size, park))
        (answer,) = (frame for frame in self.hear() if isinstance(frame, Repaid))
        assert answer.recall == 7
        assert self.held <= self.budget
        return answer.bytes

    @property
    def budget(self) -> int:
        return self.allowance.room + self.lent

    @property
    def held(self) -> int:
        return mx.get_active_memory() + mx.get_cache_memory() - self.base

    def step(self) -> None:
        mx.reset_peak_memory()
        for job, frames in self.engine.step():
            job.sink.send(frames)
        used = max(mx.get_peak_memory() - self.base, self.held)
        self.peak = max(self.peak, used)
        assert used <= self.budget
        self.hear()

    def finish(self, each: Callable[[int], None] = lambda step: None) -> None:
        steps = 0
        while self.engine.busy:
            self.step()
            each(steps)
            steps += 1
            assert steps < 20_000


def runs(engine: BatchEngine, wanted: list[dict[str, Any]]) -> list[Run]:
    return [Run(engine, **each, ignore_eos=True) for each in wanted]


def tokens_of(made: list[Run]) -> list[Any]:
    """What requests are told, log probabilities nearly: their sums are made in another order in
    a batch of another shape."""
    return [[_rounded(frame) for frame in said(run.frames)] for run in made]


def _rounded(frame: FromEngine) -> Any:
    told = frame.logprobs if isinstance(frame, Token) else None
    if told is None:
        return frame
    each = [(one.id, _Near(one.value)) for one in (told.sampled, *told.top)]
    return msgspec.structs.replace(frame, logprobs=None), each


class _Near(float):
    """A log probability."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(float(self) - float(other)) < 1e-3

    __hash__ = float.__hash__


def unhurried(folder: Path, wanted: list[dict[str, Any]]) -> list[Any]:
    """What each request is told where there is room for all."""
    free = Lender(folder, 2**40)
    made = runs(free.engine, wanted)
    free.finish()
    free.engine.close()
    return tokens_of(made)
