"""Fewer requests at once after a model ran out of memory, and more again after quiet hours."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from supervisor.crashes.diagnosis import Cause, Diagnosis
from supervisor.models.size_cache import SizeCache
from supervisor.scheduler.concurrency_limit import at_most, lowered, raised
from supervisor.scheduler.effects import Effect, Grant, Interrupt, RememberLimit
from supervisor.scheduler.model import QUIET_SECONDS, LearnedLimit, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from tests.helpers.pools import LIMITS, said

HOUR = 3600.0


def test_half_of_what_were_too_many() -> None:
    first = lowered(None, 32, 10, 5.0)
    assert first == LearnedLimit(5, 5.0)
    assert lowered(first, 32, 5, 6.0) == LearnedLimit(2, 6.0)
    assert lowered(first, 32, 9, 6.0) == LearnedLimit(2, 6.0)  # those on their way out
    assert lowered(LearnedLimit(1, 0.0), 32, 1, 6.0) == LearnedLimit(1, 6.0)
    # One alone was not too many; where nothing is configured, what ran is all that is known.
    assert lowered(None, 32, 1, 5.0) == LearnedLimit(16, 5.0)
    assert lowered(None, 0, 6, 5.0) == LearnedLimit(3, 5.0)


def test_what_was_learned_before_is_lowered_further() -> None:
    pool = loaded_with(0)
    pool.recall("m", 0, None, None, LearnedLimit(4, 1.0))
    pool.acquire("r", "m", 240.0, 2.0)
    effects = die(pool, Cause.GPU_OUT_OF_MEMORY, 3.0)  # one alone was not too many
    assert RememberLimit("m", LearnedLimit(2, 3.0)) in effects


def test_each_quiet_while_doubles_it_until_it_is_what_was_configured() -> None:
    known = LearnedLimit(5, 100.0)
    assert raised(known, 32, 100.0 + QUIET_SECONDS - 1) == known
    assert raised(known, 32, known.ends) == LearnedLimit(10, known.ends)
    # Of a server that was off meanwhile.
    assert raised(known, 32, 100.0 + 2.5 * QUIET_SECONDS) == LearnedLimit(
        20, 100.0 + 2 * QUIET_SECONDS
    )
    assert raised(known, 32, 100.0 + 3 * QUIET_SECONDS) is None
    assert raised(known, 10, known.ends) is None
    assert raised(known, 0, known.ends) is None
    assert raised(known, 2**20, 1e12) is None  # of years


def loaded_with(requests: int, concurrency: int = 8) -> Pool:
    """A pool whose model `m` serves so many."""
    pool = Pool([Spec("m", concurrency=concurrency)], limits=LIMITS, rules=Rules(recovery="resume"))
    pool.preload("m", 0.0)
    pool.started("m", 1, 1234)
    pool.ready("m", 1, 0, 4096, 1.0)
    for number in range(requests):
        pool.acquire(f"r{number}", "m", 240.0, 1.0)
    pool.progress("m", 1)
    return pool


def die(pool: Pool, cause: Cause, now: float, how: str = "SIGABRT") -> list[Effect]:
    """The worker's end, and what is said of it."""
    generation = pool.models["m"].generation
    crash = Diagnosis(cause).death("id")
    dying = pool.dying("m", generation, how, now, crash)
    effects = pool.exited("m", generation, how, now, crash)
    for effect in dying:
        if isinstance(effect, Interrupt):
            effects += pool.returned(effect.lease, 3, now)
    return effects


def pass_all(pool: Pool, effects: list[Effect], now: float) -> list[Effect]:
    """Whoever is granted gets as far as it was asked to. All that follows, `effects` included."""
    followed = list(effects)
    for effect in followed:  # which grows meanwhile
        if isinstance(effect, Grant) and effect.until:
            followed += pool.passed(effect.lease, now)
    return followed


def revive(pool: Pool, now: float) -> list[Effect]:
    """The next worker, and who passes its probation in it."""
    return pass_all(pool, pool.ready("m", pool.models["m"].generation, 0, 4096, now), now)


def running(pool: Pool) -> list[int]:
    return list(pool.models["m"].granted)


@pytest.mark.parametrize("cause", [Cause.GPU_OUT_OF_MEMORY, Cause.OUT_OF_MEMORY, Cause.OOM_KILLED])
def test_a_model_that_ran_out_of_memory_serves_fewer_at_once(cause: Cause) -> None:
    pool = loaded_with(6)
    effects = die(pool, cause, 2.0)
    assert RememberLimit("m", LearnedLimit(3, 2.0)) in effects
    assert "ran out of memory with 6 requests in it: at most 3 of model m" in said(effects)
    assert pool.models["m"].concurrency == 3
    # Three of those who were in it go on together.
    effects = revive(pool, 3.0)
    assert [effect.lease for effect in effects if isinstance(effect, Grant)] == [1, 2, 3]
    late, effects = pool.acquire("late", "m", 240.0, 4.0)
    assert not effects
    # The others follow as places become free, and nobody else comes before them.
    for lease in (1, 2, 3):
        pool.release(lease, 5.0)
    assert running(pool) == [4, 5, 6]
    assert [e.lease for e in pool.release(4, 6.0) if isinstance(e, Grant)] == [late]


