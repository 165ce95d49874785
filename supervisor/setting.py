"""The configuration as the pool has it: rules, limits, thresholds and the budget in bytes."""

from __future__ import annotations

import sys

from supervisor.catalog import Catalog
from supervisor.config import Config, Memory
from supervisor.ledger import auto_budget
from supervisor.pool import Limits, Pool, ReleaseRule, Rules
from supervisor.pressure import Thresholds
from supervisor.readers import Machine


def pool(config: Config, catalog: Catalog, budget: int | None) -> Pool:
    """A pool with every model and none loaded. `budget` in bytes, None = unlimited."""
    memory, recovery = config.memory, config.recovery
    return Pool(
        (catalog.spec(name) for name in catalog.models),
        default_model=config.server.default_model,
        limits=Limits(load_stall=memory.load_stall_seconds, drain=memory.drain_seconds),
        rules=Rules(
            policy=memory.policy,
            keep=memory.keep,
            max_loaded=memory.max_loaded,
            cleanup_interval=memory.cleanup_interval,
            min_residency=_seconds(memory.min_residency),
            max_wait=_seconds(memory.max_wait),
            load_gate=memory.load_gate,
            load_gate_timeout=memory.load_gate_timeout,
            max_requests=config.server.max_requests,
            release=release_rule(),
            recovery=recovery.mode,
            max_recoveries=recovery.max_recoveries,
            max_restarts=recovery.max_restarts,
            restart_window=recovery.restart_window,
            backoff_max=recovery.backoff_max,
        ),
        budget=budget,
    )


def budget(memory: Memory, machine: Machine, working_set: int | None) -> int | None:
    """Bytes that all workers together may be charged; None = unlimited, because nothing is
    configured and the machine's RAM is unknown. `working_set` is the GPU's, bytes."""
    if machine.physical is None:
        return None if memory.budget.endswith(("%", "auto")) else memory.budget_bytes(0)
    configured = memory.budget_bytes(machine.physical)
    return auto_budget(machine.physical, working_set) if configured is None else configured


def release_rule(platform: str = sys.platform) -> ReleaseRule:
    """Whether a dead worker's memory is back at once."""
    return ReleaseRule.WHEN_SEEN if platform == "darwin" else ReleaseRule.AT_REAP


def thresholds(memory: Memory) -> Thresholds:
    return Thresholds(memory.warn, memory.high, memory.critical)


def _seconds(value: float | str) -> float | None:
    """None = "auto"."""
    return None if isinstance(value, str) else float(value)
