"""The state of the instance, as the object that `/health` and `/` show. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from supervisor.machine.readers import MachineMemory
from supervisor.processes.activity import Activity
from supervisor.scheduler import refusals
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Model
from supervisor.scheduler.state import PoolState
from supervisor.wire.crash import CrashBrief
from supervisor.wire.text import to_json

_FOR_EVER = 100 * 365 * 86400.0
"""Seconds idle after which it does not matter when."""
_LOADED = frozenset({State.LOADING, State.READY, State.DRAINING})


def _unserved(model: Model, state: PoolState) -> str | None:
    """Why requests to a model that has not failed are refused nevertheless, if they are."""
    if model.state is State.CRASHED:
        return "keeps dying and is not loaded for a while; `bulkhead load` tries at once"
    ledger = state.ledger
    if model.state in _LOADED or ledger.budget is None or ledger.can_ever_fit(model.size):
        return None
    return refusals.exceeds(model, ledger.budget)


def render_health(
    state: PoolState,
    sources: Mapping[str, str],
    machine: MachineMemory,
    spare: str,
    clock_offset: float,
    version: str,
    last_crash: Callable[[str], CrashBrief | None] = lambda model: None,
    passed_over: Sequence[Mapping[str, Any]] = (),
    *,
    counter: str = "off",
    now: float = 0.0,
    footprint: Callable[[str, int], int | None] = lambda model, generation: None,
    activity: Callable[[str, int], Activity] = lambda model, generation: Activity(),
    context: Callable[[str], int] = lambda model: 0,
) -> bytes:
    """The object as JSON, in the shape that docs/api.md describes.

    `sources` are the models' by name; `spare` and `counter` are those processes' states;
    `clock_offset` turns the pool's monotonic times into epoch seconds; `last_crash` gives a
    model's, None = it has had none; `passed_over` is what the Hugging Face cache has
    besides. `now` is the pool's time. Of an incarnation `footprint` gives the bytes that it was
    last seen to hold, and `activity` what it does. `context` gives the tokens that a sequence of a
    model may have before a worker has told it, 0 = unknown.
    """

    def iso(at: float | None) -> str | None:
        if at is None:
            return None
        return datetime.fromtimestamp(at + clock_offset).astimezone().isoformat("T", "seconds")

    def crash(model: Model) -> dict[str, str] | None:
        last = last_crash(model.name)
        return None if last is None else {"id": last.id, "cause": last.cause, "time": last.time}

    def expires_at(model: Model) -> float | None:
        """When it is unloaded if nobody asks for it any more; None = it stays."""
        if model.ttl is None or model.ttl > _FOR_EVER or model.state is State.DRAINING:
            return None
        return now + model.ttl if model.idle_at is None else model.idle_at

    def cached(model: Model) -> dict[str, Any]:
        worker, does = model.current, activity(*model.current.key)
        done, total = worker.loading
        return {
            "name": model.name,
            "state": model.state,
            "pid": worker.pid,
            "generation": model.generation,
            "use_count": model.use_count,
            "last_used": iso(model.last_used),
            "loaded_at": iso(worker.loaded_at),
            "load_time_seconds": None
            if model.load_seconds is None
            else round(model.load_seconds, 3),
            "memory_bytes": footprint(*worker.key) or worker.memory_bytes,
            "charge_bytes": ledger.of(worker.key),
            "lent_bytes": ledger.lent(worker.key),
            "idle_bytes": min(worker.idle_bytes, ledger.lent(worker.key)),
            "in_flight": model.in_flight,
            "queued": model.queued,
            "tokens_per_second": round(does.tokens_per_second, 1),
            "prefill": {"done_tokens": does.prefilled, "total_tokens": does.to_prefill}
            if does.to_prefill
            else None,
            "loading": {"done_bytes": min(done, total), "total_bytes": total}
            if total and model.state is State.LOADING
            else None,
            "stalled_seconds": None if does.stalled is None else round(does.stalled, 1),
            "context": worker.context or context(model.name) or None,
            "pinned": model.pinned,
            "expires_at": iso(expires_at(model)),
            "deaths": model.deaths,
            "last_crash": crash(model),
        }

    def configured(model: Model) -> dict[str, Any]:
        return {
            "name": model.name,
            "aliases": model.spec.aliases,
            "source": sources[model.name],
            "state": model.state,
            "estimate": model.spec.estimate_bytes or None,
            "measured": model.measured_bytes,
            "charge_bytes": 0 if model.worker is None else ledger.of(model.worker.key),
            "lent_bytes": 0 if model.worker is None else ledger.lent(model.worker.key),
            "next_charge_bytes": model.size or None,
            "next_charge_source": model.size_source if model.size else None,
            "context": (model.worker and model.worker.context) or context(model.name) or None,
            "queued": model.queued,
            "pinned": model.pinned,
            "max_concurrency": model.concurrency or None,
            "learned_limit": model.learned_limit is not None,
            "deaths": model.deaths,
            "last_crash": crash(model),
            "reason": model.reason or _unserved(model, state),
            "retry_seconds": None
            if model.crashed_until is None
            else round(max(0.0, model.crashed_until - now), 1),
        }

    ledger, models = state.ledger, list(state.models.values())
    return to_json(
        {
            "status": "shutting_down" if state.shutting_down else "ok",
            "version": version,
            "memory": {
                "budget_bytes": None if ledger.budget is None else ledger.budget + ledger.reserved,
                "charged_bytes": ledger.charged + ledger.reserved,
                "reserved_bytes": ledger.reserved,
                "physical_bytes": machine.usable,
                "limited_by": None if machine.limit is None else machine.limit.file,
                "used_percent": machine.used_percent,
                "level": state.level.name.lower(),
                "stranded_bytes": ledger.stranded,
                "advice": refusals.REBOOT if ledger.stranded else None,
                "spare": spare,
                "counter": counter,
            },
            "cached_models": [cached(model) for model in models if model.state in _LOADED],
            "models": [configured(model) for model in models],
            "passed_over": passed_over,
        }
    )
