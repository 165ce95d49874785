"""The configuration as the pool has it: rules, limits, thresholds, sizes, the budget in bytes."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Sequence

from supervisor.config.rules import ConfigError, dotted
from supervisor.config.schema import Config, MemorySettings
from supervisor.machine.readers import MachineMemory
from supervisor.models.catalog import Catalog
from supervisor.models.sizing import Sizing
from supervisor.processes.gateway import BYTES as GATEWAY_BYTES
from supervisor.processes.spare import BYTES as SPARE_BYTES
from supervisor.scheduler.ledger import Reserved, auto_budget
from supervisor.scheduler.model import Limits, ReleaseRule, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Thresholds
from supervisor.units import gigabytes

log = logging.getLogger("bulkhead.supervisor")

_GATEWAY_SHARE = 20
"""The gateway is charged one of so many parts of the budget at most."""


def pool(config: Config, catalog: Catalog, sizing: Sizing) -> Pool:
    """A pool with every model and none loaded, and what is known of each. Reads their files.

    Raises ConfigError when what is to be loaded together can't be, see `check_together`.
    """
    memory, recovery = config.memory, config.recovery
    made = Pool(
        (spec(name, catalog, sizing) for name in catalog.models),
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
        budget=sizing.budget,
        jitter=random.random,
    )
    offset = time.time() - time.monotonic()
    for name in catalog.models:
        known = sizing.measured_load(name)
        limit, uses = sizing.learned_limit(name, offset), sizing.cache.use_count(name)
        if known is None:
            made.recall(name, uses, None, None, limit)
        else:
            seconds, size = known.load_seconds, known.memory_bytes
            made.recall(name, uses, seconds, size, limit, known.excess_bytes)
    models = catalog.models.items()
    pinned = [name for name, model in models if model.pin]
    preloaded = [name for name, model in models if model.preload]
    for name, model in models:
        check_kv_budget(name, model.kv_budget_bytes, sizing.least_kv(name))
    check_together(made, "pinned models", pinned)
    check_together(made, "models to preload", preloaded)
    groups = [pinned, preloaded, *([name] for name in catalog.models)]
    _reserve_gateway(made, config.server.queue_bytes, groups)
    if memory.spare:
        _reserve_spare(made, groups)
    return made


def _reserve_gateway(pool: Pool, queue_bytes: int, groups: Sequence[Sequence[str]]) -> None:
    """Charge the gateway what it may come to hold: at most a small share of the budget, and no more
    than leaves room for the models that fit without it. What is left out there is used rarely, and
    lives on what the budget leaves to the system."""
    size, budget = GATEWAY_BYTES + queue_bytes, pool.state.ledger.budget
    if budget is not None:
        needs = [sum(pool.models[name].size for name in group) for group in groups]
        left = [budget - needed for needed in needs if needed <= budget]
        size = min(size, budget // _GATEWAY_SHARE, *left)
    pool.state.ledger.reserve(Reserved.GATEWAY, max(0, size))


def _reserve_spare(pool: Pool, groups: Sequence[Sequence[str]]) -> None:
    """Keep room for a spare worker, unless that makes models impossible that fit without it."""
    budget = pool.state.ledger.budget
    for group in groups:
        needed = sum(pool.models[name].size for name in group)
        if budget is not None and budget - SPARE_BYTES < needed <= budget:
            names = ", ".join(group)
            log.warning(
                "no spare worker: %s for it in the budget",
                f"{names} leaves no room" if names else "there is no room",
            )
            return
    pool.state.ledger.reserve(Reserved.SPARE, SPARE_BYTES)


def check_kv_budget(name: str, size: int | None, least: int) -> None:
    """Raises ConfigError unless a `kv_budget` of `size` bytes holds the `least` that the model can
    work with; None = "auto"."""
    if size is not None and size < least:
        raise ConfigError(
            f"{dotted('models', name)}.kv_budget: {gigabytes(size)} are too little for this model, "
            f"whose KV cache takes {gigabytes(least)} from the first token on, since it is "
            "allocated for 256 tokens at a time. Raise it."
        )


def check_together(pool: Pool, what: str, names: Sequence[str]) -> None:
    """Raises ConfigError unless these models fit the budget all at once, as far as their sizes are
    known: one of them could never be loaded, or would not be at start."""
    models = [pool.models[name] for name in names]
    needed, budget = sum(model.size for model in models), pool.state.ledger.budget
    if budget is None or needed <= budget:
        return
    each = ", ".join(f"{each.name} {gigabytes(each.size)} ({each.size_source})" for each in models)
    raise ConfigError(
        f"memory.budget: {gigabytes(budget)} are too little for the {what}, which need "
        f"{gigabytes(needed)} together: {each}. Choose fewer or smaller ones, set their `memory` "
        "where an estimate is wrong, or raise the budget."
    )


def spec(name: str, catalog: Catalog, sizing: Sizing) -> Spec:
    """What the pool must know of a model. Blocks on its files."""
    model, need, concurrency = catalog.models[name], sizing.need(name), catalog.concurrency(name)
    return Spec(
        name,
        tuple(model.aliases),
        capacity=concurrency + model.max_queue,
        concurrency=concurrency,
        estimate_bytes=need.estimate,
        headroom_bytes=need.headroom,
        memory_bytes=model.memory_bytes,
        pin=model.pin,
        ttl=model.ttl,
        fallback=model.fallback,
    )


def budget(memory: MemorySettings, machine: MachineMemory, working_set: int | None) -> int | None:
    """Bytes that all workers together may be charged; None = unlimited, because nothing is
    configured and the machine's RAM is unknown. What a control group allows stands for the RAM.
    `working_set` is the GPU's, bytes."""
    if machine.usable is None:
        return None if memory.budget.endswith(("%", "auto")) else memory.budget_bytes(0)
    configured = memory.budget_bytes(machine.usable)
    return auto_budget(machine.usable, working_set) if configured is None else configured


def release_rule(platform: str = sys.platform) -> ReleaseRule:
    """Whether a dead worker's memory is back at once."""
    return ReleaseRule.WHEN_SEEN if platform == "darwin" else ReleaseRule.AT_REAP


def thresholds(memory: MemorySettings) -> Thresholds:
    return Thresholds(memory.warn, memory.high, memory.critical)


def _seconds(value: float | str) -> float | None:
    """None = "auto"."""
    return None if isinstance(value, str) else float(value)
