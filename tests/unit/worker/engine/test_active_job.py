"""worker.engine.active_job: what a token means for its request, and how its output ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.wire.frames import End, Failed, Schema, Token
from tests.helpers.engine_runs import PROMPTS, TOKENS, Run, alone, finish, says_a, start, step
from worker.engine.batch import BatchEngine


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_tokens_ends_a_job(
    engine: BatchEngine, reference: dict[str, tuple[list[int], str]], limit: int
) -> None:
    run = alone(engine, PROMPTS[1], max_tokens=limit)
    assert run.tokens == reference[PROMPTS[1]][0][:limit]
    assert run.end == End("length", len(PROMPTS[1]), limit)


def test_what_an_answer_begins_with_is_its_first_token(engine: BatchEngine) -> None:
    """Also if that is a space, and the stop string begins with it."""
    spaces = {"logit_bias": says_a(engine, " "), "max_tokens": 4}
    run = alone(engine, "def f():", echo=True, logprobs=0, **spaces)
    told = [frame for frame in run.frames if isinstance(frame, Token)]
    assert run.job.prepared.echo + run.text == "def f():    "
    assert [(frame.text, frame.logprobs.sampled.raw) for frame in told if frame.logprobs] == (
        [(" ", b" ")] * 4
    )
    resumed = alone(engine, "def f():", emitted=tuple(run.tokens[:1]), **spaces)
    assert resumed.text == "   "
    stopped = alone(engine, "def f():", stop=("  ",), **spaces)
    assert (stopped.text, stopped.end.finish_reason) == ("", "stop")


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
    assert (run.end.finish_reason, run.end.stop) == ("stop", stop)
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


def test_an_answer_that_its_grammar_leaves_unfinished_is_an_error(engine: BatchEngine) -> None:
    """It is neither cut without a word nor taken for whole, and its neighbours notice nothing."""
    schema = Schema('{"const": [1, 2, 3]}')
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
    run = alone(engine, "a", structure=Schema('{"const": "a<|end|>b"}'))
    assert json.loads(run.text) == "a<|end|>b"
    assert run.end.finish_reason == "stop"
