"""Who may prefill a long prompt: one worker at a time, where all share one GPU.

A worker asks for its turn with `wants`, and keeps it until it says that it has no heavy prefill
left. One that keeps it for `TURN_SECONDS` while others wait is asked for it, and says that it has
stopped at the end of its slice; it is the last in the queue then. So no two prefill at a time, and
nobody waits for longer than the others' turns.
"""

from __future__ import annotations

from collections.abc import Collection

from supervisor.scheduler.effects import MayPrefill

TURN_SECONDS = 5.0
"""How long a worker may keep others waiting."""

Key = tuple[str, int]
"""A worker: its model and generation."""


class PrefillGate:
    """The queue for the turn, first come, first served."""

    def __init__(self) -> None:
        self._queue: list[Key] = []
        """Who has the turn, then who waits for it."""
        self._since: float | None = None
        """When the first of the queue was told that it has the turn; None = it was not."""
        self._asked_back = False
        """Whether the first of the queue was told to stop, and has not said that it has."""

    @property
    def holder(self) -> Key | None:
        """Who has the turn."""
        return self._queue[0] if self._queue else None

    @property
    def deadline(self) -> float | None:
        """When `serve` must be called though nothing has happened, monotonic seconds."""
        if self._since is None or self._asked_back or len(self._queue) < 2:
            return None
        return self._since + TURN_SECONDS

    def wants(self, worker: Key, wanted: bool) -> None:
        """The worker has a heavy prefill to do, or none. From the one that has the turn either
        means that it has stopped."""
        if worker == self.holder:
            self._remove(worker)
        if not wanted:
            self._remove(worker)
        elif worker not in self._queue:
            self._queue.append(worker)

    def serve(self, living: Collection[Key], now: float) -> list[MayPrefill]:
        """Give the turn to whom it is due. Those who are not among the `living` want nothing."""
        for worker in [each for each in self._queue if each not in living]:
            self._remove(worker)
        if not self._queue:
            return []
        if self._since is None:
            self._since = now
            return [MayPrefill(*self._queue[0], allowed=True)]
        deadline = self.deadline
        if deadline is not None and deadline <= now:
            self._asked_back = True
            return [MayPrefill(*self._queue[0], allowed=False)]
        return []

    def _remove(self, worker: Key) -> None:
        if worker == self.holder:
            self._since, self._asked_back = None, False
        if worker in self._queue:
            self._queue.remove(worker)
