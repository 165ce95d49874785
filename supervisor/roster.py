"""All models' entries, their charges and leases, and the steps that change them.

A step does one thing to one entry and returns its effects; it decides nothing. `pool` decides.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping

from supervisor import refusals
from supervisor.effects import Bury, Effect, Grant, Loaded, Refuse, Say, Spawn, Stop
from supervisor.entry import DrainCause, Entry, Lease, Limits, Purpose, ReleaseRule, Rules, Spec
from supervisor.errors import BulkheadError
from supervisor.ledger import STRANDED_SECONDS, Ledger
from supervisor.lifecycle import HAS_PROCESS, Event, State, transition

DEFAULT_MODEL = "default_model"
"""The name by which mlx_lm.server's clients ask for whatever is served."""


class Roster:
    """Entries by name; every lease that is open; one ledger for all."""

    def __init__(
        self,
        specs: Iterable[Spec],
        *,
        default_model: str = "",
        limits: Limits | None = None,
        rules: Rules | None = None,
        budget: int | None = None,
    ) -> None:
        self.entries: dict[str, Entry] = {spec.name: Entry(spec, pinned=spec.pin) for spec in specs}
        self.limits = limits or Limits()
        self.rules = rules or Rules()
        self.ledger = Ledger(budget)
        self.uses = 0
        """Requests over all models, the clock by which frequencies age."""
        self.shutting_down = False
        self._names: Mapping[str, str] = {
            alias: entry.spec.name
            for entry in self.entries.values()
            for alias in (*entry.spec.aliases, entry.spec.name)
        }
        self._default = default_model
        self._leases: dict[int, Entry] = {}
        self._ids = itertools.count(1)

    def resolve(self, requested: str) -> Entry:
        """The entry that a request's `model` means. Raises ModelNotFound.

        An exact name or alias wins; then Ollama's `:latest` is dropped; an empty name and
        "default_model" mean the configured default.
        """
        if requested in ("", DEFAULT_MODEL) and requested not in self._names:
            requested = self._default
        name = self._names.get(requested) or self._names.get(requested.removesuffix(":latest"))
        if name is None:
            raise refusals.unknown(requested) if requested else refusals.unnamed()
        return self.entries[name]

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

    def _move(self, entry: Entry, event: Event) -> None:
        entry.state = transition(entry.state, event)

    # ── a worker's life ──────────────────────────────────────────────────────────────────────────

    def _spawn(self, entry: Entry, now: float) -> list[Effect]:
        """Charge, then start. The ledger raises when the plan was wrong."""
        self._move(entry, Event.SPAWN)
        entry.generation += 1
        self.ledger.charge(entry.key, entry.size)
        entry.load_started = now
        entry.deadline = now + self.limits.load_stall
        return [Spawn(entry.spec.name, entry.generation)]

    def _stop(self, entry: Entry, now: float, *, kill: bool = False) -> list[Effect]:
        entry.deadline = None if kill else now + self._grace(entry)
        return [Stop(entry.spec.name, entry.generation, kill)]

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
        """The drain deadline: end what still runs, then stop the worker."""
        cut = self._bury_granted(entry, refusals.cut(entry))
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
        refused = self._refuse_load(entry, refusals.crashed(entry, reason))
        self._move(entry, Event.KILL)
        return [*refused, *self._stop(entry, now, kill=True)]

    def _reaped(self, entry: Entry, now: float) -> list[Effect]:
        """The process is gone: its charge ends now, or once its memory is seen to be back."""
        self._move(entry, Event.EXITED)
        entry.pid, entry.deadline, entry.memory_bytes, entry.loaded_at = None, None, 0, None
        entry.unload_asked = False
        if self.rules.release is ReleaseRule.AT_REAP:
            self.ledger.release(entry.key)
            return self._released(entry)
        self.ledger.exited(entry.key, now)
        entry.deadline = now + STRANDED_SECONDS
        return []

    def _released(self, entry: Entry) -> list[Effect]:
        """RELEASING: nobody has to wait for this incarnation's memory any longer."""
        self._move(entry, entry.after_exit)
        entry.after_exit, entry.deadline = Event.RELEASED_CRASHED, None
        if entry.state is State.CRASHED:
            self._move(entry, Event.BACKOFF_OVER)
        if entry.state is State.FAILED:
            return self._refuse_waiting(entry, refusals.failed(entry))
        entry.reason = ""
        return []

    def _learn(self, entry: Entry, measured: int) -> None:
        """A load took so much: that is what the next one is charged, with room for requests. But
        only the room that the budget leaves: a model that fits alone serves fewer requests rather
        than none."""
        room = entry.spec.headroom_bytes
        if self.ledger.budget is not None:
            room = max(0, min(room, self.ledger.budget - measured))
        entry.learned_bytes = measured + room

    # ── leases ───────────────────────────────────────────────────────────────────────────────────

    def _grant_waiting(self, entry: Entry, *, gate_closed: bool) -> list[Effect]:
        """READY: serve in the order of arrival as many as have a place."""
        effects: list[Effect] = []
        limit = entry.spec.concurrency
        for lease in list(entry.waiting.values()):
            if lease.purpose is Purpose.LOAD:
                self._forget(entry, lease)
                effects.append(Loaded(lease.id, entry.spec.name, entry.worker))
            elif not gate_closed and (not limit or len(entry.granted) < limit):
                del entry.waiting[lease.id]
                entry.granted[lease.id] = lease
                effects.append(Grant(lease.id, entry.spec.name, entry.worker, entry.generation))
        return effects

    def _forget(self, entry: Entry, lease: Lease) -> None:
        """A waiting lease has ended."""
        del entry.waiting[lease.id]
        del self._leases[lease.id]

    def _refuse_waiting(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        refused, entry.waiting = entry.waiting, {}
        for lease in refused:
            del self._leases[lease]
        return [Refuse(lease, error) for lease in refused]

    def _refuse_load(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        """A load has failed: who waited for it was part of its end. Who waits while a worker is on
        its way out was not, and waits for the next."""
        if entry.state is not State.LOADING:
            return []
        return [*self._drop_wish(entry, error.message), *self._refuse_waiting(entry, error)]

    def _drop_wish(self, entry: Entry, why: str) -> list[Effect]:
        """A preload has failed, which stops nobody and is told."""
        if entry.wish is None:
            return []
        entry.wish = None
        return self._warn(f"{entry.spec.name} is not preloaded: {why}")

    def _bury_granted(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        buried, entry.granted = entry.granted, {}
        for lease in buried:
            del self._leases[lease]
        return [Bury(lease, error) for lease in buried]

    def _warn(self, text: str) -> list[Effect]:
        return [Say(text, logging.WARNING)]
