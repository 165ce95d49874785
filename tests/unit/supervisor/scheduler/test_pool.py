"""supervisor.scheduler.pool: who is refused, who waits, who is granted, and how it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.scheduler.effects import EndLease, Grant, Refuse, RememberLimit, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import QUIET_SECONDS, LearnedLimit, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.recovery import RETURN_SECONDS
from tests.helpers.pools import (
    GB,
    HOLD,
    LIMITS,
    PATIENT,
    WITH_PROCESS,
    Told,
    acquire,
    ask,
    done,
    error_of,
    in_state,
    loaded,
    make_pool,
    ready_pool,
    said,
    serve,
    small_machine,
    state,
    told,
)

# ── refuse ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["m", "unknown"])
def test_shutting_down_refuses_everyone(model: str) -> None:
    pool = ready_pool()
    pool.shutdown(2.0)
    lease, effects = pool.acquire("r", model, HOLD, 3.0)
    assert told(effects) == [Told(Refuse, lease, "shutting_down")]
    assert error_of(effects).retry_after is not None


def test_a_failed_model_refuses_with_its_reason() -> None:
    pool = in_state(State.FAILED)
    lease, effects = pool.acquire("r", "m", HOLD, 3.0)
    assert told(effects) == [Told(Refuse, lease, "model_load_failed")]
    assert "no such file" in error_of(effects).message
    assert error_of(effects).param == "model"
    assert pool.release(lease, 4.0) == []


def test_a_full_queue_refuses_and_a_release_makes_room() -> None:
    pool = make_pool(Spec("m", capacity=2), Spec("n", capacity=2))
    first = acquire(pool)
    acquire(pool)
    lease, effects = pool.acquire("r", "m", HOLD, 0.0)
    assert told(effects) == [Told(Refuse, lease, "queue_full")]
    assert 1 <= (error_of(effects).retry_after or 0) <= 10
    acquire(pool, model="n")
    pool.release(first, 1.0)
    acquire(pool, 1.0)
    assert len(pool.ready("m", 1, 0, 1, 2.0)) == 2
    lease, effects = pool.acquire("r", "m", HOLD, 3.0)  # running ones count as well
    assert told(effects) == [Told(Refuse, lease, "queue_full")]


@pytest.mark.parametrize(("waiting", "seconds"), [(0, 1), (50, 2), (5000, 10)])
def test_a_longer_queue_says_come_back_later(waiting: int, seconds: int) -> None:
    pool = make_pool(Spec("m", capacity=waiting))
    for _ in range(waiting):
        acquire(pool)
    assert error_of(pool.acquire("r", "m", HOLD, 0.0)[1]).retry_after == seconds


# ── grant, wait, load ────────────────────────────────────────────────────────────────────────────


def test_a_ready_model_grants_at_once() -> None:
    pool = ready_pool()
    lease, effects = pool.acquire("r", "m", HOLD, 2.0)
    assert effects == [Grant(lease, "m", "m#1", 1, until=1)]


def test_everyone_waits_for_one_load_and_is_granted_in_order() -> None:
    pool = make_pool(Spec("m", aliases=("alias",)))
    first, effects = pool.acquire("r1", "m", HOLD, 0.0)
    assert effects == [Spawn("m", 1)]
    later = [pool.acquire(f"r{i}", name, HOLD, 1.0) for i, name in enumerate(["m", "alias", "m"])]
    assert [effects for _, effects in later] == [[], [], []]
    leases = [first, *(lease for lease, _ in later)]
    assert len(set(leases)) == 4
    assert pool.ready("m", 1, 7, 4096, 2.0) == [
        Grant(lease, "m", "m#1", 1, until=1) for lease in leases
    ]
    assert pool.models["m"].current.memory_bytes == 7
    assert pool.models["m"].current.context == 4096


@pytest.mark.parametrize("wanted", [State.LOADING, State.STOPPING])
def test_whoever_comes_while_a_worker_is_on_its_way_waits(wanted: State) -> None:
    pool = in_state(wanted)
    _, effects = pool.acquire("r", "m", HOLD, 2.0)
    assert effects == []
    assert len(pool.models["m"].waiting) == 1


def test_models_do_not_wait_for_each_other() -> None:
    pool = make_pool(Spec("a"), Spec("b"))
    assert pool.acquire("r", "a", HOLD, 0.0)[1] == [Spawn("a", 1)]
    lease, effects = pool.acquire("r", "b", HOLD, 0.0)
    assert effects == [Spawn("b", 1)]
    assert pool.ready("b", 1, 0, 1, 1.0) == [Grant(lease, "b", "b#1", 1, until=1)]
    assert state(pool, "a") is State.LOADING


def test_a_death_during_the_load_refuses_all_who_wait_and_the_next_loads_again() -> None:
    pool = make_pool()
    leases = [acquire(pool) for _ in range(3)]
    effects = pool.exited("m", 1, "SIGKILL", 1.0)
    assert told(effects) == [Told(Refuse, lease, "worker_crashed") for lease in leases]
    assert len(effects) == 3
    message = effects[0].error.message if isinstance(effects[0], Refuse) else ""
    assert "m#1" in message
    assert "SIGKILL" in message
    assert "while it loaded" in message
    assert pool.acquire("r", "m", HOLD, 2.0)[1] == [Spawn("m", 2)]
    assert pool.models["m"].deaths == 1


def test_a_failed_load_refuses_all_who_wait_and_fails_the_model() -> None:
    pool = make_pool()
    leases = [acquire(pool) for _ in range(2)]
    *refusals, stop = pool.load_failed("m", 1, "unknown type", 1.0)
    assert told(refusals) == [Told(Refuse, lease, "model_load_failed") for lease in leases]
    assert stop == Stop("m", 1, kill=False)
    # Who comes before the process is gone gets the same answer.
    late = acquire(pool, 2.0)
    effects = pool.exited("m", 1, "exit status 0", 3.0)
    assert told(effects) == [Told(Refuse, late, "model_load_failed")]
    assert "unknown type" in error_of(effects).message
    assert state(pool) is State.FAILED
    assert pool.models["m"].deaths == 0


def test_changed_files_let_a_failed_model_be_tried_again() -> None:
    pool = in_state(State.FAILED)
    pool.changed("m", 2.0)
    assert state(pool) is State.COLD
    assert pool.models["m"].reason == ""
    assert pool.acquire("r", "m", HOLD, 3.0)[1] == [Spawn("m", 2)]


def test_an_earlier_failure_is_forgotten_once_the_model_has_loaded() -> None:
    pool = in_state(State.FAILED)
    pool.changed("m", 2.0)
    lease = acquire(pool, 3.0)
    pool.ready("m", 2, 0, 1, 4.0)
    effects = pool.exited("m", 2, "SIGABRT", 5.0)
    assert told(effects) == [Told(EndLease, lease, "worker_crashed")]
    assert state(pool) is State.COLD
    assert pool.models["m"].deaths == 1


def test_an_earlier_cause_is_forgotten_with_its_worker() -> None:
    pool = ready_pool()
    pool.broken("m", 1, "it closed its channel", 2.0)
    pool.exited("m", 1, "SIGKILL", 3.0)
    assert pool.models["m"].reason == ""
    acquire(pool, 4.0)
    assert "(SIGABRT)" in error_of(pool.exited("m", 2, "SIGABRT", 5.0)).message


@pytest.mark.parametrize("wanted", [*WITH_PROCESS, State.COLD])
def test_changed_files_mean_nothing_to_a_model_that_did_not_fail(wanted: State) -> None:
    pool = in_state(wanted)
    pool.changed("m", 2.0)
    assert state(pool) is wanted


@pytest.mark.parametrize("wanted", [*WITH_PROCESS, State.FAILED])
def test_a_preload_is_nothing_where_the_model_is_not_cold(wanted: State) -> None:
    pool = in_state(wanted)
    before = pool.models["m"].preload
    assert pool.preload("m", 2.0) == []
    assert state(pool) is wanted
    assert pool.models["m"].preload is before  # or it would be loaded once it has gone


def test_a_preload_while_shutting_down_is_nothing() -> None:
    pool = make_pool()
    pool.shutdown(0.0)
    assert pool.preload("m", 1.0) == []


def test_a_preload_that_finds_no_room_is_given_up_in_the_end() -> None:
    pool = small_machine("a", "b")
    serve(pool, "a", 0.0)
    assert pool.preload("b", 10.0) == []
    due = 10.0 + PATIENT.preload
    assert pool.next_deadline() == due
    assert "b is not preloaded" in said(pool.tick(due))
    assert pool.next_deadline() is None


def test_a_request_without_a_digest_is_told_from_all_others() -> None:
    pool = make_pool()
    acquire(pool)
    acquire(pool)
    first, second = pool.models["m"].waiting.values()
    assert first.digest != second.digest


def test_one_that_waits_cannot_return() -> None:
    pool = make_pool()
    lease = acquire(pool)
    assert pool.returned(lease, 7, 1.0) == []
    assert lease in pool.models["m"].waiting


def test_an_unload_of_a_model_that_is_not_loaded_is_nothing() -> None:
    assert make_pool().unload("m", 1.0) == []


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────


def test_a_waiter_that_leaves_cancels_nothing() -> None:
    pool = make_pool()
    leaver = acquire(pool)
    assert pool.release(leaver, 1.0) == []
    assert state(pool) is State.LOADING
    late = acquire(pool, 2.0)
    assert pool.ready("m", 1, 0, 1, 3.0) == [Grant(late, "m", "m#1", 1, until=1)]


def test_releasing_twice_is_nothing() -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    assert pool.release(lease, 3.0) == []
    assert pool.release(lease, 4.0) == []
    assert pool.models["m"].granted == {}
    assert pool.models["m"].last_used == 3.0


def test_uses_are_counted_and_refusals_are_not() -> None:
    pool = make_pool(Spec("m", capacity=1))
    acquire(pool, 5.0)
    pool.acquire("r", "m", HOLD, 6.0)
    assert pool.models["m"].use_count == 1
    assert pool.models["m"].last_used == 5.0


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_pool_needs_no_tick() -> None:
    assert make_pool().next_deadline() is None
    assert ready_pool().next_deadline() is None


def test_a_hold_ends_in_a_refusal_and_the_load_goes_on() -> None:
    pool = make_pool()
    short, long = acquire(pool, hold=4.0), acquire(pool, hold=8.0)
    assert pool.next_deadline() == 4.0
    assert pool.tick(3.9) == []
    effects = pool.tick(4.0)
    assert told(effects) == [Told(Refuse, short, "model_loading")]
    assert error_of(effects).retry_after == 5  # nothing better is known yet
    assert pool.tick(4.0) == []
    assert pool.next_deadline() == 8.0
    assert pool.ready("m", 1, 0, 1, 5.0) == [Grant(long, "m", "m#1", 1, until=1)]
    assert pool.tick(1000.0) == []


def test_a_hold_that_ends_tells_what_is_left_of_a_known_load_time() -> None:
    pool = make_pool()
    pool.preload("m", 0.0)
    pool.ready("m", 1, 0, 1, 9.0)
    pool.exited("m", 1, "SIGABRT", 10.0)
    acquire(pool, 10.0, hold=2.0)
    assert error_of(pool.tick(12.0)).retry_after == 7


def test_a_load_without_progress_is_killed() -> None:
    pool = make_pool()
    lease = acquire(pool)
    assert pool.next_deadline() == 10.0
    pool.loading("m", 1, 6.0)
    assert pool.next_deadline() == 16.0
    assert pool.tick(15.9) == []
    *refusals, stop = pool.tick(16.0)
    assert told(refusals) == [Told(Refuse, lease, "model_loading")]
    assert "10 s" in error_of(refusals).message
    assert stop == Stop("m", 1, kill=True, stacks=True)
    assert pool.next_deadline() is None
    late = acquire(pool, 17.0)
    assert pool.exited("m", 1, "SIGKILL", 18.0) == [Spawn("m", 2)]
    assert pool.models["m"].deaths == 1
    assert pool.ready("m", 2, 0, 1, 19.0) == [Grant(late, "m", "m#2", 2, until=1)]


def test_progress_is_no_reason_to_hurry_a_ready_worker() -> None:
    pool = ready_pool()
    pool.loading("m", 1, 5.0)
    assert pool.next_deadline() is None


def test_a_worker_that_ignores_sigterm_is_killed_later_the_larger_it_is() -> None:
    pool = ready_pool(memory_bytes=8 * 10**9)
    assert pool.shutdown(100.0) == [Stop("m", 1, kill=False)]
    assert pool.next_deadline() == 107.0
    assert pool.tick(106.9) == []
    assert pool.tick(107.0) == [Stop("m", 1, kill=True, stacks=True)]
    assert pool.next_deadline() is None
    assert pool.tick(1000.0) == []


def test_one_tick_does_everything_that_has_fallen_due() -> None:
    end = 300.0
    limits = replace(PATIENT, drain=100.0, preload=200.0)
    specs = [
        Spec("full", concurrency=1),
        Spec("dead"),
        Spec("large", estimate_bytes=9 * GB),
        Spec("drains"),
        Spec("idle", estimate_bytes=2 * GB, ttl=50.0),
        Spec("limited", concurrency=4),
    ]
    pool = Pool(specs, limits=limits, rules=Rules(recovery="resume"), budget=10 * GB)
    pool.recall("limited", 0, None, None, LearnedLimit(1, end - QUIET_SECONDS))
    serve(pool, "full", 0.0, size=0)
    idle = serve(pool, "idle", 0.0, size=2 * GB)
    pool.preload("large", end - limits.preload)
    cut = serve(pool, "drains", 0.0, size=0)
    pool.unload("drains", end - limits.drain)
    pool.release(idle, end - 50.0)
    silent = serve(pool, "dead", 0.0, size=0)
    pool.exited("dead", 1, "SIGABRT", end - RETURN_SECONDS)
    late = ask(pool, "full", 0.0, hold=end)
    assert pool.next_deadline() == end
    effects = pool.tick(end)
    assert told(effects) == [
        Told(Refuse, late, "queue_full"),
        Told(Refuse, silent, "worker_crashed"),
        Told(EndLease, cut, "model_loading"),
    ]
    assert "large is not preloaded" in said(effects)
    assert {Stop("drains", 1, kill=False), Stop("idle", 1, kill=False)} <= set(done(effects))
    assert RememberLimit("limited", LearnedLimit(2, end)) in effects


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_without_processes_is_stopped_at_once() -> None:
    pool = make_pool()
    assert pool.shutdown(0.0) == []
    assert pool.state.stopped


def test_shutdown_stops_idle_workers_and_loads_and_refuses_waiters() -> None:
    pool = make_pool(Spec("idle"), Spec("loading"), Spec("cold"))
    pool.preload("idle", 0.0)
    pool.ready("idle", 1, 0, 1, 1.0)
    lease = acquire(pool, 1.0, model="loading")
    effects = pool.shutdown(2.0)
    assert told(effects) == [Told(Refuse, lease, "shutting_down")]
    stops = [effect for effect in effects if isinstance(effect, Stop)]
    assert stops == [Stop("idle", 1, kill=False), Stop("loading", 1, kill=False)]
    stopped = [pool.state.stopped]
    for model in ("idle", "loading"):
        assert pool.exited(model, 1, "exit status 0", 3.0) == []
        stopped.append(pool.state.stopped)
    assert stopped == [False, False, True]
    assert [entry.deaths for entry in pool.models.values()] == [0, 0, 0]


def test_shutdown_lets_running_requests_finish() -> None:
    pool = ready_pool()
    first, second = acquire(pool, 2.0), acquire(pool, 2.0)
    assert pool.shutdown(3.0) == []
    assert state(pool) is State.DRAINING
    assert pool.next_deadline() == 23.0
    assert pool.release(first, 4.0) == []
    assert pool.release(second, 5.0) == [Stop("m", 1, kill=False)]
    assert pool.exited("m", 1, "exit status 0", 6.0) == []
    assert pool.state.stopped
    assert pool.models["m"].deaths == 0


@pytest.mark.parametrize("again", [False, True])
def test_the_drain_deadline_or_a_second_shutdown_cuts_what_still_runs(again: bool) -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    pool.shutdown(3.0)
    assert pool.tick(22.9) == []
    *cut, stop = pool.shutdown(22.9) if again else pool.tick(23.0)
    assert told(cut) == [Told(EndLease, lease, "shutting_down")]
    assert stop == Stop("m", 1, kill=False)
    assert pool.release(lease, 24.0) == []
    assert pool.next_deadline() == (25.9 if again else 26.0)
    assert pool.exited("m", 1, "exit status 0", 25.0) == []
    assert pool.state.stopped


def test_nobody_is_spawned_for_after_shutdown() -> None:
    pool = in_state(State.STOPPING)
    lease = acquire(pool, 2.0)
    assert told(pool.shutdown(3.0)) == [Told(Refuse, lease, "shutting_down")]
    assert pool.exited("m", 1, "SIGKILL", 4.0) == []
    assert pool.state.stopped


def test_a_shutdown_tells_everybody_whatever_becomes_of_the_other_models() -> None:
    pool = Pool(
        [Spec("loads"), Spec("idle"), Spec("dead")], limits=LIMITS, rules=Rules(recovery="resume")
    )
    loaded(pool, "idle", size=0)
    returning = serve(pool, "dead", 0.0, size=0)
    pool.exited("dead", 1, "SIGABRT", 3.0)
    waiting = ask(pool, "loads", 3.0)
    effects = pool.shutdown(4.0)
    assert told(effects) == [
        Told(Refuse, waiting, "shutting_down"),
        Told(Refuse, returning, "shutting_down"),
    ]
    stops = [effect for effect in effects if isinstance(effect, Stop)]
    assert stops == [Stop("loads", 1, kill=False), Stop("idle", 1, kill=False)]


def test_a_second_shutdown_kills_who_was_told_to_stop_and_tells_who_drained() -> None:
    names = ["stops", "drains", "stops too", "cold"]
    pool = make_pool(*map(Spec, names))
    loaded(pool, "stops", "stops too", size=0)
    lease = serve(pool, "drains", 0.0, size=0)
    pool.shutdown(5.0)
    effects = pool.shutdown(6.0)
    assert told(effects) == [Told(EndLease, lease, "shutting_down")]
    assert [effect for effect in effects if isinstance(effect, Stop)] == [
        Stop("stops", 1, kill=True),
        Stop("drains", 1, kill=False),
        Stop("stops too", 1, kill=True),
    ]
