"""supervisor.scheduler.refusals: when to come back, and what a person can do about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from supervisor.errors import BulkheadError
from supervisor.scheduler import refusals
from supervisor.scheduler.breaker import Breaker
from supervisor.scheduler.lease import Lease
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import DrainCause, Model, Spec, Worker
from tests.helpers.pools import GB

NOW = 103.0


def model(
    state: State = State.LOADING,
    *,
    load: float | None = 7.0,
    pace: float | None = None,
    granted: int = 0,
    waiting: int = 0,
) -> Model:
    """One whose worker was spawned at 100."""
    made = Model(Spec("m"), Breaker(3, 60.0, 60.0, lambda: 1.0), state, 1, Worker("m", 1, 100.0))
    made.load_seconds, made.pace = load, pace
    made.granted = {i: Lease(i, "r", 0.0) for i in range(granted)}
    made.waiting = {i: Lease(i, "r", 0.0) for i in range(granted, granted + waiting)}
    return made


def drained(cause: DrainCause) -> BulkheadError:
    drains = model(State.DRAINING)
    drains.current.drain_cause = cause
    return refusals.cut_off(drains)


ERRORS: dict[str, tuple[Callable[[], BulkheadError], int]] = {
    "full": (lambda: refusals.server_full(model(), 9, NOW), 4),
    "no place": (lambda: refusals.no_place(model(State.READY, pace=6.0, granted=1), NOW), 6),
    "stalled": (lambda: refusals.stalled(model(State.READY), "it hangs"), 7),
    "load stalled": (lambda: refusals.load_stalled(model(), 10.0), 7),
    "unloaded by hand": (lambda: drained(DrainCause.BY_HAND), 7),
    "evicted": (lambda: drained(DrainCause.EVICTION), 7),
    "outgrown": (lambda: drained(DrainCause.OUTGROWN), 7),
    "out of reach": (lambda: drained(DrainCause.OUT_OF_REACH), 7),
    "emergency": (lambda: drained(DrainCause.EMERGENCY), 30),
    "no new loads": (lambda: refusals.no_new_loads(model(State.COLD), ""), 30),
    "no room": (lambda: refusals.no_room(model(State.COLD), [], 0, 0), 7),
    "gate": (lambda: refusals.gate_closed(model(State.READY), "other"), 7),
    "still loading": (lambda: refusals.still_loading(model(), NOW), 4),
    "not loading yet": (lambda: refusals.still_loading(model(State.STOPPING), NOW), 7),
}


@pytest.mark.parametrize("why", ERRORS)
def test_who_is_refused_for_a_while_learns_for_how_long(why: str) -> None:
    make, seconds = ERRORS[why]
    assert make().retry_after == seconds


@pytest.mark.parametrize(
    ("of", "seconds"),
    [
        (model(load=7.0), 4.0),  # 3 of 7 seconds are over
        (model(load=7.0, pace=2.0), 6.0),  # the load, and then a place
        (model(load=3.5), 1.0),
        (model(load=90.0), 10.0),
        (model(State.READY, pace=6.0, granted=1), 6.0),
        (model(State.READY, pace=0.1, granted=1), 1.0),
        (model(State.READY, pace=90.0, granted=1), 10.0),
        (model(State.READY, pace=6.0, waiting=50), 1.5),
        (model(load=None, waiting=5000), 10.0),
    ],
)
def test_a_place_is_likely_to_become_free_in_one_to_ten_seconds(of: Model, seconds: float) -> None:
    assert refusals.until_a_place(of, NOW) == seconds


@pytest.mark.parametrize(("memory", "advice"), [(None, "smaller"), (12 * GB, "`memory`")])
def test_what_never_fits_is_told_with_what_can_be_done(memory: int | None, advice: str) -> None:
    large = model(State.COLD)
    large.spec = Spec("m", estimate_bytes=12 * GB, memory_bytes=memory)
    assert advice in refusals.too_large(large, 10 * GB).message


def test_no_room_names_everybody_who_holds_some() -> None:
    holders = [model(State.READY), model(State.LOADING), model(State.COLD)]
    message = refusals.no_room(model(State.COLD), holders, 0, 0).message
    assert "Loaded: m#1 (ready), m#1 (loading)." in message
