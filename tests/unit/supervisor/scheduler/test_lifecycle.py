"""supervisor.scheduler.lifecycle: the table of states, pair by pair."""

from __future__ import annotations

from itertools import product

import pytest

from supervisor.scheduler.lifecycle import HAS_PROCESS, Event, IllegalTransition, State, transition

LEGAL: dict[tuple[State, Event], State] = {
    (State.COLD, Event.SPAWN): State.LOADING,
    (State.LOADING, Event.READY): State.READY,
    (State.LOADING, Event.LOAD_FAILED): State.STOPPING,
    (State.LOADING, Event.LOAD_STALLED): State.STOPPING,
    (State.LOADING, Event.KILL): State.STOPPING,
    (State.LOADING, Event.EXITED): State.RELEASING,
    (State.READY, Event.DRAIN): State.DRAINING,
    (State.READY, Event.KILL): State.STOPPING,
    (State.READY, Event.EXITED): State.RELEASING,
    (State.DRAINING, Event.DRAINED): State.STOPPING,
    (State.DRAINING, Event.KILL): State.STOPPING,
    (State.DRAINING, Event.EXITED): State.RELEASING,
    (State.STOPPING, Event.EXITED): State.RELEASING,
    (State.RELEASING, Event.RELEASED): State.COLD,
    (State.RELEASING, Event.RELEASED_CRASHED): State.CRASHED,
    (State.RELEASING, Event.RELEASED_FAILED): State.FAILED,
    (State.CRASHED, Event.BACKOFF_OVER): State.COLD,
    (State.FAILED, Event.CHANGED): State.COLD,
}
PAIRS = list(product(State, Event))


def name(value: object) -> str:
    return str(value)


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=name)
def test_a_pair_leads_where_the_design_says_or_raises(state: State, event: Event) -> None:
    if (state, event) in LEGAL:
        assert transition(state, event) is LEGAL[state, event]
    else:
        with pytest.raises(IllegalTransition, match=f"{event} in state {state}"):
            transition(state, event)


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_and_left(state: State) -> None:
    assert state in LEGAL.values()
    assert any(start is state for start, _ in LEGAL)


@pytest.mark.parametrize("state", State)
def test_a_process_ends_where_one_can_be(state: State) -> None:
    """Exactly the states with a process know what its exit means."""
    assert (state in HAS_PROCESS) == ((state, Event.EXITED) in LEGAL)


def test_a_process_starts_from_cold_alone() -> None:
    starts = {
        start
        for (start, _), end in LEGAL.items()
        if end in HAS_PROCESS and start not in HAS_PROCESS
    }
    assert starts == {State.COLD}


def test_draining_is_irrevocable() -> None:
    assert State.READY not in {end for (start, _), end in LEGAL.items() if start is State.DRAINING}
