"""supervisor.scheduler.pool: workers that hang, and what tokens mean for those that keep dying."""

from __future__ import annotations

import pytest

from supervisor.crashes.diagnosis import Cause, Diagnosis
from supervisor.scheduler.effects import EndLease, Grant, Interrupt, Refuse, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool
from tests.helpers.pools import (
    HOLD,
    LIMITS,
    Told,
    acquire,
    error_of,
    in_state,
    ready_pool,
    state,
    told,
)


def dies(pool: Pool, generation: int, now: float, *, progress: bool) -> State:
    """The model's state after a worker that has served a request dies."""
    lease, _ = pool.acquire("r", "m", HOLD, now)
    pool.ready("m", generation, 0, 4096, now)
    if progress:
        pool.progress("m", generation)
    pool.release(lease, now)
    pool.exited("m", generation, "SIGABRT", now)
    return state(pool)


def test_those_in_a_stalled_worker_learn_it_before_its_end() -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    effects = pool.stalled("m", 1, "it hangs", 3.0)
    assert told(effects) == [Told(EndLease, lease, "worker_stalled")]
    assert "it hangs" in error_of(effects).message
    assert effects[1:] == [Stop("m", 1, kill=True, stacks=True)]
    late = acquire(pool, 4.0)
    assert pool.stalled("m", 1, "it hangs", 4.0) == []
    assert pool.exited("m", 1, "SIGKILL", 5.0) == [Spawn("m", 2)]
    assert pool.models["m"].deaths == 1
    assert pool.ready("m", 2, 0, 1, 6.0) == [Grant(late, "m", "m#2", 2, until=1)]


def test_a_stall_that_is_understood_says_where_its_report_is() -> None:
    pool = ready_pool()
    acquire(pool, 2.0)
    effects = pool.stalled("m", 1, "it hangs", 3.0, Diagnosis(Cause.STALLED).death("some-id"))
    assert error_of(effects).message.endswith(" `bulkhead crashes some-id` has the report.")


def test_a_worker_that_stalls_while_it_drains_is_a_death() -> None:
    pool = in_state(State.DRAINING)
    effects = pool.stalled("m", 1, "it hangs", 3.0)
    assert [each.code for each in told(effects)] == ["worker_stalled"]
    assert pool.exited("m", 1, "SIGKILL", 4.0) == []
    assert pool.models["m"].deaths == 1


@pytest.mark.parametrize("wanted", [State.COLD, State.LOADING, State.STOPPING, State.FAILED])
def test_only_who_serves_can_stall(wanted: State) -> None:
    pool = in_state(wanted)
    assert pool.stalled("m", pool.models["m"].generation, "it hangs", 3.0) == []
    assert state(pool) is wanted


def test_a_request_whose_worker_stalls_returns_until_it_is_told_so() -> None:
    rules = Rules(recovery="resume", max_recoveries=1)
    pool = Pool([Spec("m")], limits=LIMITS, rules=rules)
    lease, _ = pool.acquire("r", "m", HOLD, 0.0)
    for generation in (1, 2):
        pool.ready("m", generation, 0, 4096, 1.0)
        interrupt, stop = pool.stalled("m", generation, "it hangs", 2.0)
        assert isinstance(interrupt, Interrupt)
        assert isinstance(stop, Stop)
        gone = pool.exited("m", generation, "SIGKILL", 3.0)
        assert told([*gone, *pool.returned(lease, 0, 3.0)]) == (
            [Told(Refuse, lease, "worker_stalled")] if generation == 2 else []
        )


@pytest.mark.parametrize("progress", [False, True])
def test_a_token_forgets_the_deaths_before_it_and_the_end_of_a_request_does_not(
    progress: bool,
) -> None:
    pool = Pool([Spec("m")], limits=LIMITS, rules=Rules(max_restarts=2))
    assert dies(pool, 1, 1.0, progress=False) is State.COLD
    assert dies(pool, 2, 2.0, progress=progress) is (State.COLD if progress else State.CRASHED)
    assert pool.models["m"].proven is progress
    if progress:
        assert dies(pool, 3, 3.0, progress=False) is State.CRASHED


def test_progress_of_another_incarnation_is_dropped() -> None:
    pool = ready_pool()
    pool.progress("m", 0)
    assert not pool.models["m"].proven


def test_a_load_that_stands_still_refuses_who_came_for_it_and_nobody_with_an_answer_under_way() -> (
    None
):
    pool = Pool([Spec("m")], limits=LIMITS, rules=Rules(recovery="resume"))
    begun, _ = pool.acquire("begun", "m", HOLD, 0.0)
    pool.ready("m", 1, 0, 4096, 1.0)
    pool.progress("m", 1)
    pool.dying("m", 1, "SIGKILL", 2.0)
    pool.exited("m", 1, "SIGKILL", 2.0)
    pool.returned(begun, 5, 2.0)
    late, _ = pool.acquire("late", "m", HOLD, 3.0)
    assert state(pool) is State.LOADING
    effects = pool.tick(2.0 + LIMITS.load_stall)
    assert told(effects) == [Told(Refuse, late, "model_loading")]
    assert Spawn("m", 3) in pool.exited("m", 2, "SIGKILL", 13.0)
    assert [e.lease for e in pool.ready("m", 3, 0, 4096, 14.0) if isinstance(e, Grant)] == [begun]
