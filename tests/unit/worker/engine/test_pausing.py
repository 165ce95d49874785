"""worker.engine.batch: a pause; what it does to one that decodes is in test_resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engine_runs import PROMPTS, Run, alone, finish, said, says_a, start, step
from worker.engine.batch import BatchEngine
from worker.engine.slices import PREFILL_STEP

LONG = "x" * (2 * PREFILL_STEP + 100)


def pause(engine: BatchEngine, run: Run) -> None:
    if frames := engine.pause(run.job):
        run.send(frames)


def test_a_pause_reaches_those_that_have_no_token_yet(folder: Path) -> None:
    engine, _ = start(folder, concurrency=8)

    def choices() -> list[Run]:
        return [Run(engine, PROMPTS[1], temperature=0.9, seed=seed) for seed in range(16)]

    undisturbed = choices()
    finish(engine)
    runs = choices()
    while sum(bool(run.tokens) for run in runs) < 8:
        step(engine)
    assert (len(engine._generation._prefilling), len(engine._generation._queue)) == (0, 8)
    before = [len(run.tokens) for run in runs]
    for run in runs:
        pause(engine, run)
    finish(engine)
    assert all(len(run.tokens) <= told + 1 for run, told in zip(runs, before, strict=True))
    assert [bool(run.tokens) for run in runs] == [True] * 8 + [False] * 8
    for run in runs:
        engine.unpause(run.job)
    finish(engine)
    assert [said(run.frames) for run in runs] == [said(run.frames) for run in undisturbed]
    assert not engine._generation._pausing
    engine.close()


def test_a_long_prompt_pauses_with_its_first_token(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    undisturbed = alone(engine, LONG)
    run, neighbour = Run(engine, LONG), Run(engine, PROMPTS[1])
    while not run.frames:
        step(engine)
    pause(engine, run)
    finish(engine)
    assert run.tokens == undisturbed.tokens[:1]
    assert neighbour.tokens == reference[PROMPTS[1]][0]
    engine.unpause(run.job)
    finish(engine)
    assert said(run.frames) == said(undisturbed.frames)


def test_a_pause_that_is_over_before_the_first_token_is_none(engine: BatchEngine) -> None:
    undisturbed = alone(engine, LONG)
    run = Run(engine, LONG)
    while not run.frames:
        step(engine)
    pause(engine, run)
    engine.unpause(run.job)
    finish(engine)
    assert said(run.frames) == said(undisturbed.frames)


def test_a_first_token_that_the_generator_was_to_tell_is_told_by_the_pause(
    engine: BatchEngine,
) -> None:
    """It might have ended the sequence."""
    always = {
        "logit_bias": ((engine._serving.eos[0], 1000.0),),
        "ignore_eos": True,
        "max_tokens": 5,
    }
    undisturbed = alone(engine, LONG, **always)
    run = Run(engine, LONG, **always)
    while not run.frames:
        step(engine)
    pause(engine, run)
    finish(engine)
    assert run.tokens == [engine._serving.eos[0]]
    engine.unpause(run.job)
    finish(engine)
    assert said(run.frames) == said(undisturbed.frames)


@pytest.mark.parametrize("options", [{"max_tokens": 1}, {"stop": ("a",)}])
def test_one_that_ends_with_its_first_token_needs_no_pause(
    engine: BatchEngine, options: dict[str, Any]
) -> None:
    run = Run(engine, LONG, logit_bias=says_a(engine), **options)
    while not run.frames:
        step(engine)
    pause(engine, run)
    finish(engine)
    assert run.end.completion_tokens == 1


def test_a_queued_job_that_pauses_lets_the_others_by_and_keeps_its_place(folder: Path) -> None:
    engine, _ = start(folder, concurrency=1)
    begun: list[Run] = []
    first, second, third, fourth = runs = [Run(engine, "a", max_tokens=3) for _ in range(4)]
    pause(engine, first)
    pause(engine, third)

    def note_until(condition: Any) -> None:
        while not condition():
            step(engine)
            begun.extend(run for run in runs if run.tokens and run not in begun)

    note_until(lambda: begun)
    engine.unpause(first.job)
    note_until(lambda: not engine.busy)
    assert begun == [second, first, fourth]
    assert engine.step() == []  # as for an embedding's sake
    engine.unpause(third.job)
    note_until(lambda: not engine.busy)
    assert begun == [second, first, fourth, third]
    engine.close()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_job_that_is_to_pause_can_be_given_up(engine: BatchEngine, steps: int) -> None:
    run = Run(engine, LONG)
    for _ in range(steps):
        step(engine)
    pause(engine, run)
    assert engine.busy == bool(steps)
    engine.remove(run.job)
    assert not engine._generation._pausing
    pause(engine, run)
    assert not engine._generation._pausing
    assert not engine.busy
