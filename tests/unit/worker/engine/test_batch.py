"""worker.engine.batch: continuous batching of a small random model gives what each prompt gives
alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from supervisor.wire.frames import (
    End,
    Failed,
    FromEngine,
    Generate,
    Load,
    Progress,
    Sampling,
    Structure,
    Text,
    Token,
)
from tests.helpers.tiny_llama import make_llama
from worker.engine.batch import PREFILL_STEP, BatchEngine
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
        request = Generate("r", Text(prompt), 1.0, sampling=Sampling(**sampling), **options)
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
    folder: Path, *, context: int = 0, concurrency: int = 8
) -> tuple[BatchEngine, LoadResult]:
    engine = BatchEngine()
    engine.warm_up()
    load = Load("m", 1, str(folder), "/unused", concurrency, context)
    return engine, engine.load(load, lambda done, total: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    BatchEngine().warm_up()
    return make_llama(tmp_path_factory.mktemp("batch") / "model")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[BatchEngine]:
    engine, _ = start(folder)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: BatchEngine) -> Iterator[BatchEngine]:
    """The shared engine; whatever a test did, nothing may be left in it."""
    yield shared
    assert not shared.busy
    assert not any([shared._queue, shared._paused, shared._pausing])
    assert shared._generator.prompt_cache_nbytes == 0


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Tokens and text of each prompt by mlx-lm's own loop, one prompt at a time, greedily."""
    from mlx_lm import stream_generate, utils

    load: Any = utils.load
    model, tokenizer = load(str(folder))
    found = {}
    for prompt in PROMPTS:
        responses = list(stream_generate(model, tokenizer, prompt, max_tokens=TOKENS))
        tokens = [response.token for response in responses]
        found[prompt] = (tokens, "".join(response.text for response in responses))
    return found


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


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_tokens_ends_a_job(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]], limit: int
) -> None:
    run = alone(engine, PROMPTS[1], max_tokens=limit)
    assert run.tokens == reference[PROMPTS[1]][0][:limit]
    assert run.end == End("length", len(PROMPTS[1]), limit)


@pytest.mark.parametrize("limit", [None, 30, 1000])
def test_the_context_bounds_prompt_and_answer_together(folder: Path, limit: int | None) -> None:
    engine, loaded = start(folder, context=64)
    assert loaded.context == 64
    run = alone(engine, "x" * 40, max_tokens=limit)
    assert run.end == End("length", 40, 24)
    assert len(run.tokens) == 24
    engine.close()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_that_ends_inside_the_text_cuts_it(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]], length: int
) -> None:
    """Every token is a byte here, so longer stops span tokens."""
    _, text = reference[PROMPTS[0]]
    stop = text[20 : 20 + length]
    run = alone(engine, PROMPTS[0], stop=("never said", stop))
    assert run.text == text[: text.find(stop)]
    assert run.end.finish_reason == "stop"
    assert run.end.completion_tokens == len(run.tokens) < TOKENS


def test_a_stop_string_ends_its_own_job_alone(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    _, text = reference[PROMPTS[0]]
    stopped = Run(engine, PROMPTS[0], stop=(text[5:7],))
    other = Run(engine, PROMPTS[1])
    finish(engine)
    assert stopped.end.finish_reason == "stop"
    assert (other.tokens, other.text) == reference[PROMPTS[1]]


def says_a(engine: BatchEngine) -> tuple[tuple[int, float], ...]:
    """A bias under which every token is the text `a`."""
    (token,) = engine.prepare(Generate("r", Text("a"), 1.0)).prompt
    return ((token, 1000.0),)


def test_one_that_ends_with_its_first_token_leaves_the_others_theirs(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    stopped = Run(engine, "of the same group", stop=("a",), logit_bias=says_a(engine))
    others = [Run(engine, prompt) for prompt in PROMPTS[1:4]]
    finish(engine)
    assert (stopped.end.finish_reason, stopped.end.completion_tokens) == ("stop", 1)
    assert [run.tokens for run in others] == [reference[prompt][0] for prompt in PROMPTS[1:4]]


def test_text_that_is_held_back_for_a_stop_comes_out_at_the_end(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]]
) -> None:
    _, text = reference[PROMPTS[1]]
    run = alone(engine, PROMPTS[1], stop=(text[-3:] + "never said",))
    assert run.text == text
    assert run.end.finish_reason == "length"


@pytest.fixture(scope="module")
def ending(
    folder: Path, reference: dict[str, tuple[list[int], str]], tmp_path_factory: Any
) -> Iterator[tuple[BatchEngine, int]]:
    """The same model, for which a token that PROMPTS[0] leads to is the end of the sequence, and
    how many tokens come before it."""
    tokens, _ = reference[PROMPTS[0]]
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("ending") / "model"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "eos_token_id": tokens[10]}))
    engine, _ = start(copy)
    yield engine, tokens.index(tokens[10])
    engine.close()


def test_the_end_of_sequence_ends_a_job_and_is_not_counted(
    ending: tuple[BatchEngine, int], reference: dict[str, tuple[list[int], str]]
) -> None:
    engine, before = ending
    run = alone(engine, PROMPTS[0])
    assert run.end == End("stop", len(PROMPTS[0]), before)
    assert run.tokens[:before] == reference[PROMPTS[0]][0][:before]
    assert reference[PROMPTS[0]][1].startswith(run.text.rstrip("\ufffd"))


