"""One model as the pool sees it: what is configured, who waits, and the current worker if any."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

from supervisor.errors import BulkheadError
from supervisor.scheduler.blame import Fault
from supervisor.scheduler.concurrency_limit import LearnedLimit
from supervisor.scheduler.eviction import Candidate, aged
from supervisor.scheduler.lifecycle import Event, State

_FIRST_LOAD_SECONDS = 2.0
_FIRST_LOAD_BYTES_PER_SECOND = 2e9
"""What a load is taken to need until one has been measured: a process, then reading the weights."""
_RESIDENCY_MAX = 60.0
_WAIT_MIN, _WAIT_MAX = 1.0, 60.0
"""Bounds of what "auto" means, seconds (INTERFACE.md, `[memory]`)."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the pool must know of a configured model. Sizes are in bytes, times in seconds."""

    name: str
    aliases: tuple[str, ...] = ()
    capacity: int = 32 + 1024
    """Bounds its requests, waiting ones included."""
    concurrency: int = 0
    """Requests that may be granted at once, the rest waits here; 0 = all that come."""
    estimate_bytes: int = 0
    """What its files say that it will need, all in all."""
    headroom_bytes: int = 0
    """The part of that which a load does not touch yet: KV budget, prompt cache, prefill."""
    memory_bytes: int | None = None
    """`memory` of the configuration: charged as given, whatever is measured."""
    pin: bool = False
    ttl: float = 0.0
    """Seconds idle before it is unloaded, 0 = never."""
    fallback: str = ""
    """Name or alias of the model that serves its requests while it is unavailable."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds."""

    load_stall: float = 120.0
    drain: float = 120.0
    stop: float = 30.0
    """Between SIGTERM and SIGKILL, for a worker of no size; `stop_per_gigabyte` is added."""
    stop_per_gigabyte: float = 0.5
    """Tearing down wired memory takes time, and a SIGKILL in the middle of it can strand it."""
    emergency_drain: float = 10.0
    """What a busy worker gets when the machine runs out of memory."""
    preload: float = 240.0
    """How long a preload may wait for room."""


class ReleaseRule(enum.Enum):
    """When a dead process's memory counts as back."""

    AT_REAP = enum.auto()
    """Linux: torn down by the time a child is reaped."""
    WHEN_SEEN = enum.auto()
    """macOS: when `memory_seen` says so, or stranded after a while."""


@dataclass(frozen=True, slots=True)
class Rules:
    """`[memory]` and `server.max_requests`, as documented; None stands for "auto"."""

    policy: Literal["gdsf", "use_count", "lru"] = "gdsf"
    keep: int = 1
    max_loaded: int = 0
    cleanup_interval: float = 600.0
    min_residency: float | None = None
    max_wait: float | None = None
    load_gate: Literal["shared", "exclusive"] = "shared"
    load_gate_timeout: float = 120.0
    max_requests: int = 0
    release: ReleaseRule = ReleaseRule.AT_REAP
    recovery: Literal["resume", "replay", "off"] = "off"
    max_recoveries: int = 2
    max_restarts: int = 3
    restart_window: float = 60.0
    backoff_max: float = 300.0

    def residency(self, load_seconds: float) -> float:
        """Seconds for which a model that took this long to load is safe from others."""
        if self.min_residency is not None:
            return self.min_residency
        return min(_RESIDENCY_MAX, 2 * load_seconds)

    def patience(self, load_seconds: float, victim_load_seconds: float) -> float:
        """Seconds after which a waiter makes a busy victim drain."""
        if self.max_wait is not None:
            return self.max_wait
        return max(_WAIT_MIN, min(_WAIT_MAX, 3 * (load_seconds + victim_load_seconds)))


class Purpose(enum.Enum):
    """What a lease is for."""

    REQUEST = enum.auto()
    LOAD = enum.auto()
    """A person wants the model loaded and no place on it."""


class DrainCause(enum.Enum):
    """Why a worker drains, which decides what those learn whom its deadline cuts."""

    EVICTION = enum.auto()
    BY_HAND = enum.auto()
    EMERGENCY = enum.auto()
    SHUTDOWN = enum.auto()


class Suspicion(enum.Enum):
    """How far the worker's last deaths concern a request."""

    CLEAR = enum.auto()
    SUSPECT = enum.auto()
    """It was in a worker that died, and must show alone that it was not the cause."""
    ON_TRIAL = enum.auto()
    """It is showing it."""
    PAUSED = enum.auto()
    """It has shown it, and waits in its worker until the others have."""


@dataclass(slots=True)
class Lease:
    """One request's place: waiting, granted, or expected to return to the queue."""

    id: int
    request_id: str
    deadline: float
    """When waiting ends, monotonic seconds."""
    purpose: Purpose = Purpose.REQUEST
    hold: float = 0.0
    """Seconds that it waits for each of its places."""
    digest: bytes = b""
    """Equal requests have equal ones."""
    asked: str = ""
    """The model it wanted, where its fallback serves it."""
    standing: Suspicion = Suspicion.CLEAR
    position: int = 0
    """Tokens of its output when last heard of."""
    until: int = 0
    """Tokens at which its trial is over."""
    pauses: bool = False
    """Whether it waits in its worker once its trial is over."""
    error: BulkheadError | None = None
    """What ended its last worker: what it is told if it can't go on."""
    unjudged: bool = False
    """Whether its worker has died and it was not said yet what that means for it."""
    fault: Fault | None = None
    """Whose fault that death was; None until the process is reaped."""
    unproductive: int = 0
    """Interruptions since its last new token."""
    interruptions: int = 0
    """In all."""


