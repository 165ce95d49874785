"""Who gets which worker, decided in one place and without I/O.

`Pool` owns every model's state. Each method is one event: it takes the time, changes the state by
the table in `lifecycle`, and returns the effects that the caller must carry out in order. Nothing
here blocks, sleeps, reads a clock or touches a process, so a test drives it step by step.

What an event does to a request:

1. acquire: shutting down → refuse; unknown name → refuse; FAILED → refuse with the reason;
   as many requests as the queue bound → refuse.
2. acquire, READY → grant.
3. acquire otherwise → wait; COLD → spawn. Everyone who comes meanwhile waits for that one load.
4. ready → grant all who wait. A death or a failed load refuses them.
5. exited with leases → each lease dies exactly once; the next acquire spawns again.
6. A waiter that leaves cancels nothing: the load goes on for those who come next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from supervisor.errors import (
    BulkheadError,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    QueueFull,
    ShuttingDown,
    WorkerCrashed,
)
from supervisor.lifecycle import HAS_PROCESS, Event, State, transition

DEFAULT_MODEL = "default_model"
"""The name by which mlx_lm.server's clients ask for whatever is served."""
_NAME_SHOWN = 200
"""Characters of an unknown name that a message repeats."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the pool must know of a configured model. `capacity` bounds its requests, waiting
    ones included."""

    name: str
    aliases: tuple[str, ...] = ()
    capacity: int = 32 + 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds."""

    load_stall: float = 120.0
    drain: float = 120.0
    stop: float = 30.0
    """Between SIGTERM and SIGKILL, for a worker of no size; `stop_per_gigabyte` is added."""
    stop_per_gigabyte: float = 0.5
    """Tearing down wired memory takes time, and a SIGKILL in the middle of it can strand it."""


@dataclass(slots=True)
class Lease:
    """One request's place, waiting or granted."""

    id: int
    request_id: str
    deadline: float
    """When waiting ends, monotonic seconds."""


@dataclass(slots=True)
class Entry:
    """One model and its current worker, if any."""

    spec: Spec
    state: State = State.COLD
    generation: int = 0
    pid: int | None = None
    waiting: dict[int, Lease] = field(default_factory=dict)
    granted: dict[int, Lease] = field(default_factory=dict)
    reason: str = ""
    """Why the model is FAILED, or why its worker is being stopped."""
    after_exit: Event = Event.RELEASED_CRASHED
    """Where RELEASING leads: an exit that nobody asked for is a crash, whatever its status."""
    deadline: float | None = None
    """Of the current state: load progress, drain, or TERM → KILL."""
    load_started: float = 0.0
    load_seconds: float | None = None
    loaded_at: float | None = None
    last_used: float | None = None
    use_count: int = 0
    memory_bytes: int = 0
    context: int = 0
    deaths: int = 0

    @property
    def worker(self) -> str:
        return f"{self.spec.name}#{self.generation}"


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for this incarnation; then call `started` or `exited`."""

    model: str
    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Send SIGTERM, or SIGKILL, to this incarnation."""

    model: str
    generation: int
    kill: bool


@dataclass(frozen=True, slots=True)
class Grant:
    lease: int
    model: str
    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class Refuse:
    lease: int
    error: BulkheadError


@dataclass(frozen=True, slots=True)
class Bury:
    """The worker that this lease was granted is gone."""

    lease: int
    error: BulkheadError


Effect = Spawn | Stop | Grant | Refuse | Bury


