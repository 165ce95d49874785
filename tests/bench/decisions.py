"""How long one scheduling decision takes: `python -m tests.bench.decisions`.

Two hundred requests wait over twenty models on a machine for a few of them, every queue is always
full again, and each event (a request, an end, a load, an exit, a death, a return from it, a
probation that is passed, a tick) is timed, with the question for the next deadline that the shell
asks after each. A decision never blocks, so its length is the thread's own time, and other work on
the machine does not count.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable

from supervisor.scheduler.effects import Effect, Grant, Interrupt, Refuse, Spawn, Stop
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool
from tests.bench.eviction import POLICIES

GB = 10**9
MODELS = 20
WAITING = 200
EVENTS = 4_000
BAR_MS = 1.0


class BusyPool:
    """Keeps `WAITING` requests waiting, and times every event of the pool."""

    def __init__(self, rules: Rules) -> None:
        self._rng = random.Random(1)
        sizes = [self._rng.randint(2, 30) * GB for _ in range(MODELS)]
        specs = [
            Spec(f"m{i}", estimate_bytes=size, concurrency=4, capacity=10**6)
            for i, size in enumerate(sizes)
        ]
        self._pool = Pool(specs, rules=rules, budget=96 * GB)
        self._now = 0.0
        self._loads: list[tuple[str, int]] = []
        self._exits: list[tuple[str, int]] = []
        self._running: list[int] = []
        self._returning: list[int] = []
        self._asked: list[int] = []
        """Who is to tell of its tokens."""
        self._waiting = 0
        self.seconds: list[float] = []
        self.grants = 0

    def _post(self, event: Callable[[], list[Effect]]) -> None:
        start = time.thread_time()
        effects = event()
        self._pool.next_deadline()
        self.seconds.append(time.thread_time() - start)
        for effect in effects:
            match effect:
                case Spawn(model, generation):
                    self._loads.append((model, generation))
                case Stop(model, generation):
                    self._exits.append((model, generation))
                case Grant(lease, until=until):
                    self._running.append(lease)
                    self._waiting -= 1
                    self.grants += 1
                    self._asked += [lease] * (until > 0)
                case Refuse():
                    self._waiting -= 1
                case Interrupt(lease):
                    self._running.remove(lease)
                    self._returning.append(lease)

    def _acquire(self) -> None:
        name = f"m{self._rng.randrange(MODELS)}"
        self._waiting += 1
        self._post(lambda: self._pool.acquire("r", name, 240.0, self._now)[1])

    def _return(self, lease: int) -> None:
        position = self._rng.randrange(50)
        self._waiting += 1
        self._post(lambda: self._pool.returned(lease, position, self._now))

    def step(self) -> None:
        """One event, and as many requests as keep the queues full."""
        while self._returning:
            self._return(self._returning.pop())
        while self._waiting < WAITING:
            self._acquire()
        self._now += self._rng.expovariate(5.0)
        kind = self._rng.random()
        busy = [model for model in self._pool.models.values() if model.granted]
        if kind < 0.03 and busy:
            model = self._rng.choice(busy)
            name, number = model.name, model.generation
            self._exits = [exit for exit in self._exits if exit != (name, number)]
            self._post(lambda: self._pool.exited(name, number, "SIGABRT", self._now))
        elif kind < 0.3 and self._asked:
            lease = self._asked.pop(0)
            self._post(lambda: self._pool.passed(lease, self._now))
        elif kind < 0.6 and self._running:
            lease = self._running.pop(self._rng.randrange(len(self._running)))
            self._post(lambda: self._pool.release(lease, self._now))
        elif kind < 0.75 and self._loads:
            name, number = self._loads.pop()
            size = self._pool.models[name].size
            self._post(lambda: self._pool.ready(name, number, size, 4096, self._now))
        elif kind < 0.9 and self._exits:
            name, number = self._exits.pop()
            self._post(lambda: self._pool.exited(name, number, "exit status 0", self._now))
        else:
            self._post(lambda: self._pool.tick(self._now))


def main() -> int:
    worst = 0.0
    for policy in POLICIES:
        pool = BusyPool(Rules(policy=policy, recovery="resume", max_restarts=10**9))
        for _ in range(EVENTS):
            pool.step()
        cuts = statistics.quantiles(pool.seconds, n=100)
        p50, p99 = cuts[49] * 1e3, cuts[98] * 1e3
        worst = max(worst, p99)
        print(
            f"{policy:10} {len(pool.seconds)} decisions, {pool.grants} grants: "
            f"p50 {p50:.3f} ms, p99 {p99:.3f} ms, max {max(pool.seconds) * 1e3:.2f} ms"
        )
    print(f"{WAITING} waiting over {MODELS} models; bar: p99 ≤ {BAR_MS:g} ms")
    return 0 if worst <= BAR_MS else 1


if __name__ == "__main__":
    sys.exit(main())