@dataclass(frozen=True, slots=True)
class PreloadRequest:
    """Load this model when it fits, for nobody in particular."""

    since: float
    deadline: float


@dataclass(slots=True)
class Entry:
    """One model and its current worker, if any."""

    spec: Spec
    state: State = State.COLD
    generation: int = 0
    pid: int | None = None
    waiting: dict[int, Lease] = field(default_factory=dict)
    granted: dict[int, Lease] = field(default_factory=dict)
    returning: dict[int, Lease] = field(default_factory=dict)
    """Interrupted, and their gateways have not said yet where they stand."""
    absent: Lease | None = None
    """It was on trial when its worker died, and has left before the cause was known."""
    proven: bool = False
    """Whether it has made a token for somebody."""
    backoff: float | None = None
    """Seconds to pause after RELEASING, because the model keeps dying."""
    queued_since: float | None = None
    """Since when somebody has waited for a worker that does not exist yet: the model's turn."""
    wish: PreloadRequest | None = None
    pinned: bool = False
    unload_asked: bool = False
    """By hand, while it loads: those who wait are served, nobody else."""
    drain_cause: DrainCause = DrainCause.EVICTION
    reason: str = ""
    """Why the model is FAILED, or why its worker is being stopped."""
    after_exit: Event = Event.RELEASED_CRASHED
    """Where RELEASING leads: an exit that nobody asked for is a crash, whatever its status."""
    deadline: float | None = None
    """Of the current state: load progress, drain, TERM → KILL, or memory that is not back."""
    load_started: float = 0.0
    load_seconds: float | None = None
    loaded_at: float | None = None
    idle_since: float = 0.0
    last_used: float | None = None
    use_count: int = 0
    frequency: float = 0.0
    frequency_at: int = 0
    """Uses of all models when `frequency` was right."""
    pace: float | None = None
    """Seconds between two places that become free, smoothed; None until known."""
    place_freed_at: float | None = None
    memory_bytes: int = 0
    learned_bytes: int | None = None
    """What the last load was found to need, with room for requests; survives unloads."""
    context: int = 0
    deaths: int = 0
    crowd: int = 0
    """Requests that were in the current incarnation when it died or was left."""
    learned_limit: LearnedLimit | None = None
    """After it ran out of memory."""

    @property
    def worker(self) -> str:
        return f"{self.spec.name}#{self.generation}"

    @property
    def key(self) -> tuple[str, int]:
        return (self.spec.name, self.generation)

    @property
    def size(self) -> int:
        """Bytes that the next incarnation is charged: configured, else learned, else estimated."""
        if self.spec.memory_bytes is not None:
            return self.spec.memory_bytes
        return self.spec.estimate_bytes if self.learned_bytes is None else self.learned_bytes

    @property
    def size_source(self) -> str:
        """Where `size` comes from, for people."""
        if self.spec.memory_bytes is not None:
            return "configured"
        return "estimated" if self.learned_bytes is None else "measured"

    @property
    def concurrency(self) -> int:
        """Requests that may be granted at once; 0 = all that come."""
        if self.learned_limit is None:
            return self.spec.concurrency
        return min(self.learned_limit.concurrency, self.spec.concurrency or 2**31)

    @property
    def expected_load(self) -> float:
        """Seconds that a load takes."""
        if self.load_seconds is not None:
            return self.load_seconds
        return _FIRST_LOAD_SECONDS + self.size / _FIRST_LOAD_BYTES_PER_SECOND

    @property
    def in_use(self) -> bool:
        """Whether somebody has a place or waits for one."""
        return bool(self.granted or self.waiting or self.returning)

    @property
    def suspects(self) -> list[Lease]:
        """Those who wait for their trial."""
        return [each for each in self.waiting.values() if each.standing is Suspicion.SUSPECT]

    @property
    def on_trial(self) -> bool:
        """Whether somebody has the worker to itself."""
        return any(lease.standing is Suspicion.ON_TRIAL for lease in self.granted.values())

    @property
    def requests(self) -> int:
        """Those that have a place, wait for one, or return from a death."""
        return len(self.waiting) + len(self.granted) + len(self.returning)

    @property
    def idle_at(self) -> float | None:
        """When its time to live is over, None while that clock does not run."""
        runs = self.state is State.READY and self.spec.ttl > 0 and not self.pinned
        if not runs or self.in_use:
            return None
        return max(self.idle_since, self.last_used or 0.0) + self.spec.ttl

    def used(self, now: float, uses: int) -> None:
        """A request asks for this model; it is the `uses`-th over all."""
        self.use_count += 1
        self.last_used = now
        self.frequency = 1.0 + aged(self.frequency, uses - self.frequency_at)
        self.frequency_at = uses

    def place_freed(self, now: float) -> None:
        """A granted request has ended."""
        if self.place_freed_at is not None:
            gap = now - self.place_freed_at
            self.pace = gap if self.pace is None else 0.8 * self.pace + 0.2 * gap
        self.place_freed_at = now
        self.idle_since = now

    def candidate(self, charged: int, uses: int) -> Candidate:
        """This loaded model as the eviction policies see it after `uses` uses over all."""
        used = self.loaded_at if self.last_used is None else self.last_used
        return Candidate(
            self.spec.name,
            charged,
            self.use_count,
            0.0 if used is None else used,
            aged(self.frequency, uses - self.frequency_at),
            self.expected_load,
        )
