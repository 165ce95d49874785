"""supervisor.scheduler.workers: the steps of one worker's life, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from supervisor.scheduler.effects import Effect, LogLine, RememberExcess, Spawn, Stop
from supervisor.scheduler.ledger import STRANDED_SECONDS, OverBudget, Phase
from supervisor.scheduler.lifecycle import Event, IllegalTransition, State
from supervisor.scheduler.model import DrainCause, Limits, Model, ReleaseRule, Rules, Spec
from supervisor.scheduler.state import PoolState
from supervisor.scheduler.workers import Workers
from tests.helpers.pools import GB

LIMITS = Limits(load_stall=10.0, drain=20.0, stop=3.0, stop_per_gigabyte=0.5)


class One:
    """A model of 4 GB, and the steps of its workers."""

    def __init__(
        self, *, release: ReleaseRule = ReleaseRule.AT_REAP, budget: int | None = 10 * GB
    ) -> None:
        self.state = PoolState(
            [Spec("m", estimate_bytes=4 * GB, headroom_bytes=GB)],
            default_model="",
            limits=LIMITS,
            rules=Rules(release=release),
            budget=budget,
            jitter=lambda: 1.0,
        )
        self.workers = Workers(self.state)
        self.model: Model = self.state.models["m"]

    def brought_to(self, state: State) -> One:
        """An incarnation in this state, spawned at 0 and ready at 2."""
        self.workers.spawn(self.model, 0.0)
        if state is State.LOADING:
            return self
        self.workers.become_ready(self.model, 2 * GB, 4096, 2.0)
        if state is State.STOPPING:
            self.workers.kill(self.model, "it must", 3.0)
        assert self.model.state is state
        return self

    def ended(self, now: float) -> list[Effect]:
        """Its process and its memory are gone."""
        assert self.workers.reap(self.model, now)
        return self.workers.release(self.model, now)


def test_a_spawn_is_charged_before_it_is_asked_for() -> None:
    one = One()
    assert one.workers.spawn(one.model, 5.0) == [Spawn("m", 1)]
    assert one.state.ledger.of(("m", 1)) == 4 * GB
    assert (one.model.state, one.model.deadline) == (State.LOADING, 15.0)


def test_what_does_not_fit_is_not_spawned() -> None:
    one = One(budget=3 * GB)
    with pytest.raises(OverBudget):
        one.workers.spawn(one.model, 0.0)


def test_a_ready_worker_is_charged_what_it_was_measured_to_need() -> None:
    one = One().brought_to(State.READY)
    assert one.state.ledger.of(("m", 1)) == 3 * GB  # with the headroom
    assert (one.model.load_seconds, one.model.deadline) == (2.0, None)
    assert (one.model.current.loaded_at, one.model.current.idle_since) == (2.0, 2.0)


def test_an_idle_worker_that_drains_is_stopped_at_once() -> None:
    one = One().brought_to(State.READY)
    assert one.workers.drain(one.model, DrainCause.EVICTION, 5.0) == [Stop("m", 1, kill=False)]
    assert one.model.deadline == 5.0 + 3.0 + 0.5 * 3  # what it is charged counts
    assert not one.model.current.exit_is_crash


@pytest.mark.parametrize(("seconds", "until"), [(None, 25.0), (4.0, 9.0)])
def test_a_busy_worker_that_drains_has_its_time(seconds: float | None, until: float) -> None:
    one = One().brought_to(State.READY)
    lease = object()
    one.model.granted[1] = lease  # type: ignore[assignment]
    assert one.workers.drain(one.model, DrainCause.EVICTION, 5.0, seconds=seconds) == []
    assert (one.model.state, one.model.deadline) == (State.DRAINING, until)
    assert one.workers.stop_if_drained(one.model, 6.0) == []
    assert one.model.current.exit_is_crash  # should it come now
    del one.model.granted[1]
    assert one.workers.stop_if_drained(one.model, 6.0) == [Stop("m", 1, kill=False)]


@pytest.mark.parametrize(
    ("cause", "hurried"),
    [(DrainCause.EVICTION, DrainCause.EMERGENCY), (DrainCause.SHUTDOWN, DrainCause.SHUTDOWN)],
)
def test_a_drain_may_be_hurried_and_never_prolonged(cause: DrainCause, hurried: DrainCause) -> None:
    one = One().brought_to(State.READY)
    one.model.granted[1] = object()  # type: ignore[assignment]
    one.workers.drain(one.model, cause, 5.0)
    one.workers.hurry_drain(one.model, 4.0, 6.0)
    assert (one.model.deadline, one.model.current.drain_cause) == (10.0, hurried)
    one.workers.hurry_drain(one.model, 100.0, 7.0)
    assert one.model.deadline == 10.0


STEPS: dict[str, tuple[State, Callable[[One], object], State]] = {
    "its load is aborted": (
        State.LOADING,
        lambda one: one.workers.abort_load(one.model, 3.0),
        State.COLD,
    ),
    "its files are bad": (
        State.LOADING,
        lambda one: one.workers.fail_load(one.model, "no such file", 3.0),
        State.FAILED,
    ),
    "its load stalls": (
        State.LOADING,
        lambda one: one.workers.kill_stalled_load(one.model, 3.0),
        State.CRASHED,
    ),
    "it is at fault": (
        State.READY,
        lambda one: one.workers.kill(one.model, "it hangs", 3.0),
        State.CRASHED,
    ),
    "it dies by itself": (
        State.READY,
        lambda one: one.workers.await_exit(one.model, "SIGABRT", 3.0),
        State.CRASHED,
    ),
    "it is unloaded": (
        State.READY,
        lambda one: one.workers.drain(one.model, DrainCause.BY_HAND, 3.0),
        State.COLD,
    ),
}


@pytest.mark.parametrize("how", STEPS)
def test_nothing_is_left_of_an_incarnation_but_its_number(how: str) -> None:
    """However it goes, the next one starts like the first."""
    start, step, end = STEPS[how]
    one = One().brought_to(start)
    step(one)
    assert one.model.state is State.STOPPING
    assert one.model.current.exit_is_crash == (end is State.CRASHED)
    one.model.current.backoff = 5.0 if end is State.CRASHED else None
    reason = one.model.reason
    one.ended(10.0)
    assert (one.model.state, one.model.worker) == (end, None)
    assert one.state.ledger.charged == 0
    assert one.model.reason == (reason if end is State.FAILED else "")
    assert one.model.deadline == (15.0 if end is State.CRASHED else None)
    if end is State.FAILED:
        one.workers.forget_crashes(one.model)
    elif end is State.CRASHED:
        one.workers.end_backoff(one.model)
    assert (one.model.reason, one.model.deadline) == ("", None)
    assert one.workers.spawn(one.model, 20.0) == [Spawn("m", 2)]
    fresh = one.model.current
    assert (fresh.stop_reason, fresh.backoff, fresh.exit_is_crash) == ("", None, True)


@pytest.mark.parametrize("how", STEPS)
def test_a_step_out_of_place_raises(how: str) -> None:
    _, step, _ = STEPS[how]
    with pytest.raises((IllegalTransition, AssertionError)):
        step(One())
    with pytest.raises(IllegalTransition):
        step(One().brought_to(State.STOPPING))


def test_a_crash_is_left_alone_only_as_long_as_it_keeps_dying() -> None:
    one = One().brought_to(State.STOPPING)
    assert one.ended(10.0) == []
    assert one.model.state is State.COLD
    one.workers.spawn(one.model, 11.0)
    one.workers.kill(one.model, "again", 12.0)
    one.model.current.backoff = 5.4
    (line,) = one.ended(13.0)
    assert isinstance(line, LogLine)
    assert "not loaded again for 5 s" in line.text
    assert (one.model.state, one.model.deadline) == (State.CRASHED, 18.4)


def test_nothing_is_left_alone_while_shutting_down() -> None:
    one = One().brought_to(State.STOPPING)
    one.model.current.backoff = 5.0
    one.state.shutting_down = True
    assert one.ended(10.0) == []
    assert one.model.state is State.COLD


def test_a_stop_is_a_kill_when_it_is_too_late_for_another() -> None:
    one = One().brought_to(State.READY)
    one.workers.drain(one.model, DrainCause.EVICTION, 5.0)
    effects = one.workers.stop(one.model, 10.0, kill=True, stacks=True)
    assert effects == [Stop("m", 1, kill=True, stacks=True)]
    assert one.model.deadline is None


def test_memory_that_must_be_seen_to_be_back_is_waited_for_and_charged() -> None:
    one = One(release=ReleaseRule.WHEN_SEEN).brought_to(State.STOPPING)
    assert not one.workers.reap(one.model, 10.0)
    assert one.model.state is State.RELEASING
    assert one.model.deadline == 10.0 + STRANDED_SECONDS
    assert one.state.ledger.charges["m", 1].phase is Phase.RELEASING
    with pytest.raises(IllegalTransition):
        one.model.move(Event.SPAWN)


@pytest.mark.parametrize(("budget", "learned"), [(None, 7), (10, 7), (6, 6), (5, 6)])
def test_a_size_is_learned_with_the_room_that_the_budget_leaves(
    budget: int | None, learned: int
) -> None:
    one = One(budget=None if budget is None else budget * GB)
    one.workers.learn_size(one.model, 6 * GB)
    assert one.model.learned_bytes == learned * GB


def test_what_a_worker_outgrew_the_next_one_is_charged() -> None:
    one = One().brought_to(State.READY)
    told = one.workers.learn_excess(one.model, GB)
    assert told == [RememberExcess("m", GB)]
    assert one.state.ledger.of(("m", 1)) == 3 * GB  # what this one may hold is no more
    one.workers.kill(one.model, "it holds too much", 3.0)
    one.ended(4.0)
    one.workers.spawn(one.model, 5.0)
    assert one.state.ledger.of(("m", 2)) == 4 * GB
    one.workers.become_ready(one.model, 2 * GB, 4096, 6.0)
    assert one.state.ledger.of(("m", 2)) == 4 * GB
    # It adds up, but no model is charged more than there is: it could never be loaded again.
    assert one.workers.learn_excess(one.model, GB) == [RememberExcess("m", 2 * GB)]
    assert one.workers.learn_excess(one.model, 90 * GB) == [RememberExcess("m", 7 * GB)]
    assert one.model.size == 10 * GB
    assert one.workers.learn_excess(one.model, GB) == [RememberExcess("m", 7 * GB)]
    # Nor after a load that took more than the last one.
    one.workers.learn_size(one.model, 4 * GB)
    assert (one.model.excess_bytes, one.model.size) == (6 * GB, 10 * GB)
    one.workers.learn_size(one.model, 11 * GB)
    assert (one.model.excess_bytes, one.model.size) == (0, 11 * GB)