class Pool:
    """All models' entries and the decisions about them."""

    def __init__(
        self, specs: Iterable[Spec], *, default_model: str = "", limits: Limits | None = None
    ) -> None:
        self.entries: dict[str, Entry] = {spec.name: Entry(spec) for spec in specs}
        self.limits = limits or Limits()
        self._names: Mapping[str, str] = {
            alias: entry.spec.name
            for entry in self.entries.values()
            for alias in (*entry.spec.aliases, entry.spec.name)
        }
        self._default = default_model
        self._leases: dict[int, Entry] = {}
        self._ids = itertools.count(1)
        self.shutting_down = False

    # ── names ────────────────────────────────────────────────────────────────────────────────────

    def resolve(self, requested: str) -> Entry:
        """The entry that a request's `model` means. Raises ModelNotFound.

        An exact name or alias wins; then Ollama's `:latest` is dropped; an empty name and
        "default_model" mean the configured default.
        """
        if requested in ("", DEFAULT_MODEL) and requested not in self._names:
            requested = self._default
        name = self._names.get(requested) or self._names.get(requested.removesuffix(":latest"))
        if name is None and not requested:
            raise ModelNotFound(
                "The request names no model, and server.default_model is not set. "
                "GET /v1/models lists what is served here.",
                param="model",
            )
        if name is None:
            raise ModelNotFound(
                f"The model `{requested[:_NAME_SHOWN]}` does not exist or you do not have "
                "access to it. GET /v1/models lists what is served here.",
                param="model",
            )
        return self.entries[name]

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def acquire(
        self, request_id: str, model: str, hold: float, now: float
    ) -> tuple[int, list[Effect]]:
        """A request wants a place and waits at most `hold` seconds. Returns its lease's id."""
        lease = Lease(next(self._ids), request_id, now + hold)
        try:
            entry = self._admit(model)
        except BulkheadError as error:
            return lease.id, [Refuse(lease.id, error)]
        self._leases[lease.id] = entry
        entry.waiting[lease.id] = lease
        entry.use_count += 1
        entry.last_used = now
        if entry.state is State.READY:
            return lease.id, self._grant_waiting(entry)
        if entry.state is State.COLD:
            return lease.id, self._spawn(entry, now)
        return lease.id, []

    def release(self, lease_id: int, now: float) -> list[Effect]:
        """The lease's connection closed. Unknown leases ended earlier and need nothing."""
        entry = self._leases.pop(lease_id, None)
        if entry is None:
            return []
        entry.waiting.pop(lease_id, None)
        if entry.granted.pop(lease_id, None) is not None:
            entry.last_used = now
        return self._stop_if_drained(entry, now)

    def fault(self, lease_id: int, reason: str, now: float) -> list[Effect]:
        """The gateway caught this lease's worker breaking the protocol: it must go."""
        entry = self._leases.get(lease_id)
        if entry is None or lease_id not in entry.granted:
            return []
        return self._kill(entry, reason, now)

    def preload(self, model: str, now: float) -> list[Effect]:
        """Load without a request; nothing where the model is on its way already."""
        entry = self.entries[model]
        if entry.state is not State.COLD or self.shutting_down:
            return []
        return self._spawn(entry, now)

    def changed(self, model: str) -> None:
        """A FAILED model's files are not what they were: it may be tried again."""
        entry = self.entries[model]
        if entry.state is State.FAILED:
            self._move(entry, Event.CHANGED)
            entry.reason = ""

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    def started(self, model: str, generation: int, pid: int) -> None:
        """The process exists."""
        entry = self._current(model, generation)
        if entry is not None:
            entry.pid = pid

    def loading(self, model: str, generation: int, now: float) -> None:
        """The load made progress: its deadline starts anew."""
        entry = self._current(model, generation)
        if entry is not None and entry.state is State.LOADING:
            entry.deadline = now + self.limits.load_stall

    def ready(
        self, model: str, generation: int, memory_bytes: int, context: int, now: float
    ) -> list[Effect]:
        """The worker serves. `memory_bytes` is measured, `context` is in tokens."""
        entry = self._current(model, generation)
        if entry is None or entry.state is not State.LOADING:
            return []
        self._move(entry, Event.READY)
        entry.memory_bytes, entry.context = memory_bytes, context
        entry.load_seconds, entry.loaded_at = now - entry.load_started, now
        entry.deadline = None
        return self._grant_waiting(entry)

    def load_failed(self, model: str, generation: int, reason: str, now: float) -> list[Effect]:
        """These files can never be served: FAILED once the process is gone."""
        entry = self._current(model, generation)
        if entry is None or entry.state is not State.LOADING:
            return []
        self._move(entry, Event.LOAD_FAILED)
        entry.reason, entry.after_exit = reason, Event.RELEASED_FAILED
        return [*self._refuse_waiting(entry, self._failed(entry)), *self._stop(entry, now)]

    def broken(self, model: str, generation: int, reason: str, now: float) -> list[Effect]:
        """The process runs but can't be worked with any more: it must go."""
        entry = self._current(model, generation)
        return [] if entry is None else self._kill(entry, reason, now)

    def dying(self, model: str, generation: int, how: str, now: float) -> list[Effect]:
        """A fatal signal has come. Nothing can save the process, and its end takes its time: those
        who are in it learn it now."""
        entry = self._current(model, generation)
        if entry is None or entry.state is State.STOPPING:
            return []
        error = self._crashed(entry, how)
        effects = [*self._bury_granted(entry, error), *self._refuse_waiting(entry, error)]
        self._move(entry, Event.KILL)
        entry.reason, entry.deadline = how, now + self._grace(entry)
        return effects

    def exited(self, model: str, generation: int, how: str, now: float) -> list[Effect]:
        """The process is reaped. `how` describes its end, such as "SIGABRT"."""
        entry = self._current(model, generation)
        if entry is None:
            return []
        error = self._crashed(entry, how)
        effects = self._bury_granted(entry, error)
        unasked = entry.state is not State.STOPPING
        if unasked:
            # Who waited for this load was part of its end; who came while a worker was on its
            # way out was not, and waits for the next.
            effects += self._refuse_waiting(entry, error)
        outcome = entry.after_exit
        if unasked or outcome is Event.RELEASED_CRASHED:
            entry.deaths += 1
        self._move(entry, Event.EXITED)
        entry.pid, entry.deadline, entry.memory_bytes, entry.loaded_at = None, None, 0, None
        # On Linux the kernel has torn the memory down by the time a child is reaped.
        self._move(entry, outcome)
        entry.after_exit = Event.RELEASED_CRASHED
        if entry.state is State.CRASHED:
            self._move(entry, Event.BACKOFF_OVER)
        if entry.state is State.FAILED:
            return [*effects, *self._refuse_waiting(entry, self._failed(entry))]
        entry.reason = ""
        return [*effects, *self._spawn(entry, now)] if entry.waiting else effects

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def next_deadline(self) -> float | None:
        """When `tick` must be called next, monotonic seconds."""
        deadlines = [
            deadline
            for entry in self.entries.values()
            for deadline in (entry.deadline, *(lease.deadline for lease in entry.waiting.values()))
            if deadline is not None
        ]
        return min(deadlines, default=None)

    def tick(self, now: float) -> list[Effect]:
        """Do what has fallen due."""
        effects: list[Effect] = []
        for entry in self.entries.values():
            for lease in [lease for lease in entry.waiting.values() if lease.deadline <= now]:
                del entry.waiting[lease.id]
                del self._leases[lease.id]
                effects.append(Refuse(lease.id, self._still_loading(entry, now)))
            if entry.deadline is not None and entry.deadline <= now:
                effects += self._overdue(entry, now)
        return effects

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def shutdown(self, now: float) -> list[Effect]:
        """Admit nobody, let what runs finish until the drain deadline. Again: stop at once."""
        if self.shutting_down:
            effects: list[Effect] = []
            for entry in self.entries.values():
                if entry.state is State.DRAINING:
                    effects += self._cut(entry, now)
                elif entry.state is State.STOPPING:
                    effects += self._stop(entry, now, kill=True)
            return effects
        self.shutting_down = True
        effects = []
        for entry in self.entries.values():
            effects += self._refuse_waiting(entry, _shutting_down())
            if entry.state is State.LOADING:
                self._move(entry, Event.KILL)
                entry.after_exit = Event.RELEASED
                effects += self._stop(entry, now)
            elif entry.state is State.READY:
                self._move(entry, Event.DRAIN)
                entry.deadline = now + self.limits.drain
                effects += self._stop_if_drained(entry, now)
        return effects

    @property
    def stopped(self) -> bool:
        """Whether no worker process is left."""
        return not any(entry.state in HAS_PROCESS for entry in self.entries.values())

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def _admit(self, model: str) -> Entry:
        if self.shutting_down:
            raise _shutting_down()
        entry = self.resolve(model)
        if entry.state is State.FAILED:
            raise self._failed(entry)
        if len(entry.waiting) + len(entry.granted) >= entry.spec.capacity:
            raise QueueFull(
                f"The queue of model `{entry.spec.name}` is full: {entry.spec.capacity} requests "
                "are running or waiting. Try again shortly.",
                retry_after=min(10.0, 1.0 + len(entry.waiting) / 100),
            )
        return entry

    def _current(self, model: str, generation: int) -> Entry | None:
        """The entry, unless the event is about an incarnation that is over."""
        entry = self.entries[model]
        current = entry.generation == generation and entry.state in HAS_PROCESS
        return entry if current else None

    def _move(self, entry: Entry, event: Event) -> None:
        entry.state = transition(entry.state, event)

    def _spawn(self, entry: Entry, now: float) -> list[Effect]:
        self._move(entry, Event.SPAWN)
        entry.generation += 1
        entry.load_started = now
        entry.deadline = now + self.limits.load_stall
        return [Spawn(entry.spec.name, entry.generation)]

    def _stop(self, entry: Entry, now: float, *, kill: bool = False) -> list[Effect]:
        entry.deadline = None if kill else now + self._grace(entry)
        return [Stop(entry.spec.name, entry.generation, kill)]

    def _grace(self, entry: Entry) -> float:
        """Seconds that the process may take to end."""
        return self.limits.stop + self.limits.stop_per_gigabyte * entry.memory_bytes / 1e9

    def _kill(self, entry: Entry, reason: str, now: float) -> list[Effect]:
        if entry.state is State.STOPPING:
            return self._stop(entry, now, kill=True)
        entry.reason = reason
        refused = self._refuse_waiting(entry, self._crashed(entry, reason))
        self._move(entry, Event.KILL)
        return [*refused, *self._stop(entry, now, kill=True)]

    def _grant_waiting(self, entry: Entry) -> list[Effect]:
        granted, entry.waiting = entry.waiting, {}
        entry.granted |= granted
        return [Grant(lease, entry.spec.name, entry.worker, entry.generation) for lease in granted]

    def _refuse_waiting(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        refused, entry.waiting = entry.waiting, {}
        for lease in refused:
            del self._leases[lease]
        return [Refuse(lease, error) for lease in refused]

    def _bury_granted(self, entry: Entry, error: BulkheadError) -> list[Effect]:
        buried, entry.granted = entry.granted, {}
        for lease in buried:
            del self._leases[lease]
        return [Bury(lease, error) for lease in buried]

    def _stop_if_drained(self, entry: Entry, now: float) -> list[Effect]:
        if entry.state is not State.DRAINING or entry.granted:
            return []
        self._move(entry, Event.DRAINED)
        entry.after_exit = Event.RELEASED
        return self._stop(entry, now)

    def _cut(self, entry: Entry, now: float) -> list[Effect]:
        """The drain deadline: end what still runs, then stop the worker."""
        cut = self._bury_granted(entry, _shutting_down())
        return [*cut, *self._stop_if_drained(entry, now)]

    def _overdue(self, entry: Entry, now: float) -> list[Effect]:
        if entry.state is State.LOADING:
            self._move(entry, Event.LOAD_STALLED)
            entry.reason = f"the load made no progress for {self.limits.load_stall:g} s"
            error = ModelLoading(
                f"Loading model `{entry.spec.name}` made no progress for "
                f"{self.limits.load_stall:g} s and was stopped. Try again; if it repeats, look at "
                f"`{entry.worker}` in the logs.",
                retry_after=entry.load_seconds,
            )
            return [*self._refuse_waiting(entry, error), *self._stop(entry, now, kill=True)]
        if entry.state is State.DRAINING:
            return self._cut(entry, now)
        return self._stop(entry, now, kill=True)  # STOPPING: it ignored SIGTERM

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    def _failed(self, entry: Entry) -> ModelLoadFailed:
        return ModelLoadFailed(
            f"The model `{entry.spec.name}` cannot be loaded here: {entry.reason}", param="model"
        )

    def _crashed(self, entry: Entry, how: str) -> WorkerCrashed:
        cause = f"{how}; {entry.reason}" if entry.reason and entry.reason != how else how
        phase = "while it loaded" if entry.loaded_at is None else "during this request"
        return WorkerCrashed(
            f"The worker {entry.worker} died ({cause}) {phase}. Other models are not affected; "
            "retry, and the model is loaded again.",
            retry_after=entry.load_seconds,
        )

    def _still_loading(self, entry: Entry, now: float) -> ModelLoading:
        loading = entry.state is State.LOADING
        elapsed = now - entry.load_started if loading else 0.0
        left = None if entry.load_seconds is None else entry.load_seconds - elapsed
        since = f"still loading after {elapsed:.0f} s" if loading else "about to be loaded again"
        return ModelLoading(
            f"The model `{entry.spec.name}` is {since}. The load goes on; try again.",
            retry_after=left,
        )


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("The server is shutting down. Try again once it has restarted.")