def test_the_end_of_sequence_can_be_ignored(
    ending: tuple[BatchEngine, int], reference: dict[str, tuple[list[int], str]]
) -> None:
    engine, _ = ending
    run = alone(engine, PROMPTS[0], ignore_eos=True)
    assert run.tokens == reference[PROMPTS[0]][0]
    assert run.end == End("length", len(PROMPTS[0]), TOKENS)


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10])
def test_a_cancelled_job_frees_what_it_held(engine: BatchEngine, steps: int) -> None:
    run = Run(engine, PROMPTS[4])  # of two prefill steps
    for _ in range(steps):
        step(engine)
    busy = [engine.busy]
    engine.remove(run.job)
    assert [*busy, engine.busy] == [True, False]
    assert engine._generator.prompt_cache_nbytes == 0
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
    assert [progress.done for progress in told][:2] == [PREFILL_STEP, 2 * PREFILL_STEP]
    assert {progress.total for progress in told} == {total}
    assert run.frames[: len(told)] == told
    assert all(progress.done < total for progress in told)


# ── pausing; what it does to one that decodes: test_resuming ──────────────────────────────────────

LONG = "x" * (2 * PREFILL_STEP + 100)


def pause(engine: BatchEngine, run: Run) -> None:
    if frames := engine.pause(run.job):
        run.send(frames)


@pytest.mark.parametrize(("concurrency", "prefilling"), [(8, False), (16, True)])
def test_a_pause_reaches_those_that_have_no_token_yet(
    folder: Path, concurrency: int, prefilling: bool
) -> None:
    engine, _ = start(folder, concurrency=concurrency)

    def choices() -> list[Run]:
        return [Run(engine, PROMPTS[1], temperature=0.9, seed=seed) for seed in range(16)]

    undisturbed = choices()
    finish(engine)
    runs = choices()
    while sum(bool(run.tokens) for run in runs) < 8:
        step(engine)
    if prefilling:
        step(engine)
    assert (len(engine._prefilling), len(engine._queue)) == ((8, 0) if prefilling else (0, 8))
    before = [len(run.tokens) for run in runs]
    for run in runs:
        pause(engine, run)
    finish(engine)
    assert all(len(run.tokens) <= told + 1 for run, told in zip(runs, before, strict=True))
    assert [bool(run.tokens) for run in runs] == [True] * 8 + [prefilling] * 8
    for run in runs:
        engine.unpause(run.job)
    finish(engine)
    assert [run.frames for run in runs] == [run.frames for run in undisturbed]
    assert not engine._pausing
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
    assert run.frames == undisturbed.frames


def test_a_pause_that_is_over_before_the_first_token_is_none(engine: BatchEngine) -> None:
    undisturbed = alone(engine, LONG)
    run = Run(engine, LONG)
    while not run.frames:
        step(engine)
    pause(engine, run)
    engine.unpause(run.job)
    finish(engine)
    assert run.frames == undisturbed.frames


def test_a_first_token_that_the_generator_was_to_tell_is_told_by_the_pause(
    engine: BatchEngine,
) -> None:
    """It might have ended the sequence."""
    always = {"logit_bias": ((engine._eos[0], 1000.0),), "ignore_eos": True, "max_tokens": 5}
    undisturbed = alone(engine, LONG, **always)
    run = Run(engine, LONG, **always)
    while not run.frames:
        step(engine)
    pause(engine, run)
    finish(engine)
    assert run.tokens == [engine._eos[0]]
    engine.unpause(run.job)
    finish(engine)
    assert run.frames == undisturbed.frames


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
    assert not engine._pausing
    pause(engine, run)
    assert not engine._pausing
    assert not engine.busy


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


# ── grammars ─────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_that_its_grammar_leaves_unfinished_is_an_error(engine: BatchEngine) -> None:
    """It is neither cut without a word nor taken for whole, and its neighbours notice nothing."""
    schema = Structure('{"const": [1, 2, 3]}')
    dead, whole, plain = (
        Run(engine, "a", structure=schema),
        Run(engine, "b", structure=schema),
        Run(engine, "c"),
    )
    step(engine)
    grammar: Any = dead.job.prepared.constraint
    grammar.push(10**9)  # what no grammar allows
    finish(engine)
    last = dead.frames[-1]
    assert isinstance(last, Failed)
    assert (last.code, last.param) == ("unsupported_value", "response_format")
    assert not any(isinstance(frame, End) for frame in dead.frames)
    assert json.loads(whole.text) == [1, 2, 3]
    assert whole.end.finish_reason == "stop"
    assert plain.end.finish_reason == "length"


def test_a_model_that_may_end_only_with_a_whole_answer_does(engine: BatchEngine) -> None:
    """A special token's text in a constant was a dead end."""
    run = alone(engine, "a", structure=Structure('{"const": "a<|end|>b"}'))
    assert json.loads(run.text) == "a<|end|>b"
    assert run.end.finish_reason == "stop"
