"""How long requests wait for loads under each eviction policy: `python -m tests.bench.eviction`.

The real scheduler runs in simulated time, with its defaults, behind one client that sends the next
request when the last one is answered. What is counted is the time from a request to its place.
Beside the policies stands an optimum that knows the whole trace: the cheapest way to choose, at
each load, who makes room (dynamic programming over all sets of models that fit; it loads on demand
like everyone else, and pays for loads alone).

Three traces: an agent that goes round three models with room for two; a bursty mix of eight with
sizes and load times that users have reported; and a scan that touches every model once, again
and again, between uses of the two that matter.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from supervisor.scheduler.effects import Effect, EndLease, Grant, Refuse, Spawn, Stop
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool

GB = 10**9
Policy = Literal["lru", "use_count", "gdsf"]
POLICIES: tuple[Policy, ...] = ("lru", "use_count", "gdsf")
SEEDS = 20
_UNLOAD_SECONDS = 0.5
_HOLD_SECONDS = 1e6


@dataclass(frozen=True)
class Machine:
    """Models as (bytes, seconds to load), and what they may use together."""

    models: dict[str, tuple[int, float]]
    budget: int


@dataclass(frozen=True)
class Visit:
    """One request: after so many seconds of silence, for so many seconds of generation."""

    model: str
    think: float
    service: float


@dataclass(frozen=True)
class Scenario:
    name: str
    machine: Machine
    trace: Callable[[random.Random], list[Visit]]


AGENT = Machine(
    {"plan": (42 * GB, 90.0), "code": (20 * GB, 25.0), "review": (22 * GB, 35.0)}, 64 * GB
)
MIX = Machine(
    {
        "fast": (3 * GB, 5.0),
        "phi": (4 * GB, 8.0),
        "seven": (5 * GB, 12.0),
        "seven-b": (5 * GB, 15.0),
        "coder": (20 * GB, 25.0),
        "thirty": (22 * GB, 35.0),
        "seventy": (42 * GB, 90.0),
        "hundred": (65 * GB, 120.0),
    },
    96 * GB,
)


def agent_loop(rng: random.Random) -> list[Visit]:
    """plan, then code a few times, then review; sometimes back to the code."""
    visits: list[Visit] = []
    while len(visits) < 300:
        steps = ["plan", *["code"] * rng.randint(1, 4), "review"]
        if rng.random() < 0.4:
            steps += ["code", "review"]
        visits += [Visit(step, rng.expovariate(1 / 2), rng.uniform(5, 30)) for step in steps]
    return visits


def bursty_mix(rng: random.Random) -> list[Visit]:
    """Bursts on one model, then on another; small models are asked for more often."""
    names = list(MIX.models)
    rng.shuffle(names)
    weights = [1 / rank for rank in range(1, len(names) + 1)]
    visits: list[Visit] = []
    while len(visits) < 400:
        if rng.random() < 0.02:  # what is popular changes in the course of a day
            rng.shuffle(names)
        (name,) = rng.choices(names, weights)
        for i in range(1 + int(rng.expovariate(1 / 4))):
            think = rng.expovariate(1 / 3) if i else rng.expovariate(1 / 60)
            visits.append(Visit(name, think, rng.uniform(2, 20)))
    return visits


def scan(rng: random.Random) -> list[Visit]:
    """Two models at work, and somebody who tries all the others in turn."""
    at_work = ["coder", "seventy"]
    others = itertools.cycle(name for name in MIX.models if name not in at_work)
    visits: list[Visit] = []
    while len(visits) < 400:
        for _ in range(rng.randint(2, 6)):
            visits.append(Visit(rng.choice(at_work), rng.expovariate(1 / 20), rng.uniform(5, 20)))
        for _ in range(rng.randint(1, 4)):
            visits.append(Visit(next(others), rng.expovariate(1 / 5), rng.uniform(2, 5)))
    return visits


SCENARIOS = (
    Scenario("agent loop over 3, room for 2", AGENT, agent_loop),
    Scenario("bursty mix of 8", MIX, bursty_mix),
    Scenario("adversarial scan", MIX, scan),
)


class Simulation:
    """The real pool, and processes that take the time their model takes."""

    def __init__(self, machine: Machine, rules: Rules, *, concurrency: int = 0) -> None:
        specs = [
            Spec(name, estimate_bytes=size, concurrency=concurrency)
            for name, (size, _) in machine.models.items()
        ]
        self._machine = machine
        self._pool = Pool(specs, rules=rules, budget=machine.budget)
        self._now = 0.0
        self._due: list[tuple[float, int, Callable[[], list[Effect]]]] = []
        self._order = itertools.count()
        self._granted: set[int] = set()

    def waiting_seconds(self, trace: Sequence[Visit]) -> float:
        """Σ of the time from each request to its place."""
        waited = 0.0
        for visit in trace:
            self._run_until(self._now + visit.think)
            asked = self._now
            lease, effects = self._pool.acquire("r", visit.model, _HOLD_SECONDS, self._now)
            self._perform(effects)
            while lease not in self._granted:
                self._run_until(self._next())
            waited += self._now - asked
            self._run_until(self._now + visit.service)
            self._perform(self._pool.release(lease, self._now))
        return waited

    def _next(self) -> float:
        ticks = self._pool.next_deadline()
        return min([at for at, _, _ in self._due[:1]] + ([] if ticks is None else [ticks]))

    def _run_until(self, target: float) -> None:
        while self._due or self._pool.next_deadline() is not None:
            at = self._next()
            if at > target:
                break
            self._now = max(self._now, at)
            if self._due and self._due[0][0] <= self._now:
                self._perform(heapq.heappop(self._due)[2]())
            else:
                self._perform(self._pool.tick(self._now))
        self._now = max(self._now, target)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Spawn(model, generation):
                    size, seconds = self._machine.models[model]
                    self._later(seconds, self._ready, model, generation, size)
                case Stop(model, generation):
                    self._later(_UNLOAD_SECONDS, self._exited, model, generation, 0)
                case Grant(lease):
                    self._granted.add(lease)
                    self._served(lease)
                case Refuse() | EndLease():
                    raise AssertionError(f"not served: {effect}")

    def _served(self, lease: int) -> None:
        """A place was granted."""

    def _later(
        self,
        seconds: float,
        event: Callable[[str, int, int], list[Effect]],
        model: str,
        generation: int,
        size: int,
    ) -> None:
        entry = (self._now + seconds, next(self._order), lambda: event(model, generation, size))
        heapq.heappush(self._due, entry)

    def _ready(self, model: str, generation: int, size: int) -> list[Effect]:
        return self._pool.ready(model, generation, size, 4096, self._now)

    def _exited(self, model: str, generation: int, size: int) -> list[Effect]:
        return self._pool.exited(model, generation, "exit status 0", self._now)


class ConcurrentSimulation(Simulation):
    """Many clients at once, each of which sends its next request when the last is answered."""

    def run(
        self, rng: random.Random, *, clients: int, requests: int, service: float
    ) -> list[float]:
        """Each request's time to its place, in seconds."""
        self._rng, self._service, self._left = rng, service, requests
        self._asked: dict[int, float] = {}
        self._waits: list[float] = []
        for _ in range(clients):
            self._ask()
        while len(self._waits) < requests:
            self._run_until(self._next())
        return self._waits

    def _ask(self) -> list[Effect]:
        if self._left:
            self._left -= 1
            model = self._rng.choice(list(self._machine.models))
            # The grant may be among the effects, so the time is noted first.
            self._asked[max(self._asked, default=0) + 1] = self._now
            _, effects = self._pool.acquire("r", model, _HOLD_SECONDS, self._now)
            self._perform(effects)
        return []

    def _served(self, lease: int) -> None:
        self._waits.append(self._now - self._asked[lease])
        seconds = self._rng.uniform(0.2, 1.8) * self._service
        self._later(seconds, lambda *_: self._answered(lease), "", 0, 0)

    def _answered(self, lease: int) -> list[Effect]:
        return [*self._pool.release(lease, self._now), *self._ask()]


