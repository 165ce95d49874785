"""supervisor.scheduler.lifecycle: what must hold of the table, whatever pairs are added to it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest

from supervisor.scheduler.lifecycle import (
    HAS_PROCESS,
    TRANSITIONS,
    Event,
    IllegalTransition,
    State,
    transition,
)

SETTLED = {State.COLD, State.READY, State.FAILED}
"""States that may last for ever; the others end by themselves."""


def after(states: Iterable[State], without: Iterable[Event] = ()) -> set[State]:
    """Every state that can be reached from these, by other events than those."""
    reached, left = set(states), list(states)
    while left:
        state = left.pop()
        for (before, event), then in TRANSITIONS.items():
            if before is state and event not in without and then not in reached:
                reached.add(then)
                left.append(then)
    return reached


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=str)
def test_a_pair_is_in_the_table_or_raises(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert transition(state, event) is not state
    else:
        with pytest.raises(IllegalTransition, match=f"{event} in state {state}"):
            transition(state, event)


def test_every_state_is_reached_and_every_event_means_something() -> None:
    assert after([State.COLD]) == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("state", State)
def test_no_state_is_a_dead_end(state: State) -> None:
    """From everywhere a model can be loaded again, without a person if nothing failed."""
    assert State.READY in after([state])
    if state is not State.FAILED:
        without = [Event.CHANGED, Event.RELEASED_FAILED, Event.LOAD_FAILED]
        assert State.READY in after([state], without)


@pytest.mark.parametrize("state", State)
def test_a_process_ends_once_and_is_learned_of_where_there_is_one(state: State) -> None:
    """Whatever a process is told, it may exit by itself, and what follows is the same."""
    if state in HAS_PROCESS:
        assert transition(state, Event.EXITED) is State.RELEASING
    else:
        with pytest.raises(IllegalTransition):
            transition(state, Event.EXITED)


def test_a_process_starts_by_a_spawn_and_goes_by_its_exit_alone() -> None:
    for (before, event), then in TRANSITIONS.items():
        if before not in HAS_PROCESS and then in HAS_PROCESS:
            assert (before, event) == (State.COLD, Event.SPAWN)
        if before in HAS_PROCESS and then not in HAS_PROCESS:
            assert event is Event.EXITED


def test_memory_is_waited_for_between_two_processes() -> None:
    """Or two incarnations would be charged for one place."""
    without = [Event.RELEASED, Event.RELEASED_CRASHED, Event.RELEASED_FAILED]
    for state in (*HAS_PROCESS, State.RELEASING):
        assert State.COLD not in after([state], without)


def test_draining_is_irrevocable() -> None:
    assert State.READY not in after([State.DRAINING], [Event.SPAWN])


def test_who_is_to_be_killed_serves_no_more() -> None:
    for (_, event), then in TRANSITIONS.items():
        if event in (Event.KILL, Event.LOAD_STALLED, Event.LOAD_FAILED, Event.DRAINED):
            assert then is State.STOPPING


def test_what_passes_ends_whatever_the_requests_do() -> None:
    """A passing state is left by something that the supervisor itself sees to."""
    own = {
        Event.LOAD_STALLED,
        Event.DRAINED,
        Event.KILL,
        Event.EXITED,
        Event.RELEASED,
        Event.BACKOFF_OVER,
    }
    for state in set(State) - SETTLED:
        assert any(before is state and event in own for before, event in TRANSITIONS)
