"""worker.engine.memory: real models in less memory than their requests would take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest

from supervisor.models.estimate import estimate
from supervisor.wire.frames import (
    Allowance,
    FromEngine,
    Load,
    LoanFrame,
    Recall,
    Repaid,
    Token,
)
from tests.helpers.engine_runs import Run, said
from tests.helpers.tiny_llama import Shape, make_model
from worker.engine.batch import BatchEngine

KINDS = ("llama", "gemma3_text", "granitemoehybrid")
"""Full attention; windows; state space layers."""
SHAPE = Shape(num_key_value_heads=4)
MB = 2**20
WANTED: list[dict[str, Any]] = [
    {"prompt": "word " * 20, "max_tokens": 50},
    {"prompt": "x" * 500, "max_tokens": 40},
    {"prompt": "a seeded one " * 19, "max_tokens": 80, "temperature": 0.9, "seed": 7},
    {"prompt": "0123456789" * 48, "max_tokens": 60, "logprobs": 3},
    {"prompt": "penalties " * 24, "max_tokens": 70, "frequency_penalty": 0.7},
    {"prompt": "naïve 模型 😀 " * 22, "max_tokens": 30},
    {"prompt": "short", "max_tokens": 90, "temperature": 0.7, "seed": 1, "top_p": 0.9},
    {"prompt": "y" * 490, "max_tokens": 60, "repetition_penalty": 1.3},
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    BatchEngine().warm_up()
    return make_model(tmp_path_factory.mktemp("m") / request.param, request.param, shape=SHAPE)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    BatchEngine().warm_up()
    return make_model(tmp_path_factory.mktemp("m") / "llama", "llama", shape=SHAPE)


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
        self.engine.lend(size)

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


def runs(engine: BatchEngine, wanted: list[dict[str, Any]] = WANTED) -> list[Run]:
    return [Run(engine, **each, ignore_eos=True) for each in wanted]


def tokens_of(made: list[Run]) -> list[Any]:
    """What requests are told, log probabilities to the last but two digits: their sums are made in
    another order in a batch of another shape."""
    return [[_rounded(frame) for frame in said(run.frames)] for run in made]


def _rounded(frame: FromEngine) -> Any:
    told = frame.logprobs if isinstance(frame, Token) else None
    if told is None:
        return frame
    each = [(one.id, one.raw, round(one.value, 3)) for one in (told.sampled, *told.top)]
    return msgspec.structs.replace(frame, logprobs=None), each


def unhurried(folder: Path, wanted: list[dict[str, Any]] = WANTED) -> tuple[list[Any], int]:
    """What each request is told where there is room for all, and how much that takes."""
    free = Lender(folder, 2**40)
    made = runs(free.engine, wanted)
    free.finish()
    free.engine.close()
    return tokens_of(made), free.peak


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[list[Any], int]:
    return unhurried(folder)


def parks(engine: BatchEngine) -> int:
    return len(engine._generation._parked)


# ── twice what may be held ───────────────────────────────────────────────────────────────────────


def room_of(folder: Path, share: float) -> int:
    """So much of what all of `WANTED` would take at their longest."""
    probe = Lender(folder, 2**40)
    demand = probe.engine._memory.demand
    waiting = runs(probe.engine)
    scene = probe.engine._generation._scene()
    longest = [
        type(each)(each.key, each.request, each.age, each.tokens + wanted["max_tokens"])
        for each, wanted in zip(scene.waiting, WANTED, strict=True)
    ]
    for run in waiting:
        probe.engine.remove(run.job)
    probe.engine.close()
    return int(demand.next(type(scene)(), longest) * share)


def test_an_oversubscribed_batch_answers_as_an_unhurried_one(
    folder: Path, expected: tuple[list[Any], int]
) -> None:
    tight = Lender(folder, room := room_of(folder, 0.5), limit=room)
    made = runs(tight.engine)
    parked = 0

    def count(step: int) -> None:
        nonlocal parked
        parked = max(parked, parks(tight.engine))

    tight.finish(count)
    print(parked, tight.peak, room)
    assert parked
    assert tokens_of(made) == expected[0]
    assert tight.told == []  # nothing more can be lent
    tight.engine.close()