def optimum(machine: Machine, trace: Sequence[Visit]) -> float:
    """Seconds of loads of the best choices that anybody could make who loads on demand."""
    names = list(machine.models)
    bit = {name: 1 << i for i, name in enumerate(names)}
    size = [
        sum(machine.models[name][0] for name in names if held & bit[name])
        for held in range(1 << len(names))
    ]
    after: dict[tuple[int, int], list[int]] = {}
    """What may be held after a load, for what was held before: nobody goes without need."""

    def choices(held: int, wanted: int) -> list[int]:
        if (held, wanted) not in after:
            fits = []
            kept = held
            while True:  # every subset of what is held
                if size[kept | wanted] <= machine.budget:
                    fits.append(kept | wanted)
                if not kept:
                    break
                kept = (kept - 1) & held
            after[held, wanted] = [
                one for one in fits if not any(one != more and one & more == one for more in fits)
            ]
        return after[held, wanted]

    costs = {0: 0.0}
    for name in (name for name, _ in itertools.groupby(visit.model for visit in trace)):
        wanted, seconds = bit[name], machine.models[name][1]
        then: dict[int, float] = {}
        for held, cost in costs.items():
            if held & wanted:
                then[held] = min(cost, then.get(held, cost))
                continue
            for held_then in choices(held, wanted):
                total = cost + seconds
                then[held_then] = min(total, then.get(held_then, total))
        costs = then
    return min(costs.values())


def measure(scenario: Scenario, rules: Rules, seeds: int) -> dict[str, list[float]]:
    """Waiting seconds by policy, one for each seed; "optimum" among them."""
    results: dict[str, list[float]] = {name: [] for name in (*POLICIES, "optimum")}
    for seed in range(seeds):
        trace = scenario.trace(random.Random(seed))
        for policy in POLICIES:
            chosen = replace(rules, policy=policy)
            simulation = Simulation(scenario.machine, chosen)
            results[policy].append(simulation.waiting_seconds(trace))
        results["optimum"].append(optimum(scenario.machine, trace))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--short", action="store_true", help="3 seeds")
    parser.add_argument("--min-residency", type=float, help="seconds; the default is auto")
    options = parser.parse_args()
    rules = Rules(min_residency=options.min_residency)
    print(f"{'waiting seconds, mean':34}", *(f"{name:>10}" for name in (*POLICIES, "optimum")))
    worst = 0.0
    for scenario in SCENARIOS:
        results = measure(scenario, rules, 3 if options.short else options.seeds)
        means = {name: statistics.mean(seconds) for name, seconds in results.items()}
        print(f"{scenario.name:34}", *(f"{mean:10.0f}" for mean in means.values()))
        best = min(means[policy] for policy in POLICIES)
        worst = max(worst, means[Rules().policy] / best - 1)
    print(f"\nthe default, {Rules().policy}, is at most {worst:.1%} behind the best online policy")
    return 0 if worst <= 0.03 else 1


if __name__ == "__main__":
    sys.exit(main())