def test_a_model_that_may_run_one_at_a_time_runs_one_at_a_time() -> None:
    pool = loaded_with(2)
    die(pool, Cause.OUT_OF_MEMORY, 2.0)
    assert pool.models["m"].concurrency == 1
    revive(pool, 3.0)
    for lease in (1, 2):
        assert running(pool) == [lease]
        pool.release(lease, 4.0)
    assert not running(pool)


def test_other_deaths_teach_nothing_the_first_time() -> None:
    pool = loaded_with(6)
    effects = die(pool, Cause.SEGFAULT, 2.0)
    assert not [effect for effect in effects if isinstance(effect, RememberLimit)]
    assert pool.models["m"].concurrency == 8
    assert len(running(pool)) == 0
    revive(pool, 3.0)
    # However long they have run since.
    effects = die(pool, Cause.SEGFAULT, 50.0)
    assert RememberLimit("m", LearnedLimit(3, 50.0)) in effects
    assert "m has died again with 6 requests in it: at most 3 of model m" in said(effects)


def test_no_more_than_lived() -> None:
    assert at_most(None, 0, 3, 5.0) == LearnedLimit(3, 5.0)
    assert at_most(None, 8, 3, 5.0) == LearnedLimit(3, 5.0)
    assert at_most(None, 3, 3, 5.0) is None
    assert at_most(LearnedLimit(2, 1.0), 8, 3, 5.0) is None
    assert at_most(None, 8, 0, 5.0) == LearnedLimit(1, 5.0)


def test_a_kill_that_nobody_explains_counts_where_memory_is_short() -> None:
    for level, limit in ((Level.NORMAL, 8), (Level.WARN, 3)):
        pool = loaded_with(6)
        pool.memory.pressure(level, "90 %", 1.5)
        die(pool, Cause.KILLED, 2.0, "SIGKILL")
        assert pool.models["m"].concurrency == limit


def test_a_load_that_runs_out_of_memory_is_no_requests_fault() -> None:
    pool = loaded_with(0)
    die(pool, Cause.OUT_OF_MEMORY, 2.0)
    pool.acquire("r", "m", 240.0, 2.0)
    die(pool, Cause.OUT_OF_MEMORY, 3.0)
    assert pool.models["m"].learned_limit is None


def test_it_climbs_back_in_quiet_hours() -> None:
    pool = loaded_with(6)
    die(pool, Cause.OUT_OF_MEMORY, 2.0)
    revive(pool, 3.0)
    for lease in range(1, 7):
        pass_all(pool, pool.release(lease, 4.0), 4.0)
    assert pool.next_deadline() == 2.0 + QUIET_SECONDS
    effects = pool.tick(2.0 + QUIET_SECONDS)
    assert RememberLimit("m", LearnedLimit(6, 2.0 + QUIET_SECONDS)) in effects
    effects = pool.tick(2.0 + 2 * QUIET_SECONDS)
    assert effects[0] == RememberLimit("m", None)
    assert "8 may run at once" in said(effects)
    assert pool.models["m"].concurrency == 8
    assert pool.next_deadline() is None


def test_what_was_learned_outlives_the_server(tmp_path: Path) -> None:
    path, now = tmp_path / "sizes.json", time.time()
    sizes = SizeCache.load(path)
    sizes.save_limit("m", LearnedLimit(3, now))
    sizes.save_limit("n", LearnedLimit(4, now))
    sizes.save_limit("n", None)
    again = SizeCache.load(path)
    assert again.learned_limit("m") == LearnedLimit(3, now)
    assert again.learned_limit("n") is None
    pool = loaded_with(0)
    pool.recall("m", 0, None, None, LearnedLimit(3, 0.5))
    assert pool.models["m"].concurrency == 3


def test_a_clock_that_was_set_back_makes_no_limit_last(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    SizeCache.load(path).save_limit("m", LearnedLimit(3, time.time() + 24 * HOUR))
    assert SizeCache.load(path).learned_limit("m") is None


def test_who_was_parked_before_was_not_in_it() -> None:
    pool = loaded_with(6)
    effects = pool.memory.pressure(Level.CRITICAL, "99 %", 2.0) + pool.tick(
        2.0 + LIMITS.emergency_drain
    )
    parked = [effect.lease for effect in effects if isinstance(effect, Interrupt)]
    assert len(parked) == 6
    for lease in parked:
        pool.returned(lease, 3, 13.0)
    pool.exited("m", 1, "exit status 0", 14.0)
    pool.memory.pressure(Level.NORMAL, "10 %", 15.0)
    assert pool.models["m"].generation == 2
    die(pool, Cause.OUT_OF_MEMORY, 16.0)  # while it loads
    assert pool.models["m"].learned_limit is None
