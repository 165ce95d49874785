"""The state of the instance, as the object that `/health` and `/` show. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from supervisor.machine.readers import MachineMemory
from supervisor.scheduler import refusals
from supervisor.scheduler.ledger import Ledger
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Entry
from supervisor.scheduler.pool import Pool
from supervisor.wire.crash import CrashBrief

_LOADED = frozenset({State.LOADING, State.READY, State.DRAINING})


def _unserved(entry: Entry, ledger: Ledger) -> str | None:
    """Why requests to a model that has not failed are refused nevertheless, if they are."""
    if entry.state is State.CRASHED:
        return "keeps dying and is not loaded for a while; `bulkhead load` tries at once"
    if entry.state in _LOADED or ledger.budget is None or ledger.can_ever_fit(entry.size):
        return None
    return refusals.exceeds(entry, ledger.budget)


def render_health(
    pool: Pool,
    sources: Mapping[str, str],
    machine: MachineMemory,
    spare: str,
    clock_offset: float,
    version: str,
    last_crash: Callable[[str], CrashBrief | None] = lambda model: None,
) -> bytes:
    """The object as JSON, in the shape that docs/api.md describes.

    `sources` are the models' by name; `spare` is the spare worker's state; `clock_offset` turns the
    pool's monotonic times into epoch seconds; `last_crash` gives a model's, None = it has had none.
    """

    def iso(at: float | None) -> str | None:
        if at is None:
            return None
        return datetime.fromtimestamp(at + clock_offset).astimezone().isoformat("T", "seconds")

    def crash(entry: Entry) -> dict[str, str] | None:
        last = last_crash(entry.spec.name)
        return None if last is None else {"id": last.id, "cause": last.cause, "time": last.time}

    def cached(entry: Entry) -> dict[str, Any]:
        return {
            "name": entry.spec.name,
            "state": entry.state,
            "pid": entry.pid,
            "generation": entry.generation,
            "use_count": entry.use_count,
            "last_used": iso(entry.last_used),
            "loaded_at": iso(entry.loaded_at),
            "load_time_seconds": None
            if entry.load_seconds is None
            else round(entry.load_seconds, 3),
            "memory_bytes": entry.memory_bytes,
            "in_flight": len(entry.granted),
            "queued": len(entry.waiting),
            "pinned": entry.pinned,
            "deaths": entry.deaths,
            "last_crash": crash(entry),
        }

    def configured(entry: Entry) -> dict[str, Any]:
        return {
            "name": entry.spec.name,
            "aliases": entry.spec.aliases,
            "source": sources[entry.spec.name],
            "state": entry.state,
            "estimate": entry.spec.memory_bytes or entry.spec.estimate_bytes or None,
            "measured": entry.learned_bytes,
            "max_concurrency": entry.concurrency or None,
            "learned_limit": entry.learned_limit is not None,
            "deaths": entry.deaths,
            "last_crash": crash(entry),
            "reason": entry.reason or _unserved(entry, pool.ledger),
        }

    ledger, entries = pool.ledger, list(pool.entries.values())
    return msgspec.json.encode(
        {
            "status": "shutting_down" if pool.shutting_down else "ok",
            "version": version,
            "memory": {
                "budget_bytes": None if ledger.budget is None else ledger.budget + ledger.reserved,
                "charged_bytes": ledger.charged + ledger.reserved,
                "physical_bytes": machine.physical,
                "used_percent": machine.used_percent,
                "level": pool.level.name.lower(),
                "stranded_bytes": ledger.stranded,
                "advice": refusals.REBOOT if ledger.stranded else None,
                "spare": spare,
            },
            "cached_models": [cached(entry) for entry in entries if entry.state in _LOADED],
            "models": [configured(entry) for entry in entries],
        }
    )
