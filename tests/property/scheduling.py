"""A fast random walk over the real scheduler.

`python -m tests.property.scheduling --steps N --seed S`.

Each episode is a world of its own (budget, sizes, rules) and some hundred events in any order,
plausible ones and absurd ones; `tests.property.oracle` checks every step. A violation prints the
seed and the step that led to it; the same seed walks the same way.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from supervisor.scheduler.blame import PROBATION_TOKENS
from supervisor.scheduler.death import Fault
from supervisor.scheduler.model import Limits, ReleaseRule, Rules, Spec
from supervisor.scheduler.pressure import Level
from tests.property.books import GB
from tests.property.recoveries import Violation
from tests.property.world import World

EPISODE_STEPS = 250
KINDS = ("", "", "", "", "tea", "coffee", "poison", "poison", "poison too")
"""Of requests: equal ones come again."""
KEEP_ALIVES = (*(None,) * 20, -1.0, 0.0, 4.0, 20.0)
"""What requests say of it, which few do."""
NAMES = ("a", "b", "c", "d")
LIMITS = Limits(
    load_stall=10.0, drain=20.0, stop=3.0, stop_per_gigabyte=0.5, emergency_drain=4.0, preload=50.0
)


def make_world(
    rng: random.Random,
    *,
    storm: bool,
    calm: bool,
    lends: bool = False,
    fixed: Mapping[str, Any] | None = None,
) -> World:
    """Budget, sizes and rules of an episode, some of which are `fixed`; in a storm few models and
    many requests, which go on after deaths. Where it `lends`, small models on a small machine."""
    budget = rng.choice((None, 10 * GB, 10 * GB, 12 * GB, 16 * GB, 20 * GB))
    budget = rng.choice((10 * GB, 12 * GB)) if lends else budget
    sizes = (1, 2, 2, 3) if lends else (0, 2, 3, 5, 8, 8 if storm else 11)
    specs = [
        Spec(
            name,
            aliases=(f"alias-{name}",),
            capacity=30 if storm else rng.choice((2, 4, 30)),
            concurrency=rng.choice((0, 0, 1, 2)),
            estimate_bytes=rng.choice(sizes) * GB,
            headroom_bytes=rng.choice((0, 0, GB)),
            memory_bytes=rng.choice((None, None, None, 4 * GB)),
            pin=rng.random() < 0.05,
            ttl=rng.choice((0.0, 0.0, 0.0, 15.0)),
        )
        for name in NAMES[: rng.randint(1, 2) if storm else rng.randint(2, 4)]
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
        recovery=rng.choice(("replay" if storm else "off", "resume", "resume")),
        max_recoveries=rng.choice((0, 1, 2, 2, 2, 5, 30)),
        max_restarts=rng.choice((1, 2, 3, 3, 10**9, 10**9, 10**9)),
        backoff_max=rng.choice((8.0, 60.0)),
        release=rng.choice((ReleaseRule.AT_REAP, ReleaseRule.WHEN_SEEN)),
    )
    late = rng.random() < 0.5
    return World(specs, LIMITS, replace(rules, **(fixed or {})), budget, calm=calm, late=late)


class Walk:
    """One episode."""

    def __init__(
        self,
        rng: random.Random,
        *,
        storm: bool | None = None,
        calm: bool | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        """What is None is chosen at random."""
        self.rng = rng
        chosen = rng.random() < 0.4
        self.storm = storm = chosen if storm is None else storm
        chosen = rng.random() < 0.3
        calm = chosen if calm is None else calm
        self.lends = rng.random() < 0.4
        """Whether this episode is about loans above all."""
        self.world = make_world(rng, storm=storm, calm=calm, lends=self.lends, fixed=rules)
        self.names = list(self.world.models)
        kind = 2 if self.lends else int(storm)
        moves: list[tuple[Callable[[], None], int, int, int]] = [
            (self.acquire, 26, 14, 10),
            (self.release, 18, 3, 4),
            (self.load_on, 20, 24, 20),
            (self.exit_stopped, 12, 8, 8),
            (self.pass_time, 12, 3, 8),
            (self.jump, 2, 1, 1),
            (self.memory, 6, 5, 4),
            (self.pressure, 2, 1, 1),
            (self.by_hand, 4, 2, 1),
            (self.trouble, 4, 2, 1),
            (self.stale, 1, 1, 1),
            (self.kill, 1, 6, 1),
            (self.come_back, 6, 26, 10),
            (self.make_progress, 6, 24, 6),
            (self.borrow, 10, 6, 60),
            (self.end_sequence, 5, 3, 30),
            (self.answer, 12, 8, 60),
            *([(self.carry_words, 30, 20, 120)] if self.world.late else []),
            (self.grow, 3, 2, 2),
            (self.end_choices, 6, 2, 2),
        ]
        self.moves = [move for move, *weights in moves for _ in range(weights[kind])]
        self.worst = rng.random() < 0.3
        """Whether this episode knows pressure."""

    def move(self) -> None:
        self.rng.choice(self.moves)()

    def name(self) -> str:
        return self.rng.choice(self.names)

    def acquire(self) -> None:
        name = self.name()
        asked = name
        if self.rng.random() < 0.1:
            asked = self.rng.choice((f"alias-{name}", f"{name}:latest", "unknown", ""))
        kind = self.rng.choice(KINDS)
        digest = f"{kind} for {name}".encode() if kind else b""
        hold = self.rng.choice(
            (40.0, 240.0) if self.storm or self.lends else (0.0, 2.0, 15.0, 40.0, 240.0)
        )
        poison, keep_alive = kind.startswith("poison"), self.rng.choice(KEEP_ALIVES)
        places = at_once = 0
        if self.rng.random() < 0.4:
            places, at_once = self.rng.choice((2, 3, 8)), self.rng.choice((0, 0, 1, 2))
        self.world.acquire(
            asked,
            hold,
            digest=digest,
            poison=poison,
            keep_alive=keep_alive,
            places=max(1, places),
            at_once=at_once,
        )

    def end_choices(self) -> None:
        """Choices end, of requests with several."""
        several = [i for i, r in self.world.requests.items() if r.places > 1]
        if several:
            lease = self.rng.choice(several)
            self.world.holds(lease, self.rng.choice((0, 1, 1, 3)), self.rng.choice((0, 0, 1)))

    def release(self) -> None:
        if self.world.requests:
            self.world.release(self.rng.choice(list(self.world.requests)))

    def come_back(self) -> None:
        """Gateways say where their requests stand: all that are asked, or one, asked or not."""
        asked = [i for i, r in self.world.requests.items() if r.status == "returning"]
        if self.rng.random() < 0.7:
            for lease in asked[: self.rng.choice((1, 10, 10))]:
                if lease in self.world.requests:
                    self.world.returned(lease, self.position(lease))
        elif self.world.requests:
            lease = self.rng.choice(list(self.world.requests))
            self.world.returned(lease, self.position(lease))

    def position(self, lease: int) -> int:
        request = self.world.requests[lease]
        position = request.position + self.rng.choice(
            (0, 0, 0, 1, PROBATION_TOKENS - 1, PROBATION_TOKENS, 2 * PROBATION_TOKENS, 40)
        )
        if request.awaited and request.poison and self.world.calm:
            position = min(position, request.until - 1)
        return position

    def make_progress(self) -> None:
        """Some of those who are to tell of it have made their tokens."""
        calm = self.world.calm
        for lease, request in list(self.world.requests.items()):
            stuck = calm and request.poison and request.awaited
            told = request.status != "granted" or request.until > 0
            if told and not stuck and self.rng.random() < (0.5 if request.until else 0.05):
                self.world.passed(lease)

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
            left = self.rng.choice((0.0, 0.0, 0.5, 1.0))
            self.world.exited(self.rng.choice(going), left, self.fault())

    def fault(self) -> Fault:
        kinds = (Fault.REQUEST, Fault.REQUEST, Fault.MEMORY, Fault.OUTSIDE)
        return Fault.REQUEST if self.world.calm else self.rng.choice(kinds)

    def kill(self) -> None:
        """A worker that serves dies."""
        busy = [name for name in self.world.processes if self.world.open_of(name, "granted")]
        mortal = [name for name in busy if self.mortal(name)]
        if mortal:
            name = self.rng.choice(mortal)
            match self.rng.randrange(4):
                case 0:
                    self.world.dying(name)
                case 1:
                    self.world.broken(name)
                case _:
                    self.world.exited(name, self.rng.choice((0.0, 1.0)), self.fault())

    def pass_time(self) -> None:
        calmly, hastily = (0.01, 0.5, 1.0, 3.0, 8.0, 25.0), (0.01, 0.5, 0.5, 1.0, 4.0, 25.0)
        self.world.advance(self.rng.choice(hastily if self.storm or self.lends else calmly))

    def jump(self) -> None:
        self.world.jump(self.rng.choice((0.0, 1.0, 30.0)))

    def memory(self) -> None:
        noise = self.rng.choice((0, 0, 10**8, 5 * GB))
        self.world.memory_back(self.rng.choice((0.0, 0.5, 1.0)), noise)

    def pressure(self) -> None:
        levels = list(Level) if self.worst else [Level.NORMAL, Level.NORMAL, Level.WARN]
        for _ in range(self.rng.choice((1, 1, 2))):
            level = self.rng.choice([Level.NORMAL, *levels])
            for _ in range(self.rng.choice((1, 3, 8))):
                eased = level is not Level.NORMAL and self.rng.random() < 0.15
                self.world.pressure(level, eased=eased)
                self.world.advance(self.rng.choice((0.5, 1.0, 3.0)))
                self.exit_stopped()
            if level is Level.CRITICAL and self.rng.random() < 0.5:
                for _ in range(self.rng.choice((0, 3))):  # nothing helps
                    self.world.advance(6.0)
                    self.exit_stopped()
                    self.world.pressure(level)
                self.world.pressure(Level.NORMAL)
                for move in (self.acquire, self.acquire, self.load_on, self.load_on, self.load_on):
                    move()
                self.world.pressure(level)
                self.world.advance(1.0)
                self.world.pressure(level)

    def by_hand(self) -> None:
        match self.rng.randrange(8):
            case 0:
                hold, keep_alive = self.rng.choice((1.0, 60.0)), self.rng.choice(KEEP_ALIVES)
                self.world.acquire(self.name(), hold, by_hand=True, keep_alive=keep_alive)
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
            case 7:
                self.world.expire(self.name())

    def trouble(self) -> None:
        if self.rng.random() < 0.2:
            self.world.estimated(self.name(), self.rng.randint(0, 12) * GB, 0)
        if not self.world.processes:
            return
        mortal = [name for name in self.world.processes if self.mortal(name)]
        if not mortal:
            return
        name = self.rng.choice(mortal)
        match self.rng.randrange(6):
            case 0:
                self.world.exited(name, self.rng.choice((0.0, 1.0)), self.fault())
            case 1:
                self.world.broken(name)
            case 2:
                self.world.dying(name)
            case 3:
                self.world.load_failed(name)
            case 4:
                self.world.ready(name, 2 * GB)
            case 5 if self.world.requests:
                lease = self.rng.choice(list(self.world.requests))
                if self.mortal(self.world.requests[lease].model):
                    self.world.fault(lease)

    def mortal(self, name: str) -> bool:
        """Whether the worker may die now: in a calm world of a poison that runs in it alone."""
        inside = [self.world.requests[i] for i in self.world.open_of(name, "granted")]
        kills = any(request.poison for request in inside)
        return not self.world.calm or kills or not inside

    # ── loans ──

    def borrower(self) -> str | None:
        """A worker that serves, rather one with requests in it."""
        ready = [p.model for p in self.world.processes.values() if p.phase == "ready"]
        busy = [name for name in ready if self.world.open_of(name, "granted")]
        return self.rng.choice(busy or ready) if ready else None

    def borrow(self) -> None:
        """A request old or young needs more, or some other worker has something to say."""
        name = self.borrower()
        if name is None:
            return
        loan = self.world.processes[name].loan
        age = self.rng.choice((0.0, 0.5, 3.0, 30.0)) + self.rng.random()
        since = self.rng.choice([self.world.now - age, *loan.account.live])
        least = self.rng.choice((0, 1, GB // 4, GB, GB, 3 * GB))
        if self.rng.random() < 0.8 and (not loan.account.least or loan.late):
            self.world.want(name, since, least, self.rng.choice((0, GB // 4, GB)))
        else:
            self.world.say(name)

    def end_sequence(self) -> None:
        name = self.borrower()
        if name is None:
            return
        loan = self.world.processes[name].loan
        if loan.account.live and self.rng.random() < 0.8:
            self.world.end_sequence(name, self.rng.choice(sorted(loan.account.live)))
        else:
            self.world.give_back(name, self.rng.random())

    def answer(self) -> None:
        """Those who were asked answer; some with less, some late, some never."""
        for process in list(self.world.processes.values()):
            loan = process.loan
            if loan.account.recalls and not loan.deaf and process.phase == "ready":
                luck = self.rng.random()
                if luck < 0.06:
                    self.world.lose_answer(process.model)
                elif luck < 0.8:
                    share = 1.0 if luck < 0.7 else self.rng.choice((0.0, 0.5))
                    self.world.answer(process.model, share)

    def carry_words(self) -> None:
        """Some of what is on its way to workers, and from them, arrives."""
        for process in list(self.world.processes.values()):
            for _ in range(self.rng.choice((0, 1, 1, 2, 5))):
                if process.phase != "ready":
                    break
                if process.loan.down and self.rng.random() < 0.5:
                    self.world.hear(process.model)
                elif process.loan.up:
                    self.world.be_told(process.model)

    def grow(self) -> None:
        """Footprints are read, one after the other; some workers hold more than they may."""
        grown = self.rng.random() < 0.3
        for _ in range(6 if grown else 1):
            for process in list(self.world.processes.values()):
                if process.phase == "ready":
                    extra = self.rng.choice((GB // 4, GB)) if grown else 0
                    # It was read a moment ago: some of it may have been given back since.
                    size = int(process.highest * (1.3 if grown else 0.9)) + extra
                    self.world.footprint(process.model, size)
            self.world.advance(self.rng.choice((0.1, 1.0, 1.0)))

    def stale(self) -> None:
        self.world.stale(self.name(), self.rng.choice((-1, 1, 5)))


def walk(
    seed: int,
    steps: int,
    *,
    storm: bool | None = None,
    calm: bool | None = None,
    rules: Mapping[str, Any] | None = None,
) -> tuple[int, Violation | None]:
    """Steps taken, and the violation that ended the walk, if any. See `Walk` for the rest."""
    rng = random.Random(seed)
    done = 0
    try:
        while done < steps:
            episode = Walk(rng, storm=storm, calm=calm, rules=rules)
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
