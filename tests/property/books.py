"""What a world knows of the scheduler that it drives, by its own accounts.

`Books` keeps charges, queues, deadlines and drains from the effects and from what the world did
itself. `tests.property.oracle` writes and compares them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import Limits, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from tests.property.lending import Borrower
from tests.property.recoveries import DeathAccounts, Request, check

GB = 10**9
EPSILON = 1e-6
"""Seconds that calculated times may be off."""
LEAVING = (State.DRAINING, State.STOPPING, State.RELEASING)
IN_VAIN_SECONDS = 30.0
"""A worker may need for so long what can never be."""
_BACK_BYTES = 256 * 10**6


@dataclass
class Process:
    """One incarnation as the machine has it."""

    model: str
    generation: int
    charge: int
    started_at: float
    phase: str = "loading"
    """loading, ready, stopped (told to, or dying)"""
    at_fault: bool = False
    asked: bool = False
    """To end: its end is no death."""
    by_hand: bool = False
    """A person wants it gone, and what runs in it with it."""
    was_by_hand: bool = False
    """Or a person wanted that, and an emergency came, which may have been quicker."""
    emergency: bool = False
    """It has to go, whoever wants it."""
    ready_at: float = 0.0
    load_seconds: float = 0.0
    draining_since: float | None = None
    killed: bool = False
    idle_since: float = 0.0
    """When it was last asked for or left, or became ready."""
    loan: Borrower = field(default_factory=Borrower)
    footprint: int = 0
    allowed: int = 0
    """The most that it was charged while that was read."""
    highest: int = 0
    """The most that it has been charged since."""
    breaks_budget: bool = False
    """Its load was larger than was thought, and loans are called back for it."""
    outgrown: bool = False
    """It holds more than it is charged, and goes for that."""
    in_vain_since: float | None = None
    """Since when it has needed what can never be."""

    @property
    def is_over(self) -> bool:
        return self.footprint > 1.05 * self.allowed + 256 * 10**6


@dataclass
class Dead:
    """Memory that a dead process has not given back, and what the world must be charged for it."""

    whole: int
    held: int
    since: float


@dataclass
class Model:
    """The world's own books on one model."""

    spec: Spec
    learned: int | None = None
    load_seconds: float | None = None
    queued_since: float | None = None
    roomless_since: float | None = None
    """Since when it is waited for and not loaded."""
    pinned: bool = False
    uses: int = 0
    preload_until: float | None = None
    alone_until: float | None = None
    """Until when it is not loaded because it keeps dying."""
    most: int | None = None
    """Requests at once, after it ran out of memory."""
    keep_alive: float | None = None
    """What the last request that was served said of it, until the model was unloaded."""
    measured: int | None = None
    excess: int = 0
    """What it was seen to hold beyond its charge."""
    restarted_at: float | None = None
    pressed_at: float | None = None
    """When an emergency unloaded it, and nothing was better for it."""

    def learn(self, size: int, budget: int | None) -> None:
        """What a load took, and how much of its headroom the budget leaves beside."""
        left = float("inf") if budget is None else max(0, budget - size)
        self.excess = int(min(self.excess, left))
        self.measured = size
        self.learned = size + int(min(self.spec.headroom_bytes, left - self.excess))

    def outgrow(self, more: int, budget: int | None) -> None:
        """Its worker held so much more than its charge; the next one is charged no more for that
        than there is beside what a load takes and the room for requests."""
        if self.measured is None or self.learned is None or self.spec.memory_bytes is not None:
            return
        most = float("inf") if budget is None else budget - self.learned
        self.excess = int(max(self.excess, min(self.excess + more, most)))
        self.learn(self.measured, budget)

    @property
    def limit(self) -> int:
        """Requests at once; 0 = any number."""
        return self.most or self.spec.concurrency

    @property
    def ttl(self) -> float | None:
        """Seconds idle before it goes; None = it stays."""
        if self.keep_alive is None:
            return self.spec.ttl or None
        return self.keep_alive if self.keep_alive >= 0 else None

    def served(self, request: Request) -> None:
        """What the request says of the model's time to live counts from now on."""
        if request.keep_alive is not None:
            self.keep_alive, request.keep_alive = request.keep_alive, None

    @property
    def size(self) -> int:
        if self.spec.memory_bytes is not None:
            return self.spec.memory_bytes
        known = self.spec.estimate_bytes if self.learned is None else self.learned
        return known + self.excess

    @property
    def expected_load(self) -> float:
        return self.load_seconds if self.load_seconds is not None else 2.0 + self.size / 2e9


