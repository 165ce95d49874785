"""worker.engine.sequences: sequences that come, go, wait and change their batch give what each
gives alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mlx.core as mx
import pytest

from tests.helpers import tiny_llama
from tests.helpers.tiny_llama import make_model
from worker.engine import groups, mlx_lm_generator
from worker.engine.decoding import BatchDecoder
from worker.engine.mlx_lm_compat import load_lazily
from worker.engine.mlx_lm_generator import Batches
from worker.engine.rows import BatchRow
from worker.engine.sampling import Parameters
from worker.engine.sequences import Sequences

TOKENS = 40
KINDS = ["llama", "gemma3_text", "granitemoehybrid", "lfm2"]
"""Plain caches, windows, and two with states."""


class Desk:
    """Sequences of one model, with what each uid was told."""

    def __init__(self, model: Any) -> None:
        self.sequences = Sequences(Batches(model, BatchDecoder()))
        self.told: dict[int, list[int]] = {}

    def insert(self, prompt: list[int], most: int = TOKENS) -> int:
        uid = self.sequences.insert(prompt, BatchRow(Parameters()), most)
        self.told[uid] = []
        return uid

    def begin(self, *uids: int) -> None:
        """Prefill them together, and have them decode."""
        sizes = {uid: self.sequences.left(uid) for uid in uids}
        if any(sizes.values()):
            self.sequences.prefill(sizes)
        self.sequences.start(uids)

    def decode(self, steps: int = 1000) -> None:
        for _ in range(steps):
            if not self.sequences.decodes:
                break
            for each in self.sequences.decode():
                self.told[each.uid].append(each.token)

    def run(self, prompt: list[int], most: int = TOKENS) -> list[int]:
        """Alone."""
        uid = self.insert(prompt, most)
        self.begin(uid)
        self.decode()
        return self.told[uid]

    def shapes(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(rows, the longest one's tokens) of the batches of prompts, and of those that decode."""
        prompts, decoding = (
            [(len(batch.uids), max(map(len, batch.tokens))) for batch in batches]
            for batches in (self.sequences._begun(), self.sequences._decoding)
        )
        return prompts, decoding

    def park(self, uid: int) -> int:
        """Park it and take it up again, under the uid that is returned."""
        decodes = self.sequences.next_token(uid) if uid not in self.sequences._prompts else None
        parked = self.sequences.park(uid)
        assert uid not in self.sequences.lengths()
        again = self.sequences.resume(parked)
        self.told[again] = self.told.pop(uid)
        if decodes is not None:
            self.told[again].append(decodes.token)
        return again


