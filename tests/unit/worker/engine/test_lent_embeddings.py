"""worker.engine.embedding in less memory than its inputs would take, beside other requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from supervisor.errors import PromptTooLarge
from supervisor.wire.frames import Embed, Embedded, FromEngine, Needs, Vector
from tests.helpers.engine_runs import Run
from tests.helpers.lender import MB, SHAPE, Lender, runs, tokens_of, unhurried
from tests.helpers.tiny_embedding import make_embedding
from worker.engine.batch import BatchEngine
from worker.engine.embedding import SHORT, Wanted
from worker.engine.thread import Job


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
