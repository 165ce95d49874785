"""worker.engine.prompt_scores: what a prompt's tokens score, whatever they share their steps with.

The reference is one forward pass of the model over the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from supervisor.wire.frames import PROMPT_SLICE, End, Logprobs, Progress, PromptLogprobs, Token
from tests.helpers.engine_runs import PROMPTS, Run, alone, finish, says_a, start, step
from tests.helpers.tiny_llama import make_model
from worker.engine import prompt_scores
from worker.engine.batch import BatchEngine
from worker.engine.kv_cost import LEAST_PART, PART_BYTES
from worker.engine.prompt_scores import PromptScores, parts
from worker.engine.slices import PREFILL_STEP

LONG = "a prompt of several steps. " * 22
TOLERANCE = 1e-4
"""Of float32 sums in another order, where values are up to 50."""


def scored(run: Run) -> list[Logprobs]:
    """What was told of the prompt, in order and without a gap."""
    told: list[Logprobs] = []
    for frame in run.frames:
        if isinstance(frame, PromptLogprobs):
            assert frame.start == len(told)
            left = len(run.job.prompt) - frame.start
            assert len(frame.tokens) == min(PROMPT_SLICE, left)
            told.extend(frame.tokens)
    return told


def values(run: Run) -> list[float]:
    return [each.sampled.value for each in scored(run)[1:]]


def forward(model: Any, ids: Sequence[int]) -> mx.array:
    """Log probabilities of what follows each token, [tokens, vocabulary]."""
    logits = model(mx.array([list(ids)]))[0].astype(mx.float32)
    logprobs: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return logprobs


def expected(engine: BatchEngine, ids: Sequence[int]) -> list[float]:
    logprobs = forward(engine._serving.loaded.model, ids)
    rows: Any = logprobs.tolist()
    return [rows[at][token] for at, token in enumerate(ids[1:])]


@pytest.mark.parametrize("part_bytes", [PART_BYTES, 1])
@pytest.mark.parametrize("architecture", ["gemma3_text", "granitemoehybrid", "lfm2"])
def test_the_figures_are_those_of_one_forward_pass(
    architecture: str, part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and states, whose caches differ with what passes at once; rows of unequal lengths,
    among others that are not scored."""
    BatchEngine().warm_up()
    monkeypatch.setattr(prompt_scores, "PART_BYTES", part_bytes)
    engine, _ = start(make_model(tmp_path / "model", architecture))

    runs = [
        Run(engine, prompt, prompt_logprobs=count, logprobs=count, max_tokens=most)
        for prompt, count, most in zip(PROMPTS, (0, 1, 5, 20, 2), (1, 0, 3, 0, 2), strict=True)
    ]
    plain = Run(engine, "nobody asks for this one", max_tokens=4)
    finish(engine)

    assert len(plain.tokens) == 4
    for run, count in zip(runs, (0, 1, 5, 20, 2), strict=True):
        ids, told = list(run.job.prompt), scored(run)
        logprobs: Any = forward(engine._serving.loaded.model, ids).tolist()
        assert [each.sampled.id for each in told] == ids
        assert told[0].top == ()
        follows = [logprobs[at][token] for at, token in enumerate(ids[1:])]
        assert values(run) == pytest.approx(follows, abs=TOLERANCE)
        for at, each in enumerate(told[1:]):
            assert len(each.top) == count
            best = sorted(logprobs[at], reverse=True)[:count]
            assert [other.value for other in each.top] == pytest.approx(best, abs=TOLERANCE)
            for other in each.top:
                assert other.value == pytest.approx(logprobs[at][other.id], abs=TOLERANCE)
    engine.close()


def test_all_of_it_comes_before_the_first_token(engine: BatchEngine) -> None:
    run = alone(engine, LONG, prompt_logprobs=1, max_tokens=2)

    kinds = [type(frame) for frame in run.frames]
    assert kinds[-3:] == [Token, Token, End]
    assert set(kinds[:-3]) == {PromptLogprobs, Progress}
    assert values(run) == pytest.approx(expected(engine, run.job.prompt), abs=TOLERANCE)
    assert len(set(values(run))) > 20


def test_scoring_changes_nothing_of_the_output(engine: BatchEngine) -> None:
    plain, run = alone(engine, LONG), alone(engine, LONG, prompt_logprobs=5)

    assert run.tokens == plain.tokens
    assert len(set(plain.tokens)) > 20


def test_a_scored_prompt_takes_smaller_steps_among_others(engine: BatchEngine) -> None:
    runs = [Run(engine, LONG, prompt_logprobs=0, max_tokens=0) for _ in range(4)]

    told = []
    while engine.busy:
        step(engine)
        told.append(engine.prefill[0])
    steps = [after - before for before, after in pairwise([0, *told])]
    assert max(steps) <= PREFILL_STEP
    assert all(len(scored(run)) == len(run.job.prompt) for run in runs)


@pytest.mark.parametrize("prompt", ["a", LONG])
def test_without_output_it_ends_with_its_prompt(engine: BatchEngine, prompt: str) -> None:
    run = alone(engine, prompt, prompt_logprobs=2, max_tokens=0)

    assert run.tokens == []
    assert len(scored(run)) == len(run.job.prompt)
    assert run.end == End("length", len(run.job.prompt), 0)
    assert not engine._generation._prefilling