def prompt_of(length: int, seed: int = 0) -> list[int]:
    chance = random.Random(seed * 1000 + length)
    return [chance.randrange(40) for _ in range(length)]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_model(tmp_path_factory.mktemp("m") / "m", request.param, seed=5)
    return load_lazily(str(folder))[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_model(tmp_path_factory.mktemp("m") / "m", "llama", seed=5)
    return load_lazily(str(folder))[0]


@pytest.fixture
def desk(model: Any) -> Iterator[Desk]:
    made = Desk(model)
    yield made
    assert not made.sequences.lengths()
    assert made.sequences.nbytes == 0


# ── parking ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("done", [0, 1, 50, 100])
def test_a_prompt_is_parked_with_what_is_done_of_it(desk: Desk, done: int) -> None:
    whole = desk.run(prompt_of(120))
    assert len(set(whole)) > 5
    uid, other = desk.insert(prompt_of(120)), desk.insert(prompt_of(30))
    beside = desk.run(prompt_of(30))
    if done:
        desk.sequences.prefill({uid: done})
    uid = desk.park(uid)
    assert (desk.sequences.done(uid), desk.sequences.left(uid)) == (done, 119 - done)
    desk.begin(uid, other)  # padded to each other
    desk.decode()
    assert desk.told[uid] == whole
    assert desk.told[other] == beside


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_one_that_decodes_is_parked_with_its_next_token(desk: Desk, steps: int) -> None:
    whole, beside = desk.run(prompt_of(90)), desk.run(prompt_of(20))
    uid, other = desk.insert(prompt_of(90)), desk.insert(prompt_of(20))
    desk.begin(uid, other)
    desk.decode(steps)
    uid = desk.park(uid)
    assert desk.sequences.done(uid) == 90 + steps
    desk.decode(3)
    desk.begin(uid)
    desk.decode()
    assert (desk.told[uid], desk.told[other]) == (whole, beside)


def test_any_course_of_things_changes_nobodys_tokens(desk: Desk) -> None:
    chance = random.Random(4)
    lengths = [3, 20, 75, 130, 131, 200]
    expected = [desk.run(prompt_of(length)) for length in lengths]
    uids = {desk.insert(prompt_of(length)): at for at, length in enumerate(lengths)}
    while uids:
        uid = chance.choice(list(uids))
        prefills = uid in desk.sequences._prompts
        if chance.random() < 0.2 and (prefills or desk.sequences.next_token(uid).left):
            uids[desk.park(uid)] = uids.pop(uid)
        elif prefills and (left := desk.sequences.left(uid)):
            desk.sequences.prefill({uid: chance.randrange(1, left + 1)})
        elif prefills:
            desk.sequences.start([uid])
        else:
            desk.decode(1)
        for uid in [uid for uid in uids if uid not in desk.sequences.lengths()]:
            assert desk.told[uid] == expected[uids.pop(uid)]


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────


def test_whoever_is_removed_leaves_the_others_as_they_are(desk: Desk) -> None:
    expected = [desk.run(prompt_of(60, seed)) for seed in range(4)]
    uids = [desk.insert(prompt_of(60, seed)) for seed in range(4)]
    desk.sequences.prefill(dict.fromkeys(uids, 30))
    desk.sequences.remove(uids[:1])
    desk.begin(*uids[1:])
    desk.decode(5)
    desk.sequences.remove([uids[2]])
    desk.decode()
    assert [len(desk.told[uid]) for uid in uids] == [0, TOKENS, 5, TOKENS]
    assert [desk.told[uid] for uid in (uids[1], uids[3])] == [expected[1], expected[3]]


@pytest.mark.parametrize("prefilled", [0, 30])
def test_a_prompt_that_is_removed_frees_what_it_held(desk: Desk, prefilled: int) -> None:
    uid = desk.insert(prompt_of(60))
    if prefilled:
        desk.sequences.prefill({uid: prefilled})
        assert desk.sequences.nbytes
    desk.sequences.remove([uid])


def test_lengths_and_shapes_are_those_of_the_caches(desk: Desk) -> None:
    long, short, waiting = (desk.insert(prompt_of(length)) for length in (100, 40, 10))
    desk.sequences.prefill({long: 70})
    assert desk.sequences.lengths() == {long: 70, short: 0, waiting: 0}
    assert desk.shapes() == ([(1, 70)], [])
    assert (desk.sequences.begun(long), desk.sequences.begun(short)) == (True, False)
    desk.begin(short)
    desk.decode(2)
    assert desk.sequences.lengths() == {long: 70, short: 42, waiting: 0}
    assert desk.shapes() == ([(1, 70)], [(1, 42)])
    desk.sequences.remove([long, short, waiting])


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


def test_caches_are_handed_over_as_they_are(llama: Any) -> None:
    desk = Desk(llama)
    uids = [desk.insert(prompt_of(length)) for length in (30, 40)]
    desk.sequences.prefill({uid: desk.sequences.left(uid) for uid in uids})
    cache = desk.sequences._prompts[uids[0]].batch.prompt_cache
    desk.sequences.start(uids)
    assert desk.sequences._decoding[0].prompt_cache is cache


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 40 tokens count as what rows of 1,024 do."""
    monkeypatch.setattr(groups, "FLOOR", 40)
    monkeypatch.setattr(groups, "UNIT", 8)


@pytest.mark.usefixtures("small_groups")
def test_rows_change_their_batch_as_they_grow(llama: Any) -> None:
    lengths, most = [10, 130, 20, 120], 130
    desk = Desk(llama)
    expected = [desk.run(prompt_of(length), most) for length in lengths]
    uids = [desk.insert(prompt_of(length), most) for length in lengths]
    for uid in uids:
        desk.begin(uid)
    seen = []
    while desk.sequences.decodes:
        _, shapes = desk.shapes()
        for batch in desk.sequences._decoding:
            low, high = groups.span([len(tokens) for tokens in batch.tokens])
            assert groups.size(high) <= groups.MOST * groups.size(low) + groups.UNIT
        seen.append([rows for rows, _ in shapes])
        desk.decode(1)
    assert [desk.told[uid] for uid in uids] == expected
    assert seen[0] == [2, 2]
    assert seen[-2] == [4]  # about one length at the end


@pytest.mark.usefixtures("small_groups")
def test_a_batch_parts_when_its_longest_outgrows_the_rest(llama: Any) -> None:
    """Below the floor rows count alike: one that grows beyond it may outgrow another."""
    desk = Desk(llama)
    expected = [desk.run(prompt_of(length), 30) for length in (2, 118, 100)]
    uids = [desk.insert(prompt_of(length), 30) for length in (2, 118, 100)]
    desk.begin(*uids)
    assert [rows for rows, _ in desk.shapes()[1]] == [3]
    groups.FLOOR = 30  # as if the short one had been shorter
    seen = []
    while desk.sequences.decodes:
        desk.decode(1)
        seen.append(sorted(rows for rows, _ in desk.shapes()[1]))
    assert [desk.told[uid] for uid in uids] == expected
    assert [1, 2] in seen


@pytest.mark.usefixtures("small_groups")
def test_where_caches_do_not_grow_all_share_one_batch(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batches, "grows", False)
    desk = Desk(llama)
    expected = [desk.run(prompt_of(length), 4) for length in (5, 300)]
    uids = [desk.insert(prompt_of(length), 4) for length in (5, 300)]
    for uid in uids:
        desk.begin(uid)
    assert [rows for rows, _ in desk.shapes()[1]] == [2]
    desk.decode()
    assert [desk.told[uid] for uid in uids] == expected


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of so many layers, with so large a cache, that one of all of them would be seen."""
    shape = tiny_llama.Shape(num_hidden_layers=6, num_key_value_heads=4)
    return load_lazily(str(make_model(tmp_path_factory.mktemp("m") / "d", "llama", shape=shape)))[0]


def layer_of(batch: Any) -> int:
    """Bytes of a batch's largest layer."""
    return max(int(layer.nbytes) for layer in batch.prompt_cache)


def beside(change: Callable[[], Any]) -> int:
    """Bytes that a change takes beside what is there before it."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    change()
    return int(mx.get_peak_memory()) - before


SLACK = 2**17
"""Bytes of what else a step makes."""


def test_who_is_parked_keeps_no_more_than_its_own(model: Any) -> None:
    """Of the others' rows, which were in the same arrays, nothing."""
    desk = Desk(model)
    uids = [desk.insert(prompt_of(20, seed)) for seed in range(8)]
    desk.begin(*uids)
    desk.decode(2)
    parked = [desk.sequences.park(uids[0])]
    desk.sequences.remove(uids[1:])
    own = sum(layer.nbytes for layer in parked[0].cache)
    mx.clear_cache()
    before = mx.get_active_memory()
    parked.clear()
    assert own // 2 <= before - mx.get_active_memory() <= 2 * own + 2**14


class TestAChangeTakesOneLayerBeside:
    """What there was is let go of layer by layer, as what there is to be is made."""

    @pytest.mark.parametrize("keep", [True, False])
    def test_when_one_that_decodes_is_parked(self, deep: Any, keep: bool) -> None:
        desk = Desk(deep)
        uids = [desk.insert(prompt_of(250, seed)) for seed in range(3)]
        desk.begin(*uids)
        desk.decode(2)
        layer = layer_of(desk.sequences._decoding[0])
        for uid in uids[:2]:
            assert beside(partial(desk.sequences.park, uid, keep=keep)) <= layer + SLACK

    def test_when_a_prompt_is_parked(self, deep: Any) -> None:
        desk = Desk(deep)
        uids = [desk.insert(prompt_of(250, seed)) for seed in range(2)]
        desk.sequences.prefill(dict.fromkeys(uids, 240))
        layer = layer_of(desk.sequences._prompts[uids[0]].batch)
        for uid in uids:
            assert beside(partial(desk.sequences.park, uid)) <= layer + SLACK

    def test_when_one_leaves(self, deep: Any) -> None:
        desk = Desk(deep)
        uids = [desk.insert(prompt_of(length)) for length in (250, 220, 100)]
        for uid in uids:
            desk.begin(uid)
        desk.decode(2)
        layer = layer_of(desk.sequences._decoding[0])

        def leave() -> None:
            desk.sequences.remove(uids[:1])
            desk.sequences.settle()

        assert beside(leave) <= layer + SLACK

    def test_when_one_joins(self, deep: Any) -> None:
        desk = Desk(deep)
        desk.begin(desk.insert(prompt_of(250)), desk.insert(prompt_of(220)))
        desk.decode(2)
        uid = desk.insert(prompt_of(150))
        desk.sequences.prefill({uid: 149})

        def join() -> None:
            desk.sequences.start([uid])
            desk.sequences.settle()

        before = desk.sequences.nbytes
        taken = beside(join)
        grown = desk.sequences.nbytes - before
        assert taken - grown <= layer_of(desk.sequences._decoding[0]) + SLACK

    def test_when_a_batch_parts(self, deep: Any) -> None:
        desk = Desk(deep)
        uids = [desk.insert(prompt_of(250, seed)) for seed in range(3)]
        desk.begin(*uids)
        desk.decode(2)
        batch = desk.sequences._decoding[0]
        layer = layer_of(batch)
        assert beside(lambda: batch.split([0])) <= layer + SLACK

    def test_when_some_prompts_of_a_batch_begin_to_decode(self, deep: Any) -> None:
        desk = Desk(deep)
        short, long = desk.insert(prompt_of(200)), desk.insert(prompt_of(250))
        desk.sequences.prefill({short: 199, long: 199})
        layer = layer_of(desk.sequences._prompts[short].batch)
        assert beside(lambda: desk.sequences.start([short])) <= layer + SLACK

    def test_when_prompts_of_different_length_are_moved_together(
        self, deep: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind a step each row's tokens are moved to the end."""
        desk = Desk(deep)
        uids = [desk.insert(prompt_of(length)) for length in (250, 150)]
        desk.sequences.prefill(dict.fromkeys(uids, 1))
        taken: list[int] = []
        settle = mlx_lm_generator.settle
        monkeypatch.setattr(
            mlx_lm_generator,
            "settle",
            lambda *caches: taken.append(beside(lambda: settle(*caches))),
        )
        desk.sequences.prefill({uids[0]: 248, uids[1]: 148})
        layer = layer_of(desk.sequences._prompts[uids[0]].batch)
        assert len(taken) == 1
        assert taken[0] <= layer + SLACK
