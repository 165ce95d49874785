"""Real accounts of workers and the real scheduler, with words on their way between them for as long
as chance will have it."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import msgspec
import pytest

from supervisor.scheduler.effects import Effect, Lend, Recall, Stop
from supervisor.scheduler.loans import LoanNeeds
from supervisor.scheduler.pool import Pool
from supervisor.wire import frames
from supervisor.wire.codec import FrameDecoder, encode
from supervisor.wire.frames import FromWorker, Needs, Repaid
from tests.helpers.pools import GB, loaded, serve, small_machine
from worker.engine.loan import Loan, Usage

MB = 2**20
ROOM = 100 * MB
LIMIT = ROOM + 3 * GB


@dataclass
class Worker:
    """An engine that holds what it wants to as far as it may, or waits for more."""

    name: str
    account: Loan = field(default_factory=lambda: Loan(ROOM, LIMIT, 10**12))
    wanted: int = 0
    since: float = 0.0
    down: deque[Lend | Recall] = field(default_factory=deque)
    up: deque[bytes] = field(default_factory=deque)

    @property
    def usage(self) -> Usage:
        live = self.wanted if self.wanted <= self.account.budget else 0
        return Usage(live, live, self.wanted, self.wanted, self.since, self.since, live)

    def say(self, *told: Needs | Repaid | None) -> None:
        self.up += [encode(each) for each in (*told, self.account.needs(self.usage)) if each]

    def hear(self) -> None:
        said = self.down.popleft()
        if isinstance(said, Recall):
            free = self.account.budget - (0 if said.park else self.usage.live)
            self.say(self.account.repay(min(free, said.bytes), said.number))
        else:
            over = self.account.lend(said.bytes)
            self.say(self.account.repay(over) if over else None)
        assert self.account.budget <= LIMIT
        assert self.usage.live <= self.account.budget

    def want(self, size: int, since: float) -> None:
        self.wanted, self.since = min(LIMIT, size), since
        self.say()

    def tidy(self, now: float) -> None:
        size = self.account.surplus(self.usage, now)
        self.say(self.account.repay(size) if size else None)


class Channel:
    """The scheduler, and the way to and from each worker."""

    def __init__(self, *names: str) -> None:
        """Of models of 4 GB; the last one is idle. 3.5 GB can be lent beside them."""
        self.now = 10.0
        self.pool: Pool = small_machine(
            *names, budget=len(names) * 4 * GB + 7 * GB // 2, size=4 * GB
        )
        for name in names[:-1]:
            serve(self.pool, name, 0.0, size=4 * GB)
        loaded(self.pool, names[-1], size=4 * GB)
        self.workers = {name: Worker(name) for name in names[:-1]}
        self.stopped: list[str] = []

    def carry_up(self, worker: Worker) -> None:
        (frame,) = FrameDecoder[FromWorker](frames.FromWorker).feed(worker.up.popleft())
        memory = self.pool.memory
        if isinstance(frame, Repaid):
            told = memory.repaid(worker.name, 1, frame.bytes, frame.recall, self.now)
        else:
            assert isinstance(frame, Needs)
            told = memory.needs(
                worker.name, 1, LoanNeeds(*msgspec.structs.astuple(frame)), self.now
            )
        self.take(told)

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Lend | Recall):
                self.workers[effect.model].down.append(effect)
            elif isinstance(effect, Stop):
                self.stopped.append(effect.model)
                self.take(self.pool.exited(effect.model, effect.generation, "", self.now))

    def let_pass(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.pool.tick(self.now))

    def quieten(self) -> None:
        """All that is on its way arrives, and what follows from it."""
        while waiting := [each for each in self.workers.values() if each.up or each.down]:
            for worker in waiting:
                if worker.down:
                    worker.hear()
                if worker.up:
                    self.carry_up(worker)


@pytest.mark.parametrize("seed", range(10))
def test_both_sides_come_to_the_same_whatever_crosses(seed: int) -> None:
    rng = random.Random(seed)
    channel = Channel("a", "b", "idle")
    ledger = channel.pool.state.ledger
    for _ in range(400):
        worker = rng.choice(list(channel.workers.values()))
        match rng.randrange(6):
            case 0:
                worker.want(rng.choice((0, ROOM, GB, 2 * GB, LIMIT)), channel.now)
            case 1:
                worker.tidy(channel.now)
            case 2 | 3 if worker.down:
                worker.hear()
            case 4 | 5 if worker.up:
                channel.carry_up(worker)
        if rng.random() < 0.1:
            channel.let_pass(rng.choice((0.1, 1.0, 6.0)))
        for each in channel.workers.values():
            assert each.account.lent <= ledger.lent((each.name, 1))
        if rng.random() < 0.05:
            channel.quieten()
            needs = {need.worker[0]: need.least for need in channel.pool.loans.open_needs()}
            for each in channel.workers.values():
                assert each.account.lent == ledger.lent((each.name, 1))
                lacks = max(0, each.wanted - each.account.budget)
                assert needs.get(each.name) == (lacks or None)
    for each in channel.workers.values():
        each.want(0, channel.now)
    channel.quieten()
    # Whoever needs all that there can be gets it.
    for each in channel.workers.values():
        for other in channel.workers.values():
            other.want(LIMIT if other is each else 0, channel.now)
        for _ in range(20):
            channel.quieten()
            channel.let_pass(2.0)
        assert each.account.budget == LIMIT


def test_no_idle_model_goes_for_words_that_cross() -> None:
    """One worker that wants a little more with every step, and hears of its loans much later: what
    is free would do for all it wants."""
    channel = Channel("a", "idle")
    (worker,) = channel.workers.values()
    for step in range(1, 25):
        worker.want(ROOM + step * 100 * MB, 5.0)
        while worker.up:
            channel.carry_up(worker)
        if step % 5 == 0:
            worker.hear()
    channel.quieten()
    assert worker.usage.live == worker.wanted
    assert channel.stopped == []
