"""One model as the scheduler sees it: what is configured, who waits, and its worker if it has one.

Plain data; the other modules of this room change it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

from supervisor.scheduler.breaker import Breaker
from supervisor.scheduler.eviction import Candidate, aged
from supervisor.scheduler.lease import Lease, Suspicion, UndecidedDeath
from supervisor.scheduler.lifecycle import Event, State, transition
from supervisor.scheduler.overcharge import Watch, backoff

_FIRST_LOAD_SECONDS = 2.0
_FIRST_LOAD_BYTES_PER_SECOND = 2e9
"""What a load is taken to need until one has been measured: a process, then reading the weights."""
_RESIDENCY_MAX = 60.0
_WAIT_MIN, _WAIT_MAX = 1.0, 60.0
"""Bounds of what "auto" means in `[memory]`, seconds."""
QUIET_SECONDS = 2 * 3600.0
"""After so long without running out of memory again, a learned limit is doubled."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the pool must know of a configured model. Sizes are in bytes, times in seconds."""

    name: str
    aliases: tuple[str, ...] = ()
    capacity: int = 64 + 1024
    """Bounds its requests, waiting ones included."""
    concurrency: int = 0
    """Requests that may be granted at once, the rest waits here; 0 = all that come."""
    estimate_bytes: int = 0
    """What its files say that it will need, all in all."""
    headroom_bytes: int = 0
    """The part of that which a load does not touch yet: what the process grows by, and room for one
    conversation. All further KV cache is lent."""
    memory_bytes: int | None = None
    """`memory` of the configuration: charged as given, whatever is measured."""
    pin: bool = False
    ttl: float = 0.0
    """Seconds idle before it is unloaded, 0 = never."""
    fallback: str = ""
    """Name or alias of the model that serves its requests while it is unavailable."""


@dataclass(frozen=True, slots=True)
class NextCharge:
    """What the next incarnation of a model will be charged, in bytes."""

    size: int
    """For its load."""
    untouched: int
    """The part of that which is not in use at the end of the load."""
    most: int | None
    """What it could ever be charged with all its loans; None = there is no limit."""


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


class DrainCause(enum.Enum):
    """Why a worker drains, which decides what those learn whom its deadline cuts."""

    EVICTION = enum.auto()
    BY_HAND = enum.auto()
    EMERGENCY = enum.auto()
    OUTGROWN = enum.auto()
    """It holds more than it is charged, and comes back with a larger charge."""
    OUT_OF_REACH = enum.auto()
    """It needs more than there can ever be, and comes back knowing that."""
    SHUTDOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class LearnedLimit:
    """At most so many requests at once, since then: the model died of more."""

    concurrency: int
    since: float

    @property
    def ends(self) -> float:
        """When it is doubled, unless the model dies of too many again."""
        return self.since + QUIET_SECONDS


@dataclass(frozen=True, slots=True)
class Presumption:
    """The limit was lowered because crowds have died again, which one of them may have caused."""

    before: LearnedLimit | None
    """The limit until then."""
    leases: frozenset[int]
    """The crowds. If one of these is found guilty, the limit is what it was."""


@dataclass(frozen=True, slots=True)
class PreloadRequest:
    """Load this model when it fits, for nobody in particular."""

    since: float
    deadline: float


@dataclass(slots=True)
class Worker:
    """One incarnation of a model, from its spawn until nobody waits for its memory any longer."""

    model: str
    generation: int
    load_started: float
    deadline: float | None = None
    """When the current state has lasted for as long as it may: a load without progress, a drain, an
    exit that was asked for, memory that is not back."""
    pid: int | None = None
    loaded_at: float | None = None
    idle_since: float = 0.0
    """When it became ready, or a request in it ended last."""
    place_freed_at: float | None = None
    loading: tuple[int, int] = (0, 0)
    """Bytes of its weights in memory so far and in all, while it loads; 0 of 0 = not known yet."""
    memory_bytes: int = 0
    """Measured at the end of its load."""
    context: int = 0
    """Tokens."""
    idle_bytes: int = 0
    """The part of its loan that serves no live sequence, as far as it has said."""
    watch: Watch = field(default_factory=Watch)
    """Whether it holds more than it is charged, and what was done about that."""
    unload_asked: bool = False
    """By hand, while it loads: those who wait are served, nobody else."""
    drain_cause: DrainCause = DrainCause.EVICTION
    stop_reason: str = ""
    """Why it is being stopped, or why the model will be FAILED."""
    killed: bool = False
    """By us."""
    after_exit: Event = Event.RELEASED_CRASHED
    """Where RELEASING leads: an exit that nobody asked for is a crash, whatever its status."""
    backoff: float | None = None
    """After a crash: seconds for which the model is left alone, because it keeps dying."""
    in_flight_at_death: int = 0
    """Requests that were in it when it died or was left."""

    @property
    def name(self) -> str:
        return f"{self.model}#{self.generation}"

    @property
    def key(self) -> tuple[str, int]:
        return (self.model, self.generation)

    @property
    def exit_is_crash(self) -> bool:
        """Whether its process's end, should it come now, is one that nobody asked for."""
        return self.after_exit is Event.RELEASED_CRASHED


