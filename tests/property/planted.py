"""Bugs planted in the scheduler, one at a time, and the seed of the random walk that finds each.

`python -m tests.property.planted` searches for the seeds and writes them to `planted.json`, beside this
file; `tests/property/test_scheduling.py` walks those seeds again. Each bug is one edit of the source, in memory
alone, and most of them have happened to somebody.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypedDict

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_suffix(".json")
ROUNDS = ((200, 250), (60, 2_500), (40, 30_000))
"""Seeds, and steps of each: a bug is looked for in the short walks first."""
_MODULES = (
    "supervisor.scheduler.ledger",
    "supervisor.scheduler.eviction",
    "supervisor.scheduler.blame",
    "supervisor.scheduler.breaker",
    "supervisor.crashes.diagnosis",
    "supervisor.scheduler.model",
    "supervisor.scheduler.effects",
    "supervisor.scheduler.refusals",
    "supervisor.scheduler.requests",
    "supervisor.scheduler.plan",
    "supervisor.scheduler.workers",
    "supervisor.scheduler.planner",
    "supervisor.scheduler.pool",
    "tests.property.recoveries",
    "tests.property.oracle",
    "tests.property.world",
    "tests.property.scheduling",
)
"""What is built anew around a bug, in the order of their imports."""


@dataclass(frozen=True)
class Bug:
    name: str
    module: str
    right: str
    wrong: str


class Find(TypedDict):
    """The walk that finds a bug."""

    seed: int
    step: int
    violation: str


BUGS = (
    Bug(
        "a charge is taken without a look at the budget",
        "supervisor.scheduler.plan",
        "return size <= self.free and self.free_slots >= 1 and self.fits_later(size)",
        "return self.free_slots >= 1",
    ),
    Bug(
        "a load starts in memory that is only on its way back",
        "supervisor.scheduler.plan",
        "return size <= self.free and self.free_slots >= 1 and self.fits_later(size)",
        "return self.fits_later(size)",
    ),
    Bug(
        "the memory of the dead is free at once",
        "supervisor.scheduler.workers",
        "if self.rules.release is ReleaseRule.AT_REAP:",
        "if self.rules.release is not None:",
    ),
    Bug(
        "stranded memory is forgotten",
        "supervisor.scheduler.planner",
        "self.ledger.strand(entry.key)",
        "self.ledger.release(entry.key)",
    ),
    Bug(
        "a measurement replaces no estimate",
        "supervisor.scheduler.pool",
        "self.ledger.measure(entry.key, entry.size)",
        "pass",
    ),
    Bug(
        "a busy model counts as idle",
        "supervisor.scheduler.planner",
        "entry.in_use, self._safe_until(entry)",
        "False, self._safe_until(entry)",
    ),
    Bug(
        "an eviction stops the worker whoever is in it",
        "supervisor.scheduler.workers",
        "if entry.state is not State.DRAINING or entry.granted:",
        "if entry.state is not State.DRAINING:",
    ),
    Bug(
        "a draining worker admits those who come",
        "supervisor.scheduler.planner",
        "if entry.state is State.READY and (entry.waiting or entry.granted):",
        "if entry.state in (State.READY, State.DRAINING) and entry.waiting:",
    ),
    Bug(
        "a request revokes a drain",
        "supervisor.scheduler.pool",
        "self.uses += 1\n",
        "self.uses += 1\n"
        "        if entry.state is State.DRAINING:\n"
        "            entry.state, entry.deadline = State.READY, None\n",
    ),
    Bug(
        "two waiters share one eviction",
        "supervisor.scheduler.plan",
        "                left.remove(victim)\n",
        "",
    ),
    Bug(
        "nobody makes room for the second in the queue",
        "supervisor.scheduler.plan",
        "            if now >= _impatient_at(demand, left, rules):\n                break\n",
        "            break\n",
    ),
    Bug(
        "busy models are never drained",
        "supervisor.scheduler.plan",
        "if not chosen and busy:",
        "if not chosen and not busy:",
    ),
    Bug(
        "busy models drain at once",
        "supervisor.scheduler.plan",
        "return max(tenant.safe_until, demand.since + patience)",
        "return tenant.safe_until",
    ),
    Bug(
        "nothing wakes the plan when patience is over",
        "supervisor.scheduler.pool",
        "deadlines = [self._wake, self._cleanup_at, gate]",
        "deadlines = [self._cleanup_at, gate]",
    ),
    Bug(
        "a model just loaded is evicted",
        "supervisor.scheduler.planner",
        "return (entry.loaded_at or 0.0) + self.rules.residency(entry.load_seconds or 0.0)",
        "return 0.0",
    ),
    Bug(
        "pins are ignored",
        "supervisor.scheduler.planner",
        "if entry.state is State.READY and not entry.pinned\n        ]",
        "if entry.state is State.READY\n        ]",
    ),
    Bug(
        "an emergency spares what is loaded",
        "supervisor.scheduler.planner",
        "elif entry.state is State.READY:\n                effects += self._drain("
        "entry, DrainCause.EMERGENCY",
        "elif entry.state is State.DRAINING:\n                effects += self._drain("
        "entry, DrainCause.EMERGENCY",
    ),
    Bug(
        "loads start under pressure",
        "supervisor.scheduler.planner",
        "self.shutting_down or self.level >= Level.HIGH",
        "self.shutting_down or self.level >= Level.CRITICAL",
    ),
    Bug(
        "max_loaded is looked at after the load",
        "supervisor.scheduler.planner",
        "sum(entry.state in _OCCUPIES for entry in self.entries.values())\n        return Room(",
        "sum(entry.state is State.READY for entry in self.entries.values())\n        return Room(",
    ),
    Bug(
        "the last who came is served first",
        "supervisor.scheduler.requests",
        "in list(itertools.islice(entry.waiting.values(), places)):",
        "in list(entry.waiting.values())[::-1][:places]:",
    ),
    Bug(
        "an evicted model keeps its old turn",
        "supervisor.scheduler.pool",
        "entry.wish = entry.queued_since = None",
        "entry.wish = None",
    ),
    Bug(
        "a place that becomes free goes to nobody",
        "supervisor.scheduler.pool",
        "return [*effects, *self._stop_if_drained(entry, now), *self._settle(now)]",
        "return [*effects, *self._stop_if_drained(entry, now)]",
    ),
    Bug(
        "the load gate stays open",
        "supervisor.scheduler.planner",
        "if not others:\n            return self._spawn",
        "if others is not None:\n            return self._spawn",
    ),
    Bug(
        "the load gate never times out",
        "supervisor.scheduler.planner",
        "since = now if gate is None else gate.since",
        "since = now",
    ),
    Bug(
        "a hold has no end",
        "supervisor.scheduler.pool",
        "for lease in [lease for lease in entry.waiting.values() if lease.deadline <= now]:",
        "for lease in [lease for lease in entry.waiting.values() if lease.deadline < now - 60]:",
    ),
    Bug(
        "a dead worker's requests wait for ever",
        "supervisor.scheduler.pool",
        "effects = [*self._interrupt(entry, error, now), *self._fail_load(entry, error)]\n"
        "        if entry.state is not State.STOPPING",
        "effects = self._fail_load(entry, error)\n        if entry.state is not State.STOPPING",
    ),
    Bug(
        "words about an earlier incarnation count",
        "supervisor.scheduler.workers",
        "current = entry.generation == generation and entry.state in HAS_PROCESS",
        "current = entry.state in HAS_PROCESS",
    ),
    Bug(
        "a drain has no deadline",
        "supervisor.scheduler.workers",
        "entry.drain_cause, entry.deadline = cause, now + seconds",
        "entry.drain_cause, entry.deadline = cause, None",
    ),
    Bug(
        "a ttl unloads a model that is in use",
        "supervisor.scheduler.model",
        "if not runs or self.in_use:",
        "if not runs:",
    ),
    Bug(
        "a wrong estimate stays unnoticed",
        "supervisor.scheduler.planner",
        "if self.ledger.free >= 0:\n            return []",
        "if self.ledger is not None:\n            return []",
    ),
    Bug(
        "room for requests rules out a model that fits alone",
        "supervisor.scheduler.workers",
        "room = max(0, min(room, self.ledger.budget - measured))",
        "pass",
    ),
    Bug(
        "a preload that failed is tried again and again",
        "supervisor.scheduler.requests",
        "return [*self._drop_wish(entry, error.message), *refused]",
        "return refused",
    ),
    Bug(
        "loads by hand are a queue without a bound",
        "supervisor.scheduler.pool",
        "effects = [] if self._serves(entry) else self._find_place(entry, now)",
        "effects: list[Effect] = []",
    ),
    # ── after a death ──
    Bug(
        "those who have passed stay paused",
        "supervisor.scheduler.requests",
        "effects += self._proceed(entry)\n        if gate_closed",
        "if gate_closed",
    ),
    Bug(
        "those who have passed stay paused in a drain",
        "supervisor.scheduler.planner",
        "effects += self._proceed(entry)  # the other",
        "pass  # the other",
    ),
    Bug(
        "the load gate holds up a trial that others wait for",
        "supervisor.scheduler.requests",
        "if entry.granted or not gate_closed:",
        "if not gate_closed:",
    ),
    Bug(
        "two are on trial at once",
        "supervisor.scheduler.requests",
        "if entry.returning or entry.on_trial:",
        "if entry.returning:",
    ),
    Bug(
        "a trial begins before all have returned",
        "supervisor.scheduler.requests",
        "if entry.returning or entry.on_trial:",
        "if entry.on_trial:",
    ),
    Bug(
        "suspects are granted like anybody",
        "supervisor.scheduler.requests",
        "if suspects := entry.suspects:",
        "if suspects := entry.suspects[:0]:",
    ),
    Bug(
        "who died alone is tried first",
        "supervisor.scheduler.requests",
        "key=lambda each: (strikes(each.digest, now), each.position, each.id)",
        "key=lambda each: (-strikes(each.digest, now), each.position, each.id)",
    ),
    Bug(
        "who has passed is suspected at the next death",
        "supervisor.scheduler.requests",
        "if was is Suspicion.PAUSED:",
        "if was is None:",
    ),
    Bug(
        "a death from outside makes suspects",
        "supervisor.scheduler.requests",
        "if tried or fault is not Fault.OUTSIDE:",
        "if tried or fault is not None:",
    ),
    Bug(
        "a death from outside is a strike",
        "supervisor.scheduler.requests",
        "if lease.position >= lease.until or fault is Fault.OUTSIDE:",
        "if lease.position >= lease.until:",
    ),
    Bug(
        "a late one is judged by a later death",
        "supervisor.scheduler.requests",
        "if lease.unjudged and lease.fault is None]",
        "if lease.unjudged]",
    ),
    Bug(
        "strikes are not counted",
        "supervisor.scheduler.requests",
        "if self.docket.strike(lease.digest, now) < STRIKES",
        "if self.docket.strikes(lease.digest, now) < STRIKES",
    ),
    Bug(
        "a request is convicted though it has passed",
        "supervisor.scheduler.requests",
        "self.docket.clear(lease.digest)\n        lease.standing",
        "lease.standing",
    ),
    Bug(
        "the equals of the guilty stay in the queue",
        "supervisor.scheduler.requests",
        "if each.digest == lease.digest]",
        "if each is lease]",
    ),
    Bug(
        "the guilty are admitted again",
        "supervisor.scheduler.pool",
        "if self.docket.guilty(lease.digest, now):",
        "if self.docket.guilty(b'', now):",
    ),
    Bug(
        "leaving spares the guilty",
        "supervisor.scheduler.requests",
        "entry.absent = lease  # its equals",
        "pass  # its equals",
    ),
    Bug(
        "deaths without a token are forgiven for ever",
        "supervisor.scheduler.requests",
        "useless = lease.unproductive > self.rules.max_recoveries",
        "useless = False",
    ),
    Bug(
        "a position is forgotten",
        "supervisor.scheduler.requests",
        "lease.position, lease.unproductive = position, 0",
        "lease.unproductive = 0",
    ),
    Bug(
        "what was sent is replayed",
        "supervisor.scheduler.requests",
        'if self.rules.recovery == "replay" and position:',
        'if self.rules.recovery == "replay" and position > 20:',
    ),
    Bug(
        "who returns waits behind those who came later",
        "supervisor.scheduler.requests",
        "entry.waiting = dict(sorted({**entry.waiting, lease.id: lease}.items()))",
        "entry.waiting[lease.id] = lease",
    ),
    Bug(
        "a gateway that says nothing is waited for",
        "supervisor.scheduler.pool",
        "for leases in (entry.waiting, entry.returning):",
        "for leases in (entry.waiting,):",
    ),
    Bug(
        "the end of a drain is a death",
        "supervisor.scheduler.pool",
        "if entry.state is not State.STOPPING or entry.after_exit is Event.RELEASED_CRASHED:",
        "if entry.state is not None:",
    ),
    Bug(
        "a death while it loads ends who waits",
        "supervisor.scheduler.requests",
        'if self.rules.recovery == "off" or entry.state is not State.LOADING:',
        "if self.rules.recovery or entry.state is not State.LOADING:",
    ),
    Bug(
        "who was interrupted makes room for who comes",
        "supervisor.scheduler.pool",
        "newcomers = [each for each in waiting if each.error is None]",
        "newcomers = list(waiting)",
    ),
    Bug(
        "the breaker never opens",
        "supervisor.scheduler.breaker",
        "if not self.trips and len(recent) < self._restarts:",
        "if not self.trips and len(recent) < 10**6:",
    ),
    Bug(
        "a probe that dies is followed by the next",
        "supervisor.scheduler.breaker",
        "if not self.trips and len(recent) < self._restarts:",
        "if len(recent) < self._restarts:",
    ),
    Bug(
        "the breaker never closes",
        "supervisor.scheduler.workers",
        "entry.backoff, entry.deadline = None, now + seconds",
        "entry.backoff, entry.deadline = None, None",
    ),
    Bug(
        "a token does not close the breaker",
        "supervisor.scheduler.breaker",
        "self._deaths.clear()\n        self.trips = 0",
        "self._deaths.clear()",
    ),
    Bug(
        "a death that convicts counts against the model",
        "supervisor.scheduler.requests",
        "if not (convicts and entry.proven and fault is not Fault.OUTSIDE):",
        "if entry is not None:",
    ),
    Bug(
        "whoever leaves has had a token",
        "supervisor.scheduler.pool",
        "            entry.place_freed(now)\n",
        "            entry.place_freed(now)\n            self._progressed(entry)\n",
    ),
)


@contextmanager
def planted(bug: Bug) -> Iterator[Callable[[int, int], tuple[int, AssertionError | None]]]:
    """`tests.property.scheduling.walk` over a scheduler with this bug; everything is restored after."""
    saved = {name: import_module(name) for name in _MODULES}
    try:
        for name in _MODULES:
            sys.modules[name] = _build(name, bug if name == bug.module else None)
        yield sys.modules["tests.property.scheduling"].walk
    finally:
        sys.modules.update(saved)
        for name, module in saved.items():
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)


def _build(name: str, bug: Bug | None) -> ModuleType:
    path = ROOT / f"{name.replace('.', '/')}.py"
    source = path.read_text()
    if bug is not None:
        if source.count(bug.right) != 1:
            raise ValueError(f"{bug.name}: its place is not found once in {name}")
        source = source.replace(bug.right, bug.wrong)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def find(bug: Bug) -> tuple[int, int, str] | None:
    """(seed, step, what was violated), None when no seed finds the bug."""
    with planted(bug) as walk:
        for seeds, steps in ROUNDS:
            for seed in range(seeds):
                found = violation_of(walk, seed, steps)
                if found is not None:
                    return seed, *found
    return None


def violation_of(
    walk: Callable[[int, int], tuple[int, AssertionError | None]], seed: int, steps: int
) -> tuple[int, str] | None:
    """(step, what was violated) of one walk."""
    step, violation = walk(seed, steps)
    return None if violation is None else (step, str(violation))


def recorded() -> dict[str, Find]:
    """What `main` found last, by the bug's name."""
    found: dict[str, Find] = json.loads(RECORD.read_text())
    return found


def main() -> int:
    found: dict[str, Find] = {}
    missed = []
    for bug in BUGS:
        result = find(bug)
        if result is None:
            missed.append(bug.name)
            print(f"  NOT FOUND  {bug.name}", flush=True)
            continue
        seed, step, text = result
        found[bug.name] = {"seed": seed, "step": step, "violation": text}
        print(f"seed {seed:3}, step {step:6}  {bug.name}: {text}", flush=True)
    RECORD.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(found)} of {len(BUGS)} bugs found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
