"""The steps of a worker's life: each does one thing to one entry and returns its effects.

It decides nothing. `pool` decides.
"""

from __future__ import annotations

from supervisor.scheduler import refusals
from supervisor.scheduler.effects import Effect, Spawn, Stop
from supervisor.scheduler.ledger import STRANDED_SECONDS
from supervisor.scheduler.lifecycle import HAS_PROCESS, Event, State
from supervisor.scheduler.model import DrainCause, Entry, ReleaseRule
from supervisor.scheduler.requests import Leases


class Roster(Leases):
    """Entries by name; every lease that is open; one ledger for all."""

    @property
    def stopped(self) -> bool:
        """Whether no worker process is left."""
        return not any(entry.state in HAS_PROCESS for entry in self.entries.values())

    def _current(self, model: str, generation: int) -> Entry | None:
        """The entry, unless the event is about an incarnation that is over."""
        entry = self.entries[model]
        current = entry.generation == generation and entry.state in HAS_PROCESS
        return entry if current else None

    @staticmethod
    def _serves(entry: Entry) -> bool:
        """Whether the worker admits requests."""
        return entry.state is State.READY

    # ── a worker's life ──────────────────────────────────────────────────────────────────────────

    def _spawn(self, entry: Entry, now: float) -> list[Effect]:
        """Charge, then start. The ledger raises when the plan was wrong."""
        self._move(entry, Event.SPAWN)
        entry.generation += 1
        entry.crowd = 0
        self.ledger.charge(entry.key, entry.size)
        entry.load_started = now
        entry.deadline = now + self.limits.load_stall
        return [Spawn(entry.spec.name, entry.generation)]

    def _stop(
        self, entry: Entry, now: float, *, kill: bool = False, stacks: bool = False
    ) -> list[Effect]:
        entry.deadline = None if kill else now + self._grace(entry)
        return [Stop(entry.spec.name, entry.generation, kill, stacks)]

    def _grace(self, entry: Entry) -> float:
        """Seconds that the process may take to end."""
        size = max(entry.memory_bytes, self.ledger.of(entry.key))
        return self.limits.stop + self.limits.stop_per_gigabyte * size / 1e9

    def _drain(self, entry: Entry, cause: DrainCause, seconds: float, now: float) -> list[Effect]:
        """READY: admit nobody any more, end with the last lease or after `seconds`."""
        self._move(entry, Event.DRAIN)
        entry.drain_cause, entry.deadline = cause, now + seconds
        if entry.waiting and entry.queued_since is None:
            entry.queued_since = now  # whoever had no place yet queues for the next worker
        return self._stop_if_drained(entry, now)

    def _stop_if_drained(self, entry: Entry, now: float) -> list[Effect]:
        if entry.state is not State.DRAINING or entry.granted:
            return []
        self._move(entry, Event.DRAINED)
        entry.after_exit = Event.RELEASED
        return self._stop(entry, now)

    def _cut(self, entry: Entry, now: float) -> list[Effect]:
        """The drain deadline: park what still runs, or end it where a person wants the model gone;
        then stop the worker."""
        error = refusals.cut(entry)
        if entry.drain_cause is DrainCause.BY_HAND:
            cut = self._bury(entry, error)
        else:
            cut = self._interrupt(entry, error, now, parked=True)
        return [*cut, *self._stop_if_drained(entry, now)]

    def _abort_load(self, entry: Entry, now: float) -> list[Effect]:
        """LOADING: stop a load that is not at fault."""
        self._move(entry, Event.KILL)
        entry.after_exit = Event.RELEASED
        return self._stop(entry, now)

    def _kill(self, entry: Entry, reason: str, now: float) -> list[Effect]:
        if entry.state is State.STOPPING:
            return self._stop(entry, now, kill=True)
        entry.reason = reason
        refused = self._fail_load(entry, refusals.crashed(entry, reason))
        self._move(entry, Event.KILL)
        return [*refused, *self._stop(entry, now, kill=True)]

    def _reaped(self, entry: Entry, now: float) -> list[Effect]:
        """The process is gone: its charge ends now, or once its memory is seen to be back."""
        self._move(entry, Event.EXITED)
        entry.pid, entry.deadline, entry.memory_bytes, entry.loaded_at = None, None, 0, None
        entry.unload_asked = False
        if self.rules.release is ReleaseRule.AT_REAP:
            self.ledger.release(entry.key)
            return self._released(entry, now)
        self.ledger.exited(entry.key, now)
        entry.deadline = now + STRANDED_SECONDS
        return []

    def _released(self, entry: Entry, now: float) -> list[Effect]:
        """RELEASING: nobody has to wait for this incarnation's memory any longer."""
        self._move(entry, entry.after_exit)
        entry.after_exit, entry.deadline = Event.RELEASED_CRASHED, None
        if entry.state is State.FAILED:
            return self._turn_away(entry, refusals.failed(entry))
        entry.reason = ""
        if entry.state is State.CRASHED:
            if entry.backoff is not None and not self.shutting_down:
                return self._back_off(entry, entry.backoff, now)
            self._move(entry, Event.BACKOFF_OVER)
        return []

    def _back_off(self, entry: Entry, seconds: float, now: float) -> list[Effect]:
        """CRASHED: the model keeps dying, and nobody loads it for a while."""
        entry.backoff, entry.deadline = None, now + seconds
        said = self._warn(
            f"{entry.spec.name} keeps dying without a token between: it is not loaded again for "
            f"{seconds:.0f} s"
        )
        dropped = self._drop_wish(entry, "it keeps dying")
        return [*said, *dropped, *self._turn_away(entry, refusals.unavailable(entry, now))]

    def _learn(self, entry: Entry, measured: int) -> None:
        """A load took so much: that is what the next one is charged, with room for requests. But
        only the room that the budget leaves: a model that fits alone serves fewer requests rather
        than none."""
        room = entry.spec.headroom_bytes
        if self.ledger.budget is not None:
            room = max(0, min(room, self.ledger.budget - measured))
        entry.learned_bytes = measured + room