def test_without_output_or_scores_there_is_nothing_to_do(engine: BatchEngine) -> None:
    request = Run(engine, "a", prompt_logprobs=0, max_tokens=0).job.request
    finish(engine)
    for known in ({"prompt_logprobs": None}, {"scored": 1}):
        prepared = engine.prepare(type(request)(**{**_fields(request), **known}))
        assert prepared.end == End("length", 1, 0)


def test_a_prompt_may_fill_the_context_where_nothing_follows(folder: Path) -> None:
    engine, _ = start(folder, context=16)
    run = alone(engine, "0123456789abcdef", prompt_logprobs=0, max_tokens=0)

    assert len(scored(run)) == 16
    with pytest.raises(Exception, match="maximum context length is 16 tokens"):
        Run(engine, "0123456789abcdef", max_tokens=1)
    engine.close()


def test_another_worker_goes_on_where_the_first_one_was(engine: BatchEngine) -> None:
    whole = alone(engine, LONG, prompt_logprobs=3, max_tokens=2)
    for told in (PROMPT_SLICE, 3 * PROMPT_SLICE, len(whole.job.prompt)):
        rest = alone(engine, LONG, prompt_logprobs=3, scored=told, max_tokens=2)
        frames = [frame for frame in rest.frames if isinstance(frame, PromptLogprobs)]
        tokens = [token for frame in frames for token in frame.tokens]
        assert [frame.start for frame in frames][:1] == [told][: len(frames)]
        assert [each.sampled.id for each in tokens] == list(whole.job.prompt)[told:]
        found = [each.sampled.value for each in tokens]
        assert found == pytest.approx(values(whole)[told - 1 :], abs=TOLERANCE)
        assert rest.tokens == whole.tokens
    # With the first token of the output all of it has been told.
    resumed = alone(engine, LONG, prompt_logprobs=3, emitted=tuple(whole.tokens[:1]), max_tokens=2)
    assert scored(resumed) == []
    assert resumed.tokens == whole.tokens[1:]


def test_one_that_is_parked_in_its_prompt_is_scored_to_its_end(engine: BatchEngine) -> None:
    older = Run(engine, LONG, max_tokens=3)
    runs = [Run(engine, LONG, prompt_logprobs=1, max_tokens=most) for most in (3, 0)]
    step(engine)
    assert len(engine._generation._prefilling) == 3
    engine.limit(1)
    step(engine)
    assert len(engine._generation._parked) == 2
    finish(engine)
    engine.limit(0)

    assert len(older.tokens) == 3
    assert [len(scored(run)) for run in runs] == [len(run.job.prompt) for run in runs]
    assert [len(run.tokens) for run in runs] == [3, 0]


def test_one_that_is_cancelled_in_its_prompt_leaves_the_others_alone(engine: BatchEngine) -> None:
    runs = [Run(engine, LONG + str(i), prompt_logprobs=1, max_tokens=0) for i in range(3)]
    step(engine)
    assert engine._generation._prefilling
    engine.remove(runs[0].job)
    finish(engine)

    assert not any(isinstance(frame, End) for frame in runs[0].frames)
    for run in runs[1:]:
        assert values(run) == pytest.approx(expected(engine, run.job.prompt), abs=TOLERANCE)


def test_the_end_of_sequence_is_told_to_those_who_count_tokens(engine: BatchEngine) -> None:
    eos = engine._serving.eos[0]
    bias = {"logit_bias": ((eos, 1000.0),), "logprobs": 1, "max_tokens": 1}
    run, plain = alone(engine, "ab", prompt_logprobs=1, **bias), alone(engine, "ab", **bias)

    assert plain.tokens == []
    (token,) = (frame for frame in run.frames if isinstance(frame, Token))
    assert (token.id, token.text) == (eos, "")
    assert token.logprobs is not None
    assert token.logprobs.sampled.id == eos
    assert run.end == plain.end == End("stop", 2, 0)
    # And another worker, to which all of the prompt has been told, does the same.
    resumed = alone(engine, "ab", prompt_logprobs=1, scored=2, **bias)
    assert [type(frame) for frame in resumed.frames] == [Token, End]


def test_biases_are_not_the_prompts(engine: BatchEngine) -> None:
    biased = alone(engine, "abc", prompt_logprobs=0, logit_bias=says_a(engine), max_tokens=0)
    assert values(biased) == pytest.approx(expected(engine, biased.job.prompt), abs=TOLERANCE)


@pytest.mark.parametrize("total", [1, 2, 9, 10, 13, 57, 73, 421, 512])
@pytest.mark.parametrize("vocabulary", [50, 300_000])
def test_parts_hold_everything_and_no_single_token(total: int, vocabulary: int) -> None:
    rows = [list(range(total)), list(range(total // 2)), [7]]
    scores = PromptScores(rows[0], 0, vocabulary=vocabulary, told=0)

    found = list(parts(rows, [scores, None, None], PREFILL_STEP))

    assert [[id for part in found for id in part[at]] for at in range(3)] == rows
    widest = [max(map(len, part)) for part in found]
    assert all(width > 1 for width in widest) or total == 1
    if vocabulary == 300_000:
        fitting = max(LEAST_PART, PART_BYTES // (4 * 3 * vocabulary))
        assert max(widest) <= fitting
    else:
        assert widest == [total]


def _fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}
