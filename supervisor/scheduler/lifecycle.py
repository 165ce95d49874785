"""The life of one model's worker, as a table. Everything that moves a state is in this file.

`transition` is total over the table and raises on any other pair: an illegal pair is a bug in the
pool, never something to tolerate.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class State(enum.StrEnum):
    COLD = "cold"
    LOADING = "loading"
    """From the spawn until the weights are in memory and measured."""
    READY = "ready"
    DRAINING = "draining"
    """Serves its leases, admits nobody; irrevocable."""
    STOPPING = "stopping"
    """Told to exit; killed when it does not."""
    RELEASING = "releasing"
    """Exited; its memory is not yet seen to be back."""
    CRASHED = "crashed"
    """Waits out its backoff before the next load."""
    FAILED = "failed"
    """Cannot be loaded until its files or the configuration change."""


class Event(enum.StrEnum):
    SPAWN = "spawn"
    READY = "ready"
    LOAD_FAILED = "load_failed"
    LOAD_STALLED = "load_stalled"
    DRAIN = "drain"
    DRAINED = "drained"
    KILL = "kill"
    EXITED = "exited"
    RELEASED = "released"
    RELEASED_CRASHED = "released_crashed"
    RELEASED_FAILED = "released_failed"
    BACKOFF_OVER = "backoff_over"
    CHANGED = "changed"
    """Files or configuration changed, or a person asked to try again."""


class IllegalTransition(Exception):
    """The pool asked for a move that the table does not have."""


TRANSITIONS: Mapping[tuple[State, Event], State] = {
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

HAS_PROCESS = frozenset({State.LOADING, State.READY, State.DRAINING, State.STOPPING})
"""States in which an operating system process exists."""


def transition(state: State, event: Event) -> State:
    """The state after `event`. Raises IllegalTransition for a pair outside the table."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} in state {state}") from None
