"""Pools in the states that tests begin with, and what they ask of the effects that come back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.errors import BulkheadError
from supervisor.scheduler.effects import Effect, EndLease, Grant, LogLine, Refuse, Spawn
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import Limits, Rules, Spec
from supervisor.scheduler.pool import Pool

GB = 10**9
LIMITS = Limits(load_stall=10.0, drain=20.0, stop=3.0, stop_per_gigabyte=0.5)
HOLD = 240.0
WITH_PROCESS = sorted(HAS_PROCESS)


def make_pool(*specs: Spec, default_model: str = "") -> Pool:
    return Pool(specs or (Spec("m"),), default_model=default_model, limits=LIMITS)


def acquire(pool: Pool, now: float = 0.0, *, model: str = "m", hold: float = HOLD) -> int:
    """A lease's id, for a request of which nothing but waiting or a spawn is expected."""
    lease, effects = pool.acquire("r", model, hold, now)
    assert all(isinstance(effect, Spawn | Grant) for effect in effects)
    return lease


def loading_pool() -> Pool:
    pool = make_pool()
    assert pool.preload("m", 0.0) == [Spawn("m", 1)]
    pool.started("m", 1, 1234)
    return pool


def ready_pool(memory_bytes: int = 0) -> Pool:
    pool = loading_pool()
    assert pool.ready("m", 1, memory_bytes, 4096, 1.0) == []
    return pool


def state(pool: Pool, model: str = "m") -> State:
    return pool.models[model].state


def in_state(wanted: State) -> Pool:
    """A pool whose model `m`, generation 1, is in that state, without any lease."""
    pool = make_pool()
    if wanted is State.COLD:
        return pool
    pool = loading_pool()
    if wanted is State.LOADING:
        return pool
    if wanted is State.FAILED:
        pool.load_failed("m", 1, "no such file", 1.0)
        pool.exited("m", 1, "exit status 0", 2.0)
    elif wanted is State.DRAINING:
        pool.ready("m", 1, 0, 4096, 1.0)
        acquire(pool, 1.0)
        pool.shutdown(1.0)
    else:
        pool.ready("m", 1, 0, 4096, 1.0)
        if wanted is State.STOPPING:
            pool.broken("m", 1, "it stalled", 1.0)
    assert state(pool) is wanted
    return pool


@dataclass(frozen=True)
class Told:
    """Refuse and EndLease effects, comparable: errors have no equality of their own."""

    kind: type[Effect]
    lease: int
    code: str


def told(effects: Iterable[Effect]) -> list[Told]:
    return [
        Told(type(effect), effect.lease, effect.error.code)
        for effect in effects
        if isinstance(effect, Refuse | EndLease)
    ]


def error_of(effects: Iterable[Effect]) -> BulkheadError:
    (error,) = [effect.error for effect in effects if isinstance(effect, Refuse | EndLease)]
    return error


# ── under a budget ───────────────────────────────────────────────────────────────────────────────

PATIENT = Limits(load_stall=60.0, drain=120.0, stop=3.0, emergency_drain=10.0)


def small_machine(
    *models: str | Spec,
    budget: int | None = 10 * GB,
    rules: Rules | None = None,
    size: int = 8 * GB,
) -> Pool:
    """Models of 8 GB unless said otherwise: room for one at a time."""
    specs = [m if isinstance(m, Spec) else Spec(m, estimate_bytes=size) for m in models]
    return Pool(specs, limits=PATIENT, rules=rules or Rules(min_residency=0.0), budget=budget)


def done(effects: Iterable[Effect]) -> list[Effect]:
    """Without the lines for the log."""
    return [effect for effect in effects if not isinstance(effect, LogLine)]


def said(effects: Iterable[Effect]) -> str:
    return " ".join(effect.text for effect in effects if isinstance(effect, LogLine))


def ask(pool: Pool, model: str, now: float, hold: float = HOLD) -> int:
    return pool.acquire("r", model, hold, now)[0]


def serve(pool: Pool, model: str, now: float, *, size: int = 8 * GB) -> int:
    """A lease on a model that loads at `now` and is ready a second later."""
    lease = ask(pool, model, now)
    pool.ready(model, pool.models[model].generation, size, 4096, now + 1)
    assert lease in pool.models[model].granted
    return lease


def loaded(pool: Pool, *models: str, now: float = 0.0, size: int = 8 * GB) -> None:
    """Make these models ready and idle."""
    for model in models:
        pool.release(serve(pool, model, now, size=size), now + 2)


def states(pool: Pool) -> dict[str, State]:
    return {name: entry.state for name, entry in pool.models.items()}
