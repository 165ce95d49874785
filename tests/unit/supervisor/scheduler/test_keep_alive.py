"""What a request says of the time that its model stays loaded, as clients of Ollama do."""

from __future__ import annotations

import pytest

from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect, Grant, Loaded, Refuse, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool
from tests.helpers.driven_pool import DrivenPool
from tests.helpers.pools import GB, HOLD, done, loaded, small_machine, states
from tests.property.recoveries import death_of

ENDS = Stop("m", 1, kill=False)


def make_pool(ttl: float = 0.0, *, pin: bool = False) -> Pool:
    """`m` is ready and idle since 2 s."""
    pool = small_machine(Spec("m", ttl=ttl, pin=pin), budget=None)
    loaded(pool, "m", size=GB)
    return pool


def used(pool: Pool, now: float, keep_alive: float | None) -> list[Effect]:
    """A request that takes no time; what its end causes."""
    lease, effects = pool.acquire("r", "m", HOLD, now, keep_alive=keep_alive)
    assert isinstance(done(effects)[-1], Grant)
    return pool.release(lease, now)


@pytest.mark.parametrize("ttl", [0.0, 5.0, 1000.0])
def test_a_request_overrules_the_configured_time(ttl: float) -> None:
    pool = make_pool(ttl)
    used(pool, 10.0, 30.0)
    assert pool.next_deadline() == 40.0
    assert done(pool.tick(39.9)) == []
    assert done(pool.tick(40.0)) == [ENDS]


def test_the_last_word_counts_and_silence_is_none() -> None:
    pool = make_pool(ttl=500.0)
    used(pool, 10.0, 30.0)
    used(pool, 11.0, 60.0)
    used(pool, 12.0, None)
    assert pool.next_deadline() == 72.0


def test_with_a_negative_one_it_stays() -> None:
    pool = make_pool(ttl=5.0)
    used(pool, 4.0, -1.0)
    assert pool.next_deadline() is None
    assert done(pool.tick(1e9)) == []


def test_with_zero_it_goes_when_the_last_request_has_left() -> None:
    pool = make_pool()
    first, _ = pool.acquire("r1", "m", HOLD, 3.0)
    second, _ = pool.acquire("r2", "m", HOLD, 3.0, keep_alive=0.0)
    pool.release(second, 4.0)
    assert done(pool.tick(100.0)) == []
    pool.release(first, 101.0)
    assert pool.next_deadline() == 101.0
    assert done(pool.tick(101.0)) == [ENDS]


def test_a_pinned_model_stays() -> None:
    pool = make_pool(pin=True)
    used(pool, 3.0, 0.0)
    assert done(pool.expire("m", 4.0)) == []
    assert pool.next_deadline() is None
    assert done(pool.unpin("m", 5.0)) == []
    assert done(pool.tick(5.0)) == [ENDS]


def test_what_was_said_ends_with_the_unload() -> None:
    pool = make_pool(ttl=50.0)
    used(pool, 3.0, 0.0)
    pool.tick(3.0)
    pool.exited("m", 1, "exit status 0", 4.0)
    loaded(pool, "m", now=10.0, size=GB)
    assert pool.next_deadline() == 12.0 + 50.0


def test_it_outlives_a_death() -> None:
    pool = make_pool(ttl=50.0)
    used(pool, 3.0, 20.0)
    pool.exited("m", 1, "SIGABRT", 4.0, death_of(Fault.OUTSIDE))
    loaded(pool, "m", now=10.0, size=GB)
    assert pool.next_deadline() == 12.0 + 20.0


def test_who_returns_from_a_death_does_not_say_it_again() -> None:
    driven = DrivenPool(0)
    pool = driven.pool
    first, _ = pool.acquire("r1", "m", HOLD, 0.0, keep_alive=0.0)
    driven.ready()
    second, _ = pool.acquire("r2", "m", HOLD, 1.0, keep_alive=-1.0)
    pool.release(second, 2.0)
    driven.passed(first)
    driven.dies(Fault.OUTSIDE)
    assert list(driven.entry.granted) == [first]
    assert driven.entry.keep_alive == -1.0


# ── without a request ─────────────────────────────────────────────────────────────────────────────


def test_a_client_loads_a_model_for_a_while() -> None:
    pool = small_machine(Spec("m"), budget=None)
    lease, effects = pool.warm("r", "m", HOLD, 1.0, 60.0)
    assert done(effects) == [Spawn("m", 1)]
    assert Loaded(lease, "m", "m#1") in pool.ready("m", 1, GB, 4096, 5.0)
    assert pool.models["m"].use_count == 0
    assert pool.next_deadline() == 65.0


def test_a_load_of_what_is_loaded_begins_its_time_anew() -> None:
    pool = make_pool(ttl=30.0)
    lease, effects = pool.warm("r", "m", HOLD, 20.0)
    assert done(effects) == [Loaded(lease, "m", "m#1")]
    assert pool.next_deadline() == 50.0


def test_no_client_tries_a_failed_load_again() -> None:
    pool = small_machine(Spec("m"), budget=None)
    pool.warm("r", "m", HOLD, 0.0)
    pool.load_failed("m", 1, "no such file", 1.0)
    pool.exited("m", 1, "exit status 0", 2.0)
    _, effects = pool.warm("r", "m", HOLD, 3.0)
    assert [type(effect) for effect in effects] == [Refuse]
    assert states(pool)["m"] is State.FAILED
    _, effects = pool.load("r", "m", HOLD, 4.0)
    assert done(effects) == [Spawn("m", 2)]


def test_a_client_that_has_done_with_it_unloads_it() -> None:
    assert done(make_pool(ttl=1000.0).expire("m", 3.0)) == [ENDS]


def test_what_runs_ends_first_and_may_say_that_it_stays() -> None:
    pool = make_pool()
    lease, _ = pool.acquire("r", "m", HOLD, 3.0)
    assert done(pool.expire("m", 4.0)) == []
    used(pool, 5.0, 100.0)
    pool.release(lease, 6.0)
    assert pool.next_deadline() == 106.0


def test_a_model_that_loads_serves_who_waits_and_goes() -> None:
    pool = small_machine(Spec("m"), budget=None)
    lease, _ = pool.acquire("r", "m", HOLD, 0.0)
    assert done(pool.expire("m", 1.0)) == []
    pool.ready("m", 1, GB, 4096, 2.0)
    pool.release(lease, 3.0)
    assert done(pool.tick(3.0)) == [ENDS]


def test_what_is_not_loaded_need_not_go() -> None:
    pool = small_machine(Spec("m", ttl=50.0), budget=None, rules=Rules())
    assert pool.expire("m", 1.0) == []
    loaded(pool, "m", now=10.0, size=GB)
    assert pool.next_deadline() == 62.0
