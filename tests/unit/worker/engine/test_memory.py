"""worker.engine.memory: real models in less memory than their requests would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from supervisor.errors import PromptTooLarge
from supervisor.models.estimate import estimate
from supervisor.wire.frames import (
    Allowance,
    Embed,
    Embedded,
    FromEngine,
    Load,
    LoanFrame,
    Needs,
    Pattern,
    Recall,
    Repaid,
    Token,
    Vector,
)
from tests.helpers.engine_runs import Run, said
from tests.helpers.tiny_embedding import make_embedding
from tests.helpers.tiny_llama import Shape, make_model
from worker.engine.admission import Scene
from worker.engine.batch import BatchEngine
from worker.engine.embedding import SHORT, Wanted
from worker.engine.kv_cost import LEAST_SLICE
from worker.engine.loan import IDLE_SECONDS, LARGEST_STEP
from worker.engine.thread import FINAL_FRAMES, Job

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

LONG: list[dict[str, Any]] = [
    {"prompt": "a plain one. " * 3, "max_tokens": 500},
    {"prompt": "a seeded one " * 3, "max_tokens": 490, "temperature": 0.9, "seed": 7},
    {"prompt": "penalties ok " * 3, "max_tokens": 495, "frequency_penalty": 0.7, "logprobs": 2},
    {"prompt": "with a rule. " * 3, "max_tokens": 492, "structure": Pattern("[a-z ]{900}", "p")},
    {"prompt": "and the last " * 3, "max_tokens": 485, "repetition_penalty": 1.2},
]
"""They outgrow what there must be room for when they begin."""


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


def unhurried(folder: Path, wanted: list[dict[str, Any]] = WANTED) -> list[Any]:
    """What each request is told where there is room for all."""
    free = Lender(folder, 2**40)
    made = runs(free.engine, wanted)
    free.finish()
    free.engine.close()
    return tokens_of(made)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Any]:
    return unhurried(folder, LONG)


# ── twice what may be held ───────────────────────────────────────────────────────────────────────


def room_for(folder: Path, share: float, wanted: list[dict[str, Any]] = WANTED) -> int:
    """So much of the KV that all of `wanted` would take at their longest, and what the smallest
    steps take."""
    probe = Lender(folder, 2**40)
    demand = replace(probe.engine._memory.demand, chunk=LEAST_SLICE)
    made = runs(probe.engine, wanted)
    scene = probe.engine._generation._scene()
    longest = [
        replace(each, tokens=each.tokens + one["max_tokens"])
        for each, one in zip(scene.waiting, wanted, strict=True)
    ]
    for run in made:
        probe.engine.remove(run.job)
    probe.engine.close()
    whole, steps = demand.next(Scene(), longest), demand.step(8, LEAST_SLICE, 600, 0)
    return int((whole - steps - demand.freed) * share) + 2 * steps + MB  # of freed buffers


def room_to_begin(folder: Path, wanted: list[dict[str, Any]]) -> int:
    """So much that all of `wanted` can begin together."""
    probe = Lender(folder, 2**40)
    made = runs(probe.engine, wanted)
    waiting = probe.engine._generation._scene().waiting
    demand = replace(probe.engine._memory.demand, freed=MB)
    room = demand.next(Scene(), waiting)
    for run in made:
        probe.engine.remove(run.job)
    probe.engine.close()
    return room


class Watched:
    """How many were parked at once."""

    def __init__(self, engine: BatchEngine) -> None:
        self._engine = engine
        self.most = 0

    def __call__(self, step: int) -> None:
        self.most = max(self.most, len(self._engine._generation._parked))


def test_an_oversubscribed_batch_answers_as_an_unhurried_one(
    folder: Path, expected: list[Any]
) -> None:
    # Of the five some can begin, but not go on to their end together.
    room = room_to_begin(folder, LONG[:3])
    tight = Lender(folder, room, limit=room)
    made, parked = runs(tight.engine, LONG), Watched(tight.engine)
    tight.finish(parked)
    assert parked.most
    assert tokens_of(made) == expected
    assert tight.told == []  # nothing more could be lent
    tight.engine.close()


# ── loans come and go ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def undisturbed(llama: Path) -> list[Any]:
    return unhurried(llama)


def test_what_is_lacking_is_asked_for_and_used_when_it_comes(
    llama: Path, undisturbed: list[Any]
) -> None:
    tight = Lender(llama, 3 * MB)
    made = runs(tight.engine)
    late = 0

    def lend(step: int) -> None:
        nonlocal late
        asked = [frame for frame in tight.told if isinstance(frame, Needs) and frame.most]
        if asked and (step > late + 20 or not tight.engine.busy):
            late = step
            tight.told.clear()
            tight.lend(asked[-1].most)

    tight.finish(lend)
    assert late
    assert tokens_of(made) == undisturbed
    tight.engine.close()


def test_who_has_no_room_at_all_waits_for_a_loan_without_a_step(llama: Path) -> None:
    tight = Lender(llama, 2 * MB)
    (run,) = runs(tight.engine, WANTED[1:2])
    tight.finish()
    (asked,) = tight.told
    assert isinstance(asked, Needs)
    assert asked.since == 1.0
    assert 0 < asked.least <= asked.most
    # What it is lent then is just enough, each time.
    while tight.told:
        asked = tight.told.pop()
        assert isinstance(asked, Needs)
        tight.lend(asked.least or asked.most)
        tight.told.clear()
        tight.finish()
    assert run.end.completion_tokens == 40
    tight.engine.close()


@pytest.mark.parametrize("park", [False, True])
def test_recalls_in_prefill_and_decode_change_no_answer(
    llama: Path, undisturbed: list[Any], park: bool
) -> None:
    tight = Lender(llama, room_for(llama, 0.3))
    tight.lend(lent := room_for(llama, 1.0))
    made = runs(tight.engine)
    back: list[int] = []

    def recall(step: int) -> None:
        if step in (1, 4, 40):
            back.append(tight.recall(lent // 4, park=park))
        if tight.lent < lent and step == 60:
            tight.lend(lent - tight.lent)

    tight.finish(recall)
    assert max(back) > 0 if not park else min(back) == lent // 4
    assert tokens_of(made) == undisturbed
    assert tight.recall(2**40) == tight.lent + tight.told[-1].bytes  # type: ignore[union-attr]
    assert tight.lent == 0
    tight.engine.close()


def test_what_has_served_nobody_for_a_while_is_given_back(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = Lender(llama, 8 * MB)
    tight.lend(lent := 2 * LARGEST_STEP)
    runs(tight.engine, WANTED[:1])
    tight.finish()
    assert 0 < (tight.engine.due or 0) <= IDLE_SECONDS
    tight.engine.tidy()
    assert tight.lent == lent
    monkeypatch.setattr("worker.engine.loan.IDLE_SECONDS", 0.0)
    tight.engine.tidy()
    tight.hear()
    assert 0 < tight.lent < LARGEST_STEP
    assert tight.engine.due is None
    tight.engine.close()


def test_fewer_places_park_and_more_bring_back(llama: Path, undisturbed: list[Any]) -> None:
    tight = Lender(llama, 2 * room_for(llama, 1.0))
    made = runs(tight.engine)

    def limit(step: int) -> None:
        if step == 20:
            tight.engine.limit(1)
            tight.step()
            generation = tight.engine._generation
            assert len(generation._active) <= 1 < len(generation._parked)
        if step == 60:
            tight.engine.limit(0)

    tight.finish(limit)
    assert tokens_of(made) == undisturbed
    tight.engine.close()


def test_what_one_leaves_is_computed_before_another_begins(llama: Path) -> None:
    """Until then its memory is not free."""
    tight = Lender(llama, 2 * room_for(llama, 1.0))
    made = runs(tight.engine, LONG[:3])
    while not all(run.tokens for run in made):
        tight.step()
    sequences = tight.engine._generation.sequences
    before = mx.get_active_memory()
    tight.engine.remove(made[0].job)
    runs(tight.engine, WANTED[:1])
    tight.engine._generation.admit()
    assert [len(batch.uids) for batch in sequences._decoding] == [2]
    assert before - mx.get_active_memory() > 256 * 2048  # its row
    for run in made:
        tight.engine.remove(run.job)
    tight.engine.close()


def test_who_is_parked_can_leave_and_come_back(llama: Path, undisturbed: list[Any]) -> None:
    tight = Lender(llama, 2 * room_for(llama, 1.0))
    made = runs(tight.engine)
    while sum(bool(run.tokens) for run in made) < len(made):
        tight.step()
    tight.engine.limit(1)
    tight.step()
    parked = [run for run in made if run.job in tight.engine._generation._parked]
    assert len(parked) >= 3
    leaver = parked[0]
    tight.engine.remove(leaver.job)
    tight.engine.limit(0)
    tight.finish()
    expected = dict(zip(map(id, made), undisturbed, strict=True))
    for run, answer in zip(made, tokens_of(made), strict=True):
        assert run is leaver or answer == expected[id(run)]
    assert not isinstance(leaver.frames[-1], FINAL_FRAMES)
    assert tight.engine._generation.sequences.nbytes == 0
    tight.engine.close()


def test_a_prompt_that_the_machine_can_not_hold_is_refused_with_the_figures(llama: Path) -> None:
    tight = Lender(llama, MB, limit=6 * MB)
    context = tight.loaded.context
    assert 100 < context < 4096
    with pytest.raises(PromptTooLarge, match=f"can hold {context} of the 4096") as caught:
        runs(tight.engine, [{"prompt": "x" * (context + 1)}])
    assert caught.value.param == "prompt"
    tight.lend(5 * MB)
    (run,) = runs(tight.engine, [{"prompt": "x" * (context - 9), "max_tokens": None}])
    tight.finish()
    assert (run.end.finish_reason, run.end.completion_tokens) == ("length", 9)
    tight.engine.close()


# ── long inputs of embeddings ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    BatchEngine().warm_up()
    return make_embedding(tmp_path_factory.mktemp("m") / "embedding", shape=SHAPE)


INPUTS: list[Any] = [[1 + i * 7 % 250 for i in range(length)] for length in (3000, 40, 2000, 700)]


class Embedding:
    """A job and, as its sink, what it was given."""

    def __init__(self, engine: BatchEngine, inputs: list[Any], now: float = 1.0) -> None:
        self.frames: list[FromEngine] = []
        request = Embed("e", tuple(map(tuple, inputs)), now=now)
        self.job = Job(request, engine.prepare(request), self)
        engine.insert(self.job)

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.frames.extend(frames)

    def close(self) -> None:
        """Nothing is held open."""

    def same(self, other: Embedding) -> bool:
        """Whether both are done, with the same numbers: nearly, for sums are made in parts."""
        assert isinstance(self.frames[-1], Embedded)
        mine, others = self._numbers(), other._numbers()
        return mine.shape == others.shape and np.allclose(mine, others, atol=1e-5)

    def _numbers(self) -> Any:
        return np.array(
            [np.frombuffer(f.values, "<f4") for f in self.frames if isinstance(f, Vector)]
        )


@pytest.fixture(scope="module")
def embedded(embedding: Path) -> Embedding:
    """Where there is room for all."""
    free = Lender(embedding, 2**40)
    run = Embedding(free.engine, INPUTS)
    free.finish()
    free.engine.close()
    return run


def test_a_long_input_waits_for_a_loan(embedding: Path, embedded: Embedding) -> None:
    tight = Lender(embedding, 3 * MB, limit=60 * MB)
    run = Embedding(tight.engine, INPUTS, now=9.0)
    tight.finish()
    assert not any(isinstance(frame, Embedded) for frame in run.frames)
    asked = tight.told[-1]
    assert isinstance(asked, Needs)
    assert asked.since == 9.0
    assert 3 * MB < asked.least <= asked.most  # 3,000 tokens are 6 MB
    # What it is lent then is just enough, each time.
    while not run.frames:
        asked = tight.told[-1]
        assert isinstance(asked, Needs)
        tight.told.clear()
        tight.lend(asked.least or asked.most)
        tight.finish()
    assert run.same(embedded)
    tight.engine.close()


def test_a_long_input_begins_anew_behind_a_recall(embedding: Path, embedded: Embedding) -> None:
    tight = Lender(embedding, 3 * MB, limit=60 * MB)
    tight.lend(lent := 32 * MB)
    run = Embedding(tight.engine, INPUTS)
    back: list[int] = []

    def recall(step: int) -> None:
        if step == 1:
            back.append(tight.recall(lent, park=True))

    tight.finish(recall)
    assert back == [lent]
    assert not any(isinstance(frame, Embedded) for frame in run.frames)
    tight.lend(lent)
    tight.finish()
    assert run.same(embedded)
    tight.engine.close()


def test_a_long_input_yields_to_older_requests(
    embedding: Path, embedded: Embedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 16 * MB
    wanted: dict[str, Any] = {"prompt": "x" * 2500, "max_tokens": 30}
    (expected,) = unhurried(embedding, [wanted])
    tight = Lender(embedding, room, limit=room)
    made: list[Run] = []
    dropped: list[bool] = []
    embedder = tight.engine._embedder
    drop = embedder.drop_long

    def note() -> None:
        dropped.append(True)
        drop()

    monkeypatch.setattr(embedder, "drop_long", note)
    younger = Embedding(tight.engine, INPUTS, now=2.0)

    def older(step: int) -> None:
        if step == 2:
            made.extend(runs(tight.engine, [wanted]))  # of 1.0

    tight.finish(older)
    assert dropped
    assert tokens_of(made) == [expected]
    assert younger.same(embedded)
    tight.engine.close()


def test_who_is_removed_with_a_long_input_leaves_nothing(embedding: Path) -> None:
    tight = Lender(embedding, 20 * MB, limit=20 * MB)
    run, other = Embedding(tight.engine, INPUTS), Embedding(tight.engine, INPUTS[1:2])
    tight.step()
    tight.step()
    assert tight.engine._embedder._long is not None
    tight.engine.remove(run.job)
    tight.finish()
    assert isinstance(other.frames[-1], Embedded)
    assert tight.engine._embedder.wanted == Wanted()
    assert mx.get_active_memory() - tight.base < MB
    tight.engine.close()


def test_an_input_that_the_machine_can_not_hold_is_refused_with_the_figures(
    embedding: Path,
) -> None:
    tight = Lender(embedding, MB, limit=6 * MB)
    context = tight.loaded.context
    assert 100 < context < 4096
    with pytest.raises(PromptTooLarge, match=f"can hold {context} of the 4096") as caught:
        Embedding(tight.engine, [[5] * (context + 1)])
    assert caught.value.param == "input"
    prepared = tight.engine.prepare(Embed("e", ("x" * 4000,), truncate=True))
    assert len(prepared.inputs[0]) == context
    tight.engine.close()


def test_nothing_is_wanted_any_more_when_the_waiting_one_leaves(embedding: Path) -> None:
    tight = Lender(embedding, 3 * MB, limit=60 * MB)
    run = Embedding(tight.engine, INPUTS[:1])
    tight.finish()
    assert isinstance(asked := tight.told[-1], Needs)
    assert asked.least
    tight.engine.remove(run.job)
    tight.finish()
    assert tight.told[-1] == Needs()
    tight.engine.close()


@pytest.mark.parametrize("wanted", ["generated", "embedded"])
def test_a_loan_that_was_used_to_the_last_byte_is_given_back(
    embedding: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    tight = Lender(embedding, 3 * MB, limit=24 * MB, places=1)
    if wanted == "embedded":
        Embedding(tight.engine, INPUTS[:1])
    else:
        runs(tight.engine, [{"prompt": "x" * 3000, "max_tokens": 4}])
    tight.finish()
    while isinstance(asked := tight.told.pop(), Needs) and asked.most:
        tight.told.clear()
        tight.lend(asked.least or asked.most)
        tight.finish()
        if not tight.told:
            break
    assert tight.lent
    assert tight.engine.due is not None
    monkeypatch.setattr("worker.engine.loan.IDLE_SECONDS", 0.0)
    tight.engine.tidy()
    tight.hear()
    assert tight.lent <= 2 * MB
    tight.engine.close()


def test_a_long_input_takes_the_only_place_and_gives_it_up(
    embedding: Path, embedded: Embedding
) -> None:
    wanted: dict[str, Any] = {"prompt": "x" * 300, "max_tokens": 30}
    (expected,) = unhurried(embedding, [wanted])
    tight = Lender(embedding, 2**40, places=1)
    first, run = runs(tight.engine, [wanted]), Embedding(tight.engine, INPUTS, now=2.0)
    tight.step()
    assert (long := tight.engine._embedder.wanted.long) is not None
    assert not long.under_way
    tight.finish()
    assert run.same(embedded)
    again = Embedding(tight.engine, INPUTS, now=0.5)
    tight.step()
    second = runs(tight.engine, [wanted])
    tight.engine.limit(1)
    tight.finish()
    assert again.same(embedded)
    assert tokens_of([*first, *second]) == [expected, expected]
    tight.engine.close()


def test_long_inputs_and_rows_that_grow_share_what_there_is(
    embedding: Path, embedded: Embedding
) -> None:
    wanted = [{"prompt": f"{n} prompt " * 20, "max_tokens": 400} for n in range(3)]
    expected = unhurried(embedding, wanted)
    room = 14 * MB
    tight = Lender(embedding, room, limit=room)
    made, run = runs(tight.engine, wanted), Embedding(tight.engine, INPUTS, now=0.5)
    tight.finish()
    assert run.same(embedded)
    assert tokens_of(made) == expected
    tight.engine.close()


def test_short_inputs_beside_rows_have_room_for_their_step(
    embedding: Path, embedded: Embedding
) -> None:
    """What the load's charge has for it is the rows' by then."""
    wanted = [{"prompt": f"{n} " * 200, "max_tokens": 100} for n in range(4)]
    expected = unhurried(embedding, wanted)
    room = 14 * MB
    tight = Lender(embedding, room, limit=room)
    made = runs(tight.engine, wanted)
    shorts: list[Embedding] = []

    def embed(step: int) -> None:
        if step % 20 == 10:
            assert tight.engine._generation._scene().pass_tokens == 0
            shorts.append(Embedding(tight.engine, [[7] * SHORT, [8] * 30]))
            assert tight.engine._generation._scene().pass_tokens == SHORT

    tight.finish(embed)
    assert len(shorts) > 3
    assert all(short.same(shorts[0]) for short in shorts)
    assert tokens_of(made) == expected
    tight.engine.close()
