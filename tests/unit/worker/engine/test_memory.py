"""worker.engine.memory: real models in less memory than their requests would take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from supervisor.errors import PromptTooLarge
from supervisor.wire.frames import Needs, Pattern, Repaid
from tests.helpers.lender import MB, SHAPE, Lender, runs, tokens_of, unhurried
from tests.helpers.tiny_llama import make_model
from worker.engine.batch import BatchEngine
from worker.engine.kv_cost import LEAST_SLICE
from worker.engine.loan import IDLE_SECONDS, LARGEST_STEP
from worker.engine.scene import Scene
from worker.engine.thread import FINAL_FRAMES

KINDS = ("llama", "gemma3_text", "granitemoehybrid")
"""Full attention; windows; state space layers."""
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
    return unhurried(llama, WANTED)


def test_what_is_lacking_is_asked_for_and_used_when_it_comes(
    llama: Path, undisturbed: list[Any]
) -> None:
    tight = Lender(llama, 3 * MB)
    made = runs(tight.engine, WANTED)
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


def test_what_is_lent_beyond_the_limit_comes_back_at_once(llama: Path) -> None:
    """Loans may be on their way that answer an earlier word."""
    tight = Lender(llama, 3 * MB, limit=4 * MB)
    tight.lend(2 * MB)
    assert tight.told == [Repaid(MB)]
    assert tight.budget == 4 * MB
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
    made = runs(tight.engine, WANTED)
    back: list[int] = []

    def recall(step: int) -> None:
        if step in (1, 4, 40):
            back.append(tight.recall(lent // 4, park=park))
        if tight.lent < lent and step == 60:
            tight.lend(lent - tight.lent)

    tight.finish(recall)
    assert max(back) > 0 if not park else min(back) == lent // 4
    assert tokens_of(made) == undisturbed
    before = tight.lent
    assert before > 0
    assert tight.recall(2**40) == before  # nobody is there any more, so all of it is idle
    assert tight.lent == 0
    assert tight.told[-1] == Needs(heard=tight.ever)
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
    made = runs(tight.engine, WANTED)

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
    made = runs(tight.engine, WANTED)
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
