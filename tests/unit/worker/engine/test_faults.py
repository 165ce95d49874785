"""worker.engine: what fails in one request, beside others that go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supervisor.wire.frames import Failed, Pattern
from tests.helpers.engine_runs import PROMPTS, Run, finish, start, step
from worker.engine import decoding
from worker.engine.batch import BatchEngine
from worker.engine.decoding import BatchDecoder, Ints
from worker.engine.rows import TokenLogprobs
from worker.engine.thread import Prepared
from worker.output.transcript import Transcript

LETTERS = Pattern("[a-z]{60}", "pattern")
SECRET = "a secret of the prompt"
References = dict[str, tuple[list[int], str]]


class Failing:
    """Does as `real` does, until `name` has been asked for `after` times: then it fails."""

    def __init__(self, real: Any, name: str, after: int) -> None:
        self._real, self._name, self._left = real, name, after

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            self._left -= 1
            if self._left < 0:
                raise KeyError(SECRET)
        return getattr(self._real, name)


def spoil(run: Run, part: str, name: str, after: int) -> None:
    """Have a part of what was prepared for a request fail."""
    fields = {each: getattr(run.job.prepared, each) for each in Prepared.__dataclass_fields__}
    fields[part] = Failing(fields[part], name, after)
    run.job.prepared = Prepared(**fields)


def check(engine: BatchEngine, bad: Run, reference: References, caplog: Any) -> None:
    """`bad` ends with an error, and what is beside it as if alone."""
    beside = [Run(engine, prompt) for prompt in PROMPTS[:3]]
    with caplog.at_level(logging.ERROR, "bulkhead.worker"):
        finish(engine)
    assert isinstance(bad.frames[-1], Failed), bad.frames[-1:]
    assert bad.frames[-1].code == "internal_error"
    assert "KeyError" in bad.frames[-1].message
    assert not any(isinstance(frame, Failed) for frame in bad.frames[:-1])
    for run, prompt in zip(beside, PROMPTS, strict=False):
        assert (run.tokens, run.text) == reference[prompt]
    (line,) = [record.getMessage() for record in caplog.records if "ends with" in record.msg]
    assert line.startswith("request r ends with KeyError")
    assert "test_faults.py" in line
    assert SECRET not in line + bad.frames[-1].message


@pytest.mark.parametrize("after", [0, 1, 7])
def test_its_text(
    engine: BatchEngine, reference: References, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    bad = Run(engine, PROMPTS[3])
    spoil(bad, "transcript", "push", after)
    check(engine, bad, reference, caplog)
    assert len(bad.tokens) == after


def test_the_end_of_its_text(
    engine: BatchEngine, reference: References, caplog: pytest.LogCaptureFixture
) -> None:
    """Where tool parsers read what has come."""
    bad = Run(engine, PROMPTS[3], max_tokens=9)
    spoil(bad, "transcript", "finish", 0)
    check(engine, bad, reference, caplog)
    assert len(bad.tokens) == 8


@pytest.mark.parametrize("name", ["push", "binds", "active_matcher", "finish_mask"])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_its_grammar(
    engine: BatchEngine,
    reference: References,
    caplog: pytest.LogCaptureFixture,
    name: str,
    after: int,
) -> None:
    sound = Run(engine, PROMPTS[3], structure=LETTERS, temperature=0.7, seed=4)
    finish(engine)
    bad = Run(engine, PROMPTS[3], structure=LETTERS)
    beside = Run(engine, PROMPTS[3], structure=LETTERS, temperature=0.7, seed=4)
    spoil(bad, "constraint", name, after)
    check(engine, bad, reference, caplog)
    assert len(bad.tokens) <= after + 1
    assert beside.tokens == sound.tokens
    assert len(set(sound.tokens)) > 5


def test_its_log_probabilities(
    engine: BatchEngine,
    reference: References,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def top(self: TokenLogprobs) -> Any:
        raise KeyError(SECRET)

    monkeypatch.setattr(TokenLogprobs, "top", property(top))
    check(engine, Run(engine, PROMPTS[3], logprobs=2), reference, caplog)


def test_its_beginning(
    engine: BatchEngine, reference: References, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Run(engine, PROMPTS[3], prompt_logprobs=1)
    bad.job.prepared = Prepared(_Unreadable(), transcript=bad.job.prepared.transcript)
    check(engine, bad, reference, caplog)


class _Unreadable(Sequence[int]):
    """A prompt whose length is all that can be read."""

    def __len__(self) -> int:
        return 19

    def __getitem__(self, at: Any) -> Any:
        raise KeyError(SECRET)


@pytest.mark.parametrize("part", [("transcript", "push"), ("constraint", "push")])
def test_parking_that_fails_ends_its_request(
    engine: BatchEngine, reference: References, part: tuple[str, str]
) -> None:
    bad, beside = Run(engine, PROMPTS[3], structure=LETTERS), Run(engine, PROMPTS[1])
    while len(bad.tokens) < 3:
        step(engine)
    owner = engine._generation.sequences.next_token(engine._generation._uids[bad.job]).row
    active = engine._generation._active[engine._generation._uids[bad.job]]
    if part[0] == "constraint":
        owner.constraint = Failing(owner.constraint, part[1], 0)
    else:
        active._text = Failing(active._text, part[1], 0)  # type: ignore[assignment]
    bad.send(engine._generation._set_aside(engine._generation._uids[bad.job]))
    assert isinstance(bad.frames[-1], Failed)
    finish(engine)
    assert beside.tokens == reference[PROMPTS[1]][0]


def test_what_the_model_fails_with_is_not_one_request_s(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    other, _ = start(folder)
    Run(other, PROMPTS[0], structure=LETTERS)

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("[malloc] Unable to allocate")

    monkeypatch.setattr(decoding, "_choose", broken)
    with pytest.raises(RuntimeError, match="Unable to allocate"):
        finish(other)


def test_memory_that_python_lacks_is_not_one_request_s(engine: BatchEngine) -> None:
    run = Run(engine, PROMPTS[0])

    class Exhausted(Transcript):
        def push(self, token: int) -> Any:
            raise MemoryError

    run.job.prepared = Prepared(prompt=run.job.prompt, transcript=Exhausted.__new__(Exhausted))
    with pytest.raises(MemoryError):
        finish(engine)
    engine.remove(run.job)


def test_of_grammars_that_fail_together_each_is_found() -> None:
    """And the sound ones have their masks."""
    asked: list[int] = []

    def fill(constraints: Sequence[Any], words: int) -> Ints:
        asked.append(len(constraints))
        if any(each is None for each in constraints):
            raise ValueError
        return np.full((len(constraints), words), 7, np.int32)

    class Plan:
        def __init__(self) -> None:
            self.rows = [_Row(1), _Row(None), _Row(2), _Row(None)]

    plan: Any = Plan()
    packed, bound = decoding._masks(BatchDecoder(fill), plan, [0, 1, 2, 3], 64)
    assert packed is not None
    assert (packed.shape, bound) == ((2, 2), [0, 2])
    assert [row.fault is not None for row in plan.rows] == [False, True, False, True]
    assert asked == [4, 1, 1, 1, 1]
    none: Callable[..., Any] = decoding._masks
    assert none(BatchDecoder(fill), plan, [1, 3], 64) == (None, [])


class _Row:
    def __init__(self, constraint: Any) -> None:
        self.constraint = constraint
        self.fault: Exception | None = None
