"""A fast random walk over the real scheduler: `python -m tests.scheduling --steps N --seed S`.

Each episode is a world of its own (budget, sizes, rules) and some hundred events in any order,
plausible ones and absurd ones; `tests.books` checks every step. A violation prints the seed and
the step that led to it; the same seed walks the same way.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from supervisor.pool import Limits, ReleaseRule, Rules, Spec
from supervisor.pressure import Level
from tests.books import GB, Violation
from tests.world import World

EPISODE_STEPS = 250
NAMES = ("a", "b", "c", "d")
LIMITS = Limits(
    load_stall=10.0, drain=20.0, stop=3.0, stop_per_gigabyte=0.5, emergency_drain=4.0, preload=50.0
)


def make_world(rng: random.Random) -> World:
    budget = rng.choice((None, 10 * GB, 10 * GB, 12 * GB, 16 * GB, 20 * GB))
    specs = [
        Spec(
            name,
            aliases=(f"alias-{name}",),
            capacity=rng.choice((2, 4, 30)),
            concurrency=rng.choice((0, 0, 1, 2)),
            estimate_bytes=rng.choice((0, 2, 3, 5, 8, 11)) * GB,
            headroom_bytes=rng.choice((0, 0, GB)),
            memory_bytes=rng.choice((None, None, None, 4 * GB)),
            pin=rng.random() < 0.05,
            ttl=rng.choice((0.0, 0.0, 0.0, 15.0)),
        )
        for name in NAMES[: rng.randint(2, 4)]
    ]
    rules = Rules(
        policy=rng.choice(("lru", "use_count", "gdsf")),
        keep=rng.choice((0, 1, 2)),
        max_loaded=rng.choice((0, 0, 0, 1, 2)),
        cleanup_interval=rng.choice((0.0, 30.0)),
        min_residency=rng.choice((None, 0.0, 5.0)),
        max_wait=rng.choice((None, 0.0, 3.0, 10.0)),
        load_gate=rng.choice(("shared", "shared", "exclusive")),
        load_gate_timeout=rng.choice((5.0, 30.0)),
        max_requests=rng.choice((0, 0, 6)),
        max_restarts=10**9,
        release=rng.choice((ReleaseRule.AT_REAP, ReleaseRule.WHEN_SEEN)),
    )
    return World(specs, LIMITS, rules, budget)


class Walk:
    """One episode."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.world = make_world(rng)
        self.names = list(self.world.models)
        moves: list[tuple[Callable[[], None], int]] = [
            (self.acquire, 26),
            (self.release, 18),
            (self.load_on, 20),
            (self.exit_stopped, 12),
            (self.pass_time, 12),
            (self.jump, 2),
            (self.memory, 6),
            (self.pressure, 2),
            (self.by_hand, 4),
            (self.trouble, 4),
            (self.stale, 1),
        ]
        self.moves = [move for move, weight in moves for _ in range(weight)]
        self.worst = rng.random() < 0.3
        """Whether this episode knows pressure."""

    def move(self) -> None:
        self.rng.choice(self.moves)()

    def name(self) -> str:
        return self.rng.choice(self.names)

    def acquire(self) -> None:
        name = self.name()
        if self.rng.random() < 0.1:
            name = self.rng.choice((f"alias-{name}", f"{name}:latest", "unknown", ""))
        self.world.acquire(name, self.rng.choice((0.0, 2.0, 15.0, 40.0, 240.0)))

    def release(self) -> None:
        if self.world.requests:
            self.world.release(self.rng.choice(list(self.world.requests)))

    def load_on(self) -> None:
        """A load goes on, or ends, as it should or with another size than was thought."""
        loads = [p for p in self.world.processes.values() if p.phase == "loading"]
        if not loads:
            return
        process = self.rng.choice(loads)
        if self.rng.random() < 0.3:
            self.world.progress(process.model)
            return
        spec = self.world.models[process.model].spec
        size = max(0, process.charge - spec.headroom_bytes)
        if self.rng.random() < 0.25:
            size = int(size * self.rng.choice((0.5, 1.2, 1.6, 3.0))) + self.rng.choice((0, GB))
        self.world.ready(process.model, size)

    def exit_stopped(self) -> None:
        going = [p.model for p in self.world.processes.values() if p.phase == "stopped"]
        if going:
            self.world.exited(self.rng.choice(going), self.rng.choice((0.0, 0.0, 0.5, 1.0)))

    def pass_time(self) -> None:
        self.world.advance(self.rng.choice((0.01, 0.5, 1.0, 3.0, 8.0, 25.0)))

    def jump(self) -> None:
        self.world.jump(self.rng.choice((0.0, 1.0, 30.0)))

    def memory(self) -> None:
        noise = self.rng.choice((0, 0, 10**8, 5 * GB))
        self.world.memory_back(self.rng.choice((0.0, 0.5, 1.0)), noise)

    def pressure(self) -> None:
        levels = list(Level) if self.worst else [Level.NORMAL, Level.NORMAL, Level.WARN]
        self.world.pressure(self.rng.choice([Level.NORMAL, *levels]))

    def by_hand(self) -> None:
        match self.rng.randrange(7):
            case 0:
                self.world.acquire(self.name(), self.rng.choice((1.0, 60.0)), by_hand=True)
            case 1:
                self.world.unload(self.name())
            case 2:
                self.world.pin(self.name(), True)
            case 3 | 4:
                self.world.pin(self.name(), False)
            case 5:
                self.world.preload(self.name())
            case 6:
                self.world.changed(self.name())

    def trouble(self) -> None:
        if self.rng.random() < 0.2:
            self.world.estimated(self.name(), self.rng.randint(0, 12) * GB, 0)
        if not self.world.processes:
            return
        name = self.rng.choice(list(self.world.processes))
        match self.rng.randrange(6):
            case 0:
                self.world.exited(name, self.rng.choice((0.0, 1.0)))
            case 1:
                self.world.broken(name)
            case 2:
                self.world.dying(name)
            case 3:
                self.world.load_failed(name)
            case 4:
                self.world.ready(name, 2 * GB)
            case 5 if self.world.requests:
                self.world.fault(self.rng.choice(list(self.world.requests)))

    def stale(self) -> None:
        self.world.stale(self.name(), self.rng.choice((-1, 1, 5)))


def walk(seed: int, steps: int) -> tuple[int, Violation | None]:
    """Steps taken, and the violation that ended the walk, if any."""
    rng = random.Random(seed)
    done = 0
    try:
        while done < steps:
            episode = Walk(rng)
            for _ in range(min(EPISODE_STEPS, steps - done)):
                done += 1
                episode.move()
            episode.world.finish()
    except Violation as violation:
        return done, violation
    except Exception as error:  # noqa: BLE001 - the scheduler must not raise, whatever it is
        return done, Violation(f"{type(error).__name__}: {error}")
    return done, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    done, violation = walk(options.seed, options.steps)
    seconds = time.perf_counter() - started
    if violation is not None:
        print(f"seed {options.seed}, step {done}: {violation}", file=sys.stderr)
        return 1
    print(f"seed {options.seed}: {done} steps without a violation in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