@dataclass(slots=True)
class Model:
    """One model, whether it is loaded or not."""

    spec: Spec
    breaker: Breaker
    state: State = State.COLD
    generation: int = 0
    """Of its worker, or of the last one it had; 0 before the first."""
    worker: Worker | None = None
    """In every state from LOADING to RELEASING."""
    waiting: dict[int, Lease] = field(default_factory=dict)
    granted: dict[int, Lease] = field(default_factory=dict)
    returning: dict[int, Lease] = field(default_factory=dict)
    """Interrupted, and their gateways have not said yet where they stand."""
    undecided: UndecidedDeath | None = None
    proven: bool = False
    """Whether it has made a token for somebody since it last seemed to be a request's fault that it
    made none."""
    queued_since: float | None = None
    """Since when somebody has waited for a worker that does not exist yet: the model's turn."""
    roomless_since: float | None = None
    """Since when somebody has waited and there is no room to load it."""
    preload: PreloadRequest | None = None
    pinned: bool = False
    keep_alive: float | None = None
    """In place of `spec.ttl`: what the last request said that said something, until the model is
    unloaded. Seconds, 0 = as soon as nobody uses it, negative = never; None = nobody did."""
    failure: str = ""
    """Why it is FAILED."""
    crashed_until: float | None = None
    """While it is CRASHED: when it may be loaded again."""
    load_seconds: float | None = None
    last_used: float | None = None
    use_count: int = 0
    frequency: float = 0.0
    frequency_at: int = 0
    """Uses of all models when `frequency` was right."""
    pace: float | None = None
    """Seconds between two places that become free, smoothed; None until known."""
    measured_bytes: int | None = None
    """What its process held at the end of its last load; survives unloads."""
    learned_bytes: int | None = None
    """What the last load was found to need, with room for requests; survives unloads."""
    excess_bytes: int = 0
    """What its process was seen to hold beyond its charge: the next one is charged so much more."""
    excess_restarts: int = 0
    """Restarts for that."""
    excess_restarted_at: float = 0.0
    """When the last of them was, monotonic seconds."""
    deaths: int = 0
    learned_limit: LearnedLimit | None = None
    """After it died of too many."""
    presumption: Presumption | None = None
    """What may be wrong about that limit."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def current(self) -> Worker:
        """Its worker, for states that have one."""
        assert self.worker is not None, f"{self.name} has no worker while {self.state}"
        return self.worker

    def move(self, event: Event) -> None:
        """Raises IllegalTransition where the table has no such pair."""
        self.state = transition(self.state, event)

    @property
    def reason(self) -> str:
        """Why it is FAILED, or why its worker is being stopped; "" for neither."""
        return self.failure if self.worker is None else self.worker.stop_reason

    @property
    def deadline(self) -> float | None:
        """When the current state ends by itself, monotonic seconds."""
        return self.crashed_until if self.worker is None else self.worker.deadline

    @property
    def size(self) -> int:
        """Bytes that the next incarnation is charged: configured, else learned, else estimated."""
        if self.spec.memory_bytes is not None:
            return self.spec.memory_bytes
        known = self.spec.estimate_bytes if self.learned_bytes is None else self.learned_bytes
        return known + self.excess_bytes

    @property
    def untouched(self) -> int:
        """Bytes of `size` that are not in use at the end of a load."""
        loaded = self.spec.estimate_bytes - self.spec.headroom_bytes
        held = loaded if self.measured_bytes is None else self.measured_bytes
        if self.spec.memory_bytes is None:
            held += self.excess_bytes  # in use, by whatever it is
        return max(0, self.size - held)

    @property
    def size_source(self) -> str:
        """Where `size` comes from, for people."""
        if self.spec.memory_bytes is not None:
            return "configured"
        return "measured" if self.learned_bytes is not None or self.excess_bytes else "estimated"

    def may_restart_for_excess(self, now: float) -> bool:
        """Whether it may be restarted for holding more than it is charged."""
        return now >= self.excess_restarted_at + backoff(self.excess_restarts)

    def forget_excess(self) -> None:
        """What it held beyond its charge counts no longer: its files are others, or a person wants
        it tried."""
        self.excess_bytes = self.excess_restarts = 0

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
    def is_ready(self) -> bool:
        """Whether its worker admits requests."""
        return self.state is State.READY

    @property
    def in_use(self) -> bool:
        """Whether somebody has a place or waits for one."""
        return bool(self.granted or self.waiting or self.returning)

    @property
    def requests(self) -> int:
        """Those that have a place, wait for one, or return from a death; one with several choices
        counts as so many."""
        inside = (self.waiting, self.granted, self.returning)
        return sum(lease.places for leases in inside for lease in leases.values())

    @property
    def in_flight(self) -> int:
        """Places that are taken."""
        return sum(lease.held for lease in self.granted.values())

    @property
    def queued(self) -> int:
        """Choices that wait for a place, also of requests that have some already."""
        others = sum(max(0, lease.places - lease.held) for lease in self.granted.values())
        return others + sum(lease.places for lease in self.waiting.values())

    @property
    def suspects(self) -> list[Lease]:
        """Those who wait to be tried."""
        return [each for each in self.waiting.values() if each.suspicion is Suspicion.SUSPECT]

    @property
    def on_probation(self) -> bool:
        """Whether somebody is the only one on trial."""
        return any(lease.suspicion is Suspicion.ON_PROBATION for lease in self.granted.values())

    @property
    def recovers(self) -> bool:
        """Whether somebody who was interrupted is not back yet: newcomers wait meanwhile."""
        return (
            bool(self.returning)
            or self.on_probation
            or any(lease.error is not None for lease in self.waiting.values())
        )

    def hold_ends(self, lease: Lease) -> float | None:
        """When a lease that waits is refused; None while its hold does not run.

        Who was interrupted waits for as long as the recovery takes, however many go before it. Its
        hold is for what is none of it: that there is no room for the model.
        """
        if lease.error is None:
            return lease.deadline
        if self.roomless_since is None:
            return None
        return max(lease.deadline, self.roomless_since + max(lease.hold, _WAIT_MIN))

    @property
    def ttl(self) -> float | None:
        """Seconds idle before it is unloaded, None = never."""
        if self.pinned:
            return None
        if self.keep_alive is not None:
            return None if self.keep_alive < 0 else self.keep_alive
        return self.spec.ttl or None

    @property
    def idle_at(self) -> float | None:
        """When its time to live is over, None while that clock does not run."""
        if self.state is not State.READY or self.ttl is None or self.in_use:
            return None
        return max(self.current.idle_since, self.last_used or 0.0) + self.ttl

    def note_keep_alive(self, lease: Lease) -> None:
        """The lease is served: what it says of the time to live holds from now on. Once: when it
        returns after a death, a later request may have said something else."""
        if lease.keep_alive is not None:
            self.keep_alive, lease.keep_alive = lease.keep_alive, None

    def count_use(self, now: float, uses: int) -> None:
        """A request asks for this model; it is the `uses`-th over all."""
        self.use_count += 1
        self.last_used = now
        self.frequency = 1.0 + aged(self.frequency, uses - self.frequency_at)
        self.frequency_at = uses

    def count_freed_place(self, now: float) -> None:
        """A granted request has ended."""
        worker = self.current
        if worker.place_freed_at is not None:
            gap = now - worker.place_freed_at
            self.pace = gap if self.pace is None else 0.8 * self.pace + 0.2 * gap
        worker.place_freed_at = worker.idle_since = now

    def candidate(self, charged: int, uses: int) -> Candidate:
        """This loaded model as the eviction policies see it after `uses` uses over all."""
        used = self.current.loaded_at if self.last_used is None else self.last_used
        return Candidate(
            self.name,
            charged,
            self.use_count,
            0.0 if used is None else used,
            aged(self.frequency, uses - self.frequency_at),
            self.expected_load,
        )
