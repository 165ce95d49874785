"""A pool for tests of recovery, driven event by event, and what it decides in short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from supervisor.scheduler.blame import PROBATION_TOKENS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import (
    Effect,
    EndLease,
    Grant,
    Interrupt,
    QuarantineRequest,
    Refuse,
    RememberLimit,
)
from supervisor.scheduler.lease import Lease, Suspicion
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Limits, Rules, Spec
from supervisor.scheduler.pool import Pool
from tests.property.recoveries import death_of

LIMITS = Limits(load_stall=10.0, drain=20.0, stop=3.0, emergency_drain=4.0)
HOLD = 100.0


class DrivenPool:
    """A pool of models `m` and `other`, and the requests in the worker of `m`."""

    def __init__(
        self, requests: int = 3, *, proven: bool = True, concurrency: int = 0, **rules: Any
    ) -> None:
        rules = {"recovery": "resume", "max_restarts": 10**9, **rules}
        specs = [Spec("m", concurrency=concurrency), Spec("other")]
        self.pool = Pool(specs, limits=LIMITS, rules=Rules(**rules), jitter=lambda: 1.0)
        self.now = 0.0
        self.asked = 0
        self.leases = [self.acquire() for _ in range(requests)]
        if requests:
            self.ready()
        if requests and proven:
            self.passed(self.leases[0])

    @property
    def entry(self) -> Any:
        return self.pool.models["m"]

    def refusal(self) -> str | None:
        """The code with which the last request was refused as it came."""
        return self._refusal

    def state(self) -> State:
        state: State = self.entry.state
        return state

    def acquire(self, digest: bytes = b"", model: str = "m", hold: float = HOLD) -> int:
        """A lease's id; `refusal()` has the code where it is refused as it comes."""
        self.asked += 1
        lease, effects = self.pool.acquire(f"r{self.asked}", model, hold, self.now, digest)
        self._refusal = dict(ended(effects)).get(lease)
        return lease

    def ready(self) -> list[Effect]:
        return self.pool.ready("m", self.entry.generation, 0, 1, self.now)

    def exits(self, fault: Fault = Fault.REQUEST) -> list[Effect]:
        return self.pool.exited("m", self.entry.generation, "SIGABRT", self.now, death_of(fault))

    def on_trial(self) -> list[int]:
        """Whoever is the only one on trial."""
        granted: dict[int, Lease] = self.entry.granted
        return [i for i, each in granted.items() if each.suspicion is Suspicion.ON_PROBATION]

    def dies(self, fault: Fault = Fault.REQUEST, **positions: int) -> list[Effect]:
        """The worker dies and the next is ready; all who were in it return, by default from where
        they stood. The effects of the last step."""
        inside = list(self.entry.granted)
        positions_before = {lease: each.position for lease, each in self.entry.granted.items()}
        told = interrupted(self.exits(fault))
        assert sorted(told) == sorted(inside)
        for lease in inside:
            self.returned(lease, positions.get(f"r{lease}", positions_before[lease]))
        return self.ready() if self.entry.state is State.LOADING else []

    def returned(self, lease: int, position: int = 0) -> list[Effect]:
        return self.pool.returned(lease, position, self.now)

    def passed(self, lease: int) -> list[Effect]:
        return self.pool.passed(lease, self.now)

    def release(self, lease: int) -> list[Effect]:
        return self.pool.release(lease, self.now)

    def after(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.pool.tick(self.now)


def granted(effects: Iterable[Effect]) -> list[int]:
    return [effect.lease for effect in effects if isinstance(effect, Grant)]


def awaited(effects: Iterable[Effect]) -> list[tuple[int, int]]:
    """(lease, until) of each grant after a death."""
    return [
        (each.lease, each.until)
        for each in effects
        if isinstance(each, Grant) and each.until >= PROBATION_TOKENS
    ]


def limits(effects: Iterable[Effect]) -> list[int | None]:
    """What is learned of how many may run at once."""
    return [
        each.limit.concurrency if each.limit else None
        for each in effects
        if isinstance(each, RememberLimit)
    ]


def interrupted(effects: Iterable[Effect]) -> list[int]:
    return [effect.lease for effect in effects if isinstance(effect, Interrupt)]


def ended(effects: Iterable[Effect]) -> list[tuple[int, str]]:
    return [(e.lease, e.error.code) for e in effects if isinstance(e, Refuse | EndLease)]


def quarantined(effects: Iterable[Effect]) -> list[str]:
    return [effect.request_id for effect in effects if isinstance(effect, QuarantineRequest)]
