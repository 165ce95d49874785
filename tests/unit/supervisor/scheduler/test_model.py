"""supervisor.scheduler.model: what is counted of a model's uses, places and loads."""

from __future__ import annotations

import pytest

from supervisor.scheduler.eviction import HALF_LIFE
from supervisor.scheduler.model import Spec
from tests.helpers.pools import GB, ask, loaded, ready_pool, small_machine


def test_a_models_uses_age_by_those_of_all() -> None:
    pool = small_machine("a", "b", budget=None)
    loaded(pool, "a", "b")

    def frequency() -> float:
        return pool.models["a"].candidate(0, pool.state.uses).frequency

    before = frequency()
    assert before == pytest.approx(0.5 ** (1 / HALF_LIFE))  # one use, and one of `b` since
    for i in range(int(HALF_LIFE)):
        pool.release(ask(pool, "b", 10.0 + i), 10.5 + i)
    assert frequency() == pytest.approx(before / 2)
    ask(pool, "a", 100.0)
    assert frequency() == pytest.approx(1 + before / 2 * 0.5 ** (1 / HALF_LIFE))


def test_the_last_use_of_a_model_that_nobody_has_asked_for_is_its_load() -> None:
    pool = ready_pool()
    assert pool.models["m"].candidate(0, 0).last_used == 1.0
    pool.release(ask(pool, "m", 7.0), 8.0)
    assert pool.models["m"].candidate(0, 0).last_used == 8.0


def test_the_pace_of_places_is_smoothed() -> None:
    pool = ready_pool()
    paces = []
    for at in (10.0, 16.0, 27.0):
        pool.release(ask(pool, "m", at), at)
        paces.append(pool.models["m"].pace)
    assert paces == [None, 6.0, pytest.approx(0.8 * 6 + 0.2 * 11)]


@pytest.mark.parametrize(
    ("memory", "measured", "untouched"),
    [
        (None, None, 3 * GB),  # as estimated
        (None, 4 * GB, 3 * GB),  # the next load takes as much as the last one
        (None, 9 * GB, GB),  # all that the budget has left
        (6 * GB, None, GB),  # what is configured, less what a load is expected to take
        (6 * GB, 4 * GB, 2 * GB),
        (6 * GB, 7 * GB, 0),
    ],
)
def test_what_a_load_leaves_untouched_of_its_charge(
    memory: int | None, measured: int | None, untouched: int
) -> None:
    spec = Spec("m", estimate_bytes=8 * GB, headroom_bytes=3 * GB, memory_bytes=memory)
    pool = small_machine(spec, budget=10 * GB)
    if measured is not None:
        pool.recall("m", 0, 1.0, measured)
    assert pool.models["m"].untouched == untouched


def test_what_a_model_outgrew_is_charged_but_is_no_room() -> None:
    pool = small_machine(Spec("m", estimate_bytes=8 * GB, headroom_bytes=3 * GB), budget=20 * GB)
    pool.recall("m", 0, 1.0, None, excess=2 * GB)
    model = pool.models["m"]
    assert (model.size, model.untouched, model.size_source) == (10 * GB, 3 * GB, "measured")
    pool.recall("m", 0, 1.0, 4 * GB, excess=2 * GB)
    assert (model.size, model.untouched) == (9 * GB, 3 * GB)
    pool.recall("m", 0, 1.0, 15 * GB, excess=9 * GB)  # of a machine that was larger
    assert (model.size, model.excess_bytes, model.untouched) == (20 * GB, 5 * GB, 0)
    pool.estimated("m", 7 * GB, 3 * GB, 1.0)  # other files
    assert (model.size, model.size_source) == (7 * GB, "estimated")