@dataclass
class Books:
    """The accounts of one world."""

    specs: list[Spec]
    limits: Limits
    rules: Rules
    budget: int | None
    default_model: str = ""
    calm: bool = False
    """Nobody dies but of poison."""
    late: bool = False
    """Words about loans are on their way for a while, and cross."""
    now: float = 100.0
    requests: dict[int, Request] = field(default_factory=dict)
    """Those that are open."""
    processes: dict[str, Process] = field(default_factory=dict)
    dead: dict[tuple[str, int], Dead] = field(default_factory=dict)
    level: Level = Level.NORMAL
    eased: bool = False
    shutdowns: int = 0
    gate_since: float | None = None
    doing: str = ""
    asked: int = 0
    """Leases that were handed out."""
    pressed: list[str] = field(default_factory=list)
    """Whom an emergency has unloaded last."""
    new_batch: bool = True
    pressed_at: float = 0.0
    late_readings: int = 0
    """Since then, that came so late that the pressure should have fallen."""

    def __post_init__(self) -> None:
        self.pool = Pool(
            self.specs,
            default_model=self.default_model,
            limits=self.limits,
            rules=self.rules,
            budget=self.budget,
            jitter=random.Random(0).random,
        )
        self.deaths = DeathAccounts(
            self.rules, self.requests, [s.name for s in self.specs], calm=self.calm
        )
        self.models = {spec.name: Model(spec, pinned=spec.pin) for spec in self.specs}
        self.last_state = dict.fromkeys(self.models, State.COLD)
        self.generation = dict.fromkeys(self.models, 0)

    # ── requests and models ───────────────────────────────────────────────────────────────────────

    def open_of(self, model: str, status: str) -> list[int]:
        return [i for i, r in self.requests.items() if r.model == model and r.status == status]

    def taken(self, model: str) -> int:
        """Places on its worker."""
        return sum(self.requests[lease].held for lease in self.open_of(model, "granted"))

    def charged(self) -> int:
        """What must be counted against the budget: the living by their charge, the dead by what
        they really hold (but for what passes as noise)."""
        living = sum(process.charge for process in self.processes.values())
        held = sum(dead.held for dead in self.dead.values())
        noise = sum(max(_BACK_BYTES, dead.whole // 50) for dead in self.dead.values())
        return living + max(0, held - noise)

    def safe_until(self, process: Process) -> float:
        residency = self.rules.min_residency
        if residency is None:
            residency = min(60.0, 2 * process.load_seconds)
        return process.ready_at + residency

    def patience(self, waiter: Model, victim: Model) -> float:
        if self.rules.max_wait is not None:
            return self.rules.max_wait
        return max(1.0, min(60.0, 3 * (waiter.expected_load + victim.expected_load)))

    def hold_ends(self, request: Request, state: State) -> float | None:
        """When one that waits or returns must have ended. What was interrupted, and has returned,
        waits for as long as nothing but its recovery keeps it waiting."""
        if request.status == "returning" or not request.interrupted:
            return request.deadline
        since = self.models[request.model].roomless_since
        if not self.has_no_room(state) or since is None:
            return None
        return max(request.deadline, since + max(1.0, request.hold))

    def has_no_room(self, state: State) -> bool:
        """Whether a model in this state waits for memory, not just for its worker's end."""
        leaves = state in LEAVING
        return state is State.COLD or (leaves and self.level >= Level.HIGH)

    def end(self, lease: int, *before: str) -> Request:
        check(lease in self.requests, f"lease {lease} has ended already")
        request = self.requests.pop(lease)
        check(request.status in before, f"lease {lease} is {request.status}")
        self.deaths.ends(request)
        return request

    # ── loans ─────────────────────────────────────────────────────────────────────────────────────

    def borrowing(self) -> list[Process]:
        return [each for each in self.processes.values() if each.phase == "ready"]

    def idle_loans(self, but: str = "") -> int:
        """What could be called back now, of all but one."""
        return sum(p.loan.callable(self.now) for p in self.borrowing() if p.model != but)

    def awaited(self) -> int:
        """What was called back, and is still expected."""
        return sum(process.loan.waits_for(self.now) for process in self.borrowing())

    def loan_limit(self, name: str) -> float:
        """The most that a worker which starts now could be lent."""
        return max(0, self.most_for(name) - self.models[name].size)

    def most_for(self, name: str) -> float:
        """What a model could be charged, with all its loans, beside those that are pinned and what
        is stranded."""
        if self.budget is None:
            return float("inf")
        left = self.budget - self.pool.state.ledger.stranded
        for other, model in self.models.items():
            if model.pinned and other != name:
                process = self.processes.get(other)
                base = 0 if process is None else process.charge - process.loan.lent
                left -= max(model.size, base)
        return left

    def waits_in_vain(self, process: Process) -> bool:
        """Whether it has needed for long what can never be."""
        since = process.in_vain_since
        return since is not None and self.now + EPSILON >= since + IN_VAIN_SECONDS

    def needs(self) -> list[Process]:
        """Workers with a request that can't go on, the oldest first."""
        needy = [process for process in self.borrowing() if process.loan.least]
        return sorted(needy, key=lambda process: process.loan.since)

    # ── room that can be had ──────────────────────────────────────────────────────────────────────

    def is_idle(self, process: Process) -> bool:
        return not self.pool.models[process.model].in_use and not process.loan.least

    def takeable(self) -> list[Process]:
        """Ready models that may be taken now, busy ones among them."""
        return [
            process
            for name, process in self.processes.items()
            if self.pool.models[name].state is State.READY
            and not self.models[name].pinned
            and self.safe_until(process) <= self.now
        ]

    def room(self) -> tuple[float, int, float, int]:
        """Bytes and places that are free, and that will be once those have gone who leave."""
        entries, ledger = self.pool.models.values(), self.pool.state.ledger
        budget = float("inf") if self.budget is None else float(self.budget)
        free = budget - ledger.charged
        leaving = [entry for entry in entries if entry.state in LEAVING]
        occupied = sum(e.state in HAS_PROCESS or e.state is State.RELEASING for e in entries)
        places = (self.rules.max_loaded or len(self.models) + 1) - occupied
        coming = free + sum(ledger.of(entry.current.key) for entry in leaving)
        return free, places, coming, places + len(leaving)
