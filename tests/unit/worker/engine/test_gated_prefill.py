"""worker.engine.batch with a prefill gate: a long prompt waits for its turn, nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.wire.frames import Allowance, Load, Progress, Repaid, WantsPrefill
from tests.helpers.engine_runs import PROMPTS, Run, alone, finish, said, start, step
from worker.engine import loan, prefill_turns, slices
from worker.engine.batch import BatchEngine

HEAVY = 150
LONG = "x" * 400
ASKS, DONE = [WantsPrefill(True)], [WantsPrefill(False)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices and what counts as long are smaller than in service, for speed."""
    monkeypatch.setattr(prefill_turns, "HEAVY_TOKENS", HEAVY)
    monkeypatch.setattr(slices, "PREFILL_STEP", 64)


@pytest.fixture
def gated(folder: Path) -> Iterator[BatchEngine]:
    engine, _ = start(folder, concurrency=2, prefill_gate=True)
    assert engine.news() == []
    yield engine
    engine.close()


def test_a_long_prompt_waits_and_short_ones_pass(gated: BatchEngine, engine: BatchEngine) -> None:
    long = Run(gated, LONG)
    assert gated.news() == ASKS
    finish(gated)
    short = [Run(gated, PROMPTS[1], seed=seed) for seed in range(3)]  # more than there are places
    finish(gated)
    assert [said(run.frames) for run in short] == [said(alone(engine, PROMPTS[1]).frames)] * 3
    assert (long.frames, gated.news()) == ([], [])
    gated.allow_prefill(True)
    finish(gated)
    assert said(long.frames) == said(alone(engine, LONG).frames)
    assert gated.news() == DONE


def test_it_stops_between_two_slices_and_goes_on_where_it_was(
    gated: BatchEngine, engine: BatchEngine
) -> None:
    long = Run(gated, LONG)
    assert gated.news() == ASKS
    gated.allow_prefill(True)
    step(gated)
    assert [type(frame) for frame in long.frames] == [Progress]
    gated.allow_prefill(False)
    assert gated.news() == ASKS
    finish(gated)
    assert len(long.frames) == 1
    gated.allow_prefill(True)
    while long.job in gated._generation._uids and gated._generation._prefilling:
        step(gated)
        if gated.news() == DONE:
            break
    assert not long.tokens  # its rest needs no turn
    gated.allow_prefill(False)
    finish(gated)
    assert said(long.frames) == said(alone(engine, LONG).frames)
    assert gated.news() == []


def test_decoding_goes_on_beside_one_that_waits(gated: BatchEngine) -> None:
    neighbour = Run(gated, PROMPTS[1])
    while not neighbour.tokens:
        step(gated)
    long = Run(gated, LONG)
    assert gated.news() == ASKS
    finish(gated)
    assert neighbour.end.completion_tokens == len(neighbour.tokens)
    gated.remove(long.job)
    assert gated.news() == []
    gated.allow_prefill(True)
    assert gated.news() == DONE


def test_one_that_has_no_place_yet_asks_for_none(gated: BatchEngine) -> None:
    decoding = [Run(gated, PROMPTS[1], seed=seed) for seed in range(2)]
    while not all(run.tokens for run in decoding):
        step(gated)
    long = Run(gated, LONG)
    assert gated.news() == []
    finish(gated)
    assert gated.news() == ASKS
    gated.remove(long.job)


def test_what_is_idle_goes_while_a_begun_prompt_waits_for_its_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BatchEngine()
    engine.warm_up()
    allowance = Allowance(64 * 2**20, 0)
    load = Load("m", 1, str(folder), "/unused", 2, 0, allowance, prefill_gate=True)
    engine.load(load, lambda done, total: None)
    engine.lend(4 * loan.LARGEST_STEP)
    long = Run(engine, LONG)
    assert WantsPrefill(True) in engine.news()
    engine.allow_prefill(True)
    step(engine)
    engine.allow_prefill(False)
    finish(engine)
    assert [type(frame) for frame in long.frames] == [Progress]  # it has begun
    assert engine.due
    engine.news()
    monkeypatch.setattr(loan, "IDLE_SECONDS", 0.0)
    engine.tidy()
    assert any(isinstance(frame, Repaid) for frame in engine.news())
    engine.allow_prefill(True)
    finish(engine)
    assert long.tokens
    engine.close()
