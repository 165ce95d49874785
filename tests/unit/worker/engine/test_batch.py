"""worker.engine.batch: prompts of a small random model together give what each gives alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest

from supervisor.wire.frames import End, Progress
from tests.helpers.engine_runs import PROMPTS, TOKENS, Run, alone, finish, start, step
from worker.engine.batch import BatchEngine
from worker.engine.slices import ALONE_SECONDS, ALONE_TOKENS, PREFILL_STEP

# ── how far prompts are ──────────────────────────────────────────────────────────────────────────


def test_a_prefill_is_told_from_the_request_s_arrival_to_its_first_token(
    engine: BatchEngine,
) -> None:
    assert engine.prefill == (0, 0)
    long, short = Run(engine, "word " * (PREFILL_STEP // 2), max_tokens=2), Run(engine, "word")
    sizes = len(long.job.prompt), len(short.job.prompt)
    assert engine.prefill == (0, sum(sizes))  # both wait
    seen = []
    while not long.tokens:
        step(engine)
        seen.append(engine.prefill)
    assert seen[0][0] >= ALONE_TOKENS
    assert [done for done, _ in seen[:-1]] == sorted(done for done, _ in seen[:-1])
    assert len(set(seen)) >= 3
    assert {total for _, total in seen[:-1]} <= {sum(sizes), sizes[0]}
    assert seen[-1] == (0, 0)
    finish(engine)


def test_who_leaves_is_not_prefilled_any_more(engine: BatchEngine) -> None:
    runs = [Run(engine, "word " * (PREFILL_STEP // 2)) for _ in range(2)]
    step(engine)
    engine.remove(runs[1].job)
    done, total = engine.prefill
    assert 0 < done < total == len(runs[0].job.prompt)
    engine.remove(runs[0].job)
    assert engine.prefill == (0, 0)


# ── slices ───────────────────────────────────────────────────────────────────────────────────────


class Machine:
    """A clock by which prompts and decode steps take what a machine would: `rate` prompt tokens a
    second, `step` seconds. It notes the seconds of every slice and step."""

    def __init__(self, rate: float, step: float) -> None:
        self.now, self._rate, self._step = 0.0, rate, step
        self.noted: list[tuple[str, float]] = []

    def __call__(self) -> float:
        return self.now

    def drive(self, engine: BatchEngine) -> None:
        sequences: Any = engine._generation.sequences
        prefill, decode = sequences.prefill, sequences.decode

        def slowly(sizes: dict[int, int]) -> None:
            prefill(sizes)
            self._take("slice", len(sizes) * max(sizes.values()) / self._rate)

        def step() -> Any:
            self._take("step", self._step)
            return decode()

        sequences.prefill, sequences.decode = slowly, step

    def _take(self, what: str, seconds: float) -> None:
        self.now += seconds
        self.noted.append((what, seconds))

    def slices(self) -> list[float]:
        return [seconds for what, seconds in self.noted if what == "slice"]


@pytest.fixture
def machine(folder: Path) -> Iterator[tuple[BatchEngine, Machine]]:
    clock = Machine(rate=2000, step=0.002)
    engine, _ = start(folder, clock=clock)
    clock.drive(engine)
    yield engine, clock
    engine.close()


def test_while_others_decode_a_prompt_goes_in_slices_of_time(
    machine: tuple[BatchEngine, Machine], reference: dict[str, tuple[list[int], str]]
) -> None:
    engine, clock = machine
    alone(engine, "word " * 400, max_tokens=3)
    assert 0.15 < max(clock.slices()) <= ALONE_SECONDS  # nobody waited
    neighbour = Run(engine, PROMPTS[1])
    while len(neighbour.tokens) < 5:
        step(engine)
    clock.noted.clear()
    long = Run(engine, PROMPTS[4])
    while not long.tokens:
        step(engine)
    assert 0.04 < max(clock.slices()) <= 0.06
    kinds = [what for what, _ in clock.noted]
    assert ("slice", "slice") not in set(pairwise(kinds))  # each waits for one slice
    finish(engine)
    assert (long.tokens, neighbour.tokens) == (reference[PROMPTS[4]][0], reference[PROMPTS[1]][0])


def test_a_short_prompt_behind_a_long_one_starts_within_two_slices(
    machine: tuple[BatchEngine, Machine],
) -> None:
    engine, clock = machine
    long = Run(engine, "word " * 800, max_tokens=2)
    for _ in range(3):
        step(engine)
    before = len(clock.slices())
    short = Run(engine, "word", max_tokens=40)
    while not short.tokens:
        step(engine)
    assert len(clock.slices()) - before <= 2
    assert not long.tokens
    finish(engine)
    assert long.end.completion_tokens == 2


def test_a_first_token_comes_with_its_slice_unless_other_prompts_wait(
    machine: tuple[BatchEngine, Machine],
) -> None:
    """Else the slice of another would follow it, and the second token come two steps later."""
    engine, _ = machine
    run = Run(engine, "word", max_tokens=40)
    while not run.tokens:
        step(engine)
    assert engine._last.name == "PREFILL"
    finish(engine)
    long = Run(engine, "word " * 800, max_tokens=2)
    for _ in range(3):
        step(engine)
    run = Run(engine, "word", max_tokens=40)
    while not run.tokens:
        step(engine)
    assert engine._last.name == "DECODE"
    assert not long.tokens
    finish(engine)
    assert len(run.tokens) == 40


def test_prompts_and_embeddings_take_turns_beside_those_who_decode(
    machine: tuple[BatchEngine, Machine],
) -> None:
    engine, _ = machine
    turns = []
    neighbour = Run(engine, PROMPTS[1])
    while not neighbour.tokens:
        step(engine)
    long = Run(engine, "word " * 400, max_tokens=2)
    embedder, engine._embedder = engine._embedder, cast(Any, _AlwaysBusy())
    for _ in range(8):
        step(engine)
        turns.append(engine._last.name)
    engine._embedder = embedder
    assert turns[:4] in (
        ["PREFILL", "DECODE", "EMBED", "DECODE"],
        ["DECODE", "PREFILL", "DECODE", "EMBED"],
        ["DECODE", "EMBED", "DECODE", "PREFILL"],
        ["EMBED", "DECODE", "PREFILL", "DECODE"],
    )
    assert turns[4:] == turns[:4]
    engine.remove(long.job)
    engine.remove(neighbour.job)


class _AlwaysBusy:
    """An embedder with work that never ends."""

    busy = True

    def step(self, memory: Any, seconds: float) -> list[Any]:
        return []


# ── the same as alone ────────────────────────────────────────────────────────────────────────────


def test_the_text_wanders_enough_to_prove_something(
    reference: dict[str, tuple[list[int], str]],
) -> None:
    for tokens, _ in reference.values():
        assert len(tokens) == TOKENS
        assert len(set(tokens)) >= 20
    assert len({tuple(tokens) for tokens, _ in reference.values()}) == len(PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_one_prompt_gives_what_mlx_lm_gives(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]], prompt: str
) -> None:
    run = alone(engine, prompt)
    assert (run.tokens, run.text) == reference[prompt]
    assert run.end == End("length", len(run.job.prompt), TOKENS)


def test_many_prompts_together_give_what_each_gives_alone(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    runs = [Run(engine, prompt) for prompt in PROMPTS]
    finish(engine)
    for prompt, run in zip(PROMPTS, runs, strict=True):
        assert (run.tokens, run.text) == reference[prompt]


def test_those_who_join_and_leave_change_nothing_for_the_others(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    runs = []
    leaver = Run(engine, "somebody who leaves")
    for prompt in PROMPTS:
        runs.append(Run(engine, prompt))
        for _ in range(3):
            step(engine)
    engine.remove(leaver.job)
    given = len(leaver.frames)
    finish(engine)
    assert len(leaver.frames) == given
    for prompt, run in zip(PROMPTS, runs, strict=True):
        assert (run.tokens, run.text) == reference[prompt]


def test_more_jobs_than_places_are_all_served(
    folder: Path, reference: dict[str, tuple[list[int], str]]
) -> None:
    engine, _ = start(folder, concurrency=2)
    runs = [Run(engine, prompt) for prompt in PROMPTS]
    finish(engine)
    for prompt, run in zip(PROMPTS, runs, strict=True):
        assert run.tokens == reference[prompt][0]
    engine.close()


def test_choices_of_one_request_let_another_in(folder: Path) -> None:
    """They come with ids of their own, as the gateway names them."""
    engine, _ = start(folder, concurrency=4)
    many = [Run(engine, PROMPTS[0], name=f"many#{number}") for number in range(8)]
    step(engine)
    one = Run(engine, PROMPTS[1], name="one", max_tokens=2)
    while not one.tokens:
        step(engine)
    assert not any(isinstance(run.frames[-1], End) for run in many if run.frames)
    finish(engine)
    assert {run.end.finish_reason for run in many} == {many[0].end.finish_reason}
    assert len({tuple(run.tokens) for run in many}) == 1
    engine.close()


def test_no_answer_is_longer_than_the_makers_say(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m/generation_config.json").write_text(
        '{"do_sample": false, "max_answer_tokens": 7}'
    )
    engine, _ = start(tmp_path / "m")
    free = alone(engine, PROMPTS[1], max_tokens=None, ignore_eos=True)
    asked = alone(engine, PROMPTS[1], max_tokens=9, ignore_eos=True)
    resumed = alone(
        engine, PROMPTS[1], max_tokens=9, ignore_eos=True, emitted=tuple(free.tokens[:5])
    )
    shorter = alone(engine, PROMPTS[1], max_tokens=3, ignore_eos=True)
    assert [len(run.tokens) for run in (free, asked, resumed, shorter)] == [7, 7, 2, 3]
    assert {run.end.finish_reason for run in (free, asked, resumed, shorter)} == {"length"}
    assert free.tokens == asked.tokens == [*free.tokens[:5], *resumed.tokens]
    engine.close()


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10])
def test_a_cancelled_job_frees_what_it_held(engine: BatchEngine, steps: int) -> None:
    run = Run(engine, PROMPTS[4])  # of two prefill steps
    for _ in range(steps):
        step(engine)
    busy = [engine.busy]
    engine.remove(run.job)
    step(engine)  # what it leaves is decided once
    assert [*busy, engine.busy] == [True, False]
    assert engine._generation.sequences.nbytes == 0
    engine.remove(run.job)


def test_removing_a_job_that_has_ended_is_nothing(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    ended = alone(engine, PROMPTS[0], max_tokens=2)
    running = Run(engine, PROMPTS[1])
    step(engine)
    engine.remove(ended.job)
    finish(engine)
    assert running.tokens == reference[PROMPTS[1]][0]


def test_a_long_prompt_tells_its_progress(engine: BatchEngine) -> None:
    run = alone(engine, "x" * (2 * PREFILL_STEP + 100), max_tokens=2)
    told = [frame for frame in run.frames if isinstance(frame, Progress)]
    total = 2 * PREFILL_STEP + 100
    done = [0, *(progress.done for progress in told), total]
    assert all(ALONE_TOKENS <= b - a <= PREFILL_STEP for a, b in pairwise(done[:-1]))
    assert {progress.total for progress in told} == {total}
    assert run.frames[: len(told)] == told
    assert all(progress.done < total for progress in told)


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────


def sampled(engine: BatchEngine, options: Sequence[dict[str, Any]]) -> list[list[int]]:
    mx.random.seed(1)
    runs = [Run(engine, PROMPTS[1], **each) for each in options]
    finish(engine)
    return [run.tokens for run in runs]


def test_a_temperature_samples_and_zero_does_not(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    greedy = reference[PROMPTS[1]][0]
    asked = [{"temperature": 2.0, "seed": 1}, {"temperature": 0.0}, {"temperature": 2.0}, {}]
    hot, cold, hot_too, default = sampled(engine, asked)
    assert cold == default == greedy
    assert hot != greedy
    assert hot != hot_too


def test_a_tiny_top_p_leaves_the_likeliest_alone(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    (tokens,) = sampled(engine, [{"temperature": 1.0, "top_p": 1e-6}])
    assert tokens == reference[PROMPTS[1]][0]


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


def test_a_load_measures_and_a_close_gives_back(folder: Path) -> None:
    before = mx.get_active_memory()
    engine, loaded = start(folder)
    weights = (folder / "model.safetensors").stat().st_size
    assert loaded.memory_bytes - before > 0.9 * weights
    alone(engine, PROMPTS[1])
    engine.close()
    assert mx.get_active_memory() - before < 0.1 * weights
    assert mx.get_cache_memory() == 0
    assert not engine.busy
