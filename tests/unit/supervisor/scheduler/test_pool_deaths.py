"""supervisor.scheduler.pool: what a death costs, and whom, whoever tells of it first."""

from __future__ import annotations

import pytest

from supervisor.crashes.diagnosis import Cause, Diagnosis
from supervisor.scheduler.effects import EndLease, Grant, Refuse, Spawn, Stop
from supervisor.scheduler.lease import Suspicion
from supervisor.scheduler.ledger import STRANDED_SECONDS
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import ReleaseRule, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.workers import FAULT_SECONDS
from tests.helpers.pools import (
    GB,
    HOLD,
    LIMITS,
    WITH_PROCESS,
    Told,
    acquire,
    error_of,
    in_state,
    loading_pool,
    make_pool,
    ready_pool,
    state,
    told,
)


def test_each_lease_of_a_dead_worker_dies_exactly_once() -> None:
    pool = ready_pool()
    leases = [acquire(pool, 2.0) for _ in range(3)]
    effects = pool.exited("m", 1, "SIGABRT", 3.0)
    assert told(effects) == [Told(EndLease, lease, "worker_crashed") for lease in leases]
    assert len(effects) == 3
    assert state(pool) is State.COLD
    assert pool.exited("m", 1, "SIGABRT", 3.0) == []
    assert [pool.release(lease, 4.0) for lease in leases] == [[], [], []]
    assert [pool.fault(lease, "torn", 4.0) for lease in leases] == [[], [], []]
    assert pool.models["m"].deaths == 1
    assert pool.models["m"].worker is None
    assert pool.acquire("r", "m", HOLD, 5.0)[1] == [Spawn("m", 2)]


def test_a_death_names_its_cause_and_the_time_to_come_back() -> None:
    pool = make_pool()
    acquire(pool)
    pool.ready("m", 1, 0, 1, 7.5)
    error = error_of(pool.exited("m", 1, "SIGABRT", 10.0))
    assert "m#1 died (SIGABRT) during this request" in error.message
    assert error.retry_after == 8
    assert error.should_retry is True


@pytest.mark.parametrize(
    ("cause", "told", "what_to_do"),
    [
        (Cause.GPU_OUT_OF_MEMORY, "the GPU ran out of memory", "Retry, and the model is loaded"),
        (Cause.ARRAY_TOO_LARGE, "a request needs one array", "Shorten the prompt."),
        (Cause.WRONG_THREAD, "these versions of mlx", "Upgrade both"),
    ],
)
@pytest.mark.parametrize("event", ["dying", "exited"])
def test_a_death_that_is_understood_says_why_and_what_to_do(
    event: str, cause: Cause, told: str, what_to_do: str
) -> None:
    pool = make_pool()
    acquire(pool)
    pool.ready("m", 1, 0, 1, 7.5)
    crash = Diagnosis(cause, "a line of the log").death("some-id")
    message = error_of(getattr(pool, event)("m", 1, "SIGABRT", 10.0, crash)).message
    assert f"m#1 died (SIGABRT: {told}" in message
    assert what_to_do in message
    assert message.endswith(" `bulkhead crashes some-id` has the report.")
    assert "a line" not in message


@pytest.mark.parametrize(("cause", "deaths"), [(Cause.GPU_VICTIM, 0), (Cause.GPU_HANG, 1)])
def test_what_came_from_outside_counts_against_nobody(cause: Cause, deaths: int) -> None:
    pool = Pool([Spec("m")], rules=Rules(recovery="resume"))
    lease = acquire(pool)
    pool.ready("m", 1, 0, 1, 7.5)
    pool.exited("m", 1, "SIGABRT", 10.0, Diagnosis(cause).death("some-id"))
    pool.returned(lease, 0, 10.0)
    returned = pool.models["m"].waiting[lease]
    assert (returned.suspicion, returned.deaths) == (Suspicion.CLEAR, deaths)


@pytest.mark.parametrize("longer", [0, 2 * HOLD])
def test_who_returns_waits_as_long_as_it_says(longer: float) -> None:
    pool = Pool([Spec("m")], rules=Rules(recovery="resume"))
    lease = acquire(pool)
    pool.ready("m", 1, 0, 1, 7.5)
    pool.exited("m", 1, "SIGABRT", 10.0)
    pool.returned(lease, 0, 10.0, longer)
    assert pool.models["m"].waiting[lease].deadline == 10.0 + (longer or HOLD)


def test_what_we_killed_says_why_in_our_words() -> None:
    pool = make_pool()
    acquire(pool)
    pool.ready("m", 1, 0, 1, 7.5)
    pool.broken("m", 1, "bad message: torn", 9.0)
    crash = Diagnosis(Cause.PROTOCOL).death("some-id")
    message = error_of(pool.exited("m", 1, "SIGKILL", 10.0, crash)).message
    assert "m#1 died (SIGKILL; bad message: torn) during this request" in message
    assert "some-id" in message


def test_a_clean_exit_that_nobody_asked_for_is_a_crash() -> None:
    """vllm#48966: the engine died with exit status 0."""
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    assert told(pool.exited("m", 1, "exit status 0", 3.0)) == [
        Told(EndLease, lease, "worker_crashed")
    ]
    assert pool.models["m"].deaths == 1


@pytest.mark.parametrize("wanted", [State.READY, State.DRAINING])
def test_who_is_in_a_dying_worker_learns_it_before_its_exit(wanted: State) -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    if wanted is State.DRAINING:
        pool.shutdown(2.5)
    effects = pool.dying("m", 1, "SIGABRT", 3.0)
    assert told(effects) == [Told(EndLease, lease, "worker_crashed")]
    assert "(SIGABRT) during this request" in error_of(effects).message
    assert state(pool) is State.STOPPING
    assert pool.dying("m", 1, "SIGABRT", 3.0) == []
    assert pool.exited("m", 1, "SIGABRT", 4.0) == []
    assert pool.models["m"].deaths == 1


def test_who_comes_while_a_worker_dies_waits_for_the_next() -> None:
    pool = ready_pool()
    pool.dying("m", 1, "SIGSEGV", 3.0)
    late = acquire(pool, 3.5)
    assert pool.exited("m", 1, "SIGSEGV", 4.0) == [Spawn("m", 2)]
    assert pool.ready("m", 2, 0, 1, 6.0) == [Grant(late, "m", "m#2", 2, until=1)]


def test_who_waits_for_a_load_that_dies_is_refused_at_once() -> None:
    pool = loading_pool()
    lease = acquire(pool, 0.5)
    assert told(pool.dying("m", 1, "SIGBUS", 1.0)) == [Told(Refuse, lease, "worker_crashed")]


def test_a_dying_worker_that_does_not_die_is_killed() -> None:
    pool = ready_pool()
    pool.dying("m", 1, "SIGABRT", 3.0)
    due = 3.0 + LIMITS.stop
    assert pool.next_deadline() == due
    assert pool.tick(due) == [Stop("m", 1, kill=True, stacks=True)]


def test_a_killed_worker_buries_its_leases_at_its_exit_and_serves_the_late_by_a_new_one() -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    assert pool.broken("m", 1, "its channel closed", 3.0) == []
    assert pool.next_deadline() == 3.0 + FAULT_SECONDS
    assert pool.tick(3.0 + FAULT_SECONDS) == [Stop("m", 1, kill=True, stacks=True)]
    late = acquire(pool, 4.0)
    effects = pool.exited("m", 1, "SIGKILL", 5.0)
    assert told(effects) == [Told(EndLease, lease, "worker_crashed")]
    assert (
        "its channel closed" in effects[0].error.message if isinstance(effects[0], EndLease) else ""
    )
    assert effects[-1] == Spawn("m", 2)
    assert pool.ready("m", 2, 0, 1, 6.0) == [Grant(late, "m", "m#2", 2, until=1)]


def test_what_breaks_while_it_is_stopped_is_killed() -> None:
    pool = in_state(State.DRAINING)
    pool.release(next(iter(pool.models["m"].granted)), 2.0)
    assert state(pool) is State.STOPPING
    assert pool.broken("m", 1, "bad message", 3.0) == [Stop("m", 1, kill=True)]


def test_a_fault_kills_the_worker_and_a_second_one_is_harmless() -> None:
    """It may be dying already, and then its exit says why."""
    pool = ready_pool()
    first, second = acquire(pool, 2.0), acquire(pool, 2.0)
    assert pool.fault(first, "a torn frame", 3.0) == []
    assert state(pool) is State.STOPPING
    assert pool.fault(second, "another", 3.5) == []
    assert not pool.models["m"].current.killed
    effects = pool.exited("m", 1, "SIGKILL", 4.0)
    assert told(effects) == [
        Told(EndLease, first, "worker_crashed"),
        Told(EndLease, second, "worker_crashed"),
    ]
    assert pool.models["m"].deaths == 1


@pytest.mark.parametrize("lease", [-1, 99])
def test_a_fault_of_an_unknown_lease_is_nothing(lease: int) -> None:
    assert ready_pool().fault(lease, "torn", 2.0) == []


def test_a_fault_of_a_waiting_lease_is_nothing() -> None:
    pool = make_pool()
    lease = acquire(pool)
    assert pool.fault(lease, "torn", 1.0) == []
    assert state(pool) is State.LOADING


def test_a_broken_worker_refuses_those_who_wait_for_its_load() -> None:
    pool = make_pool()
    lease = acquire(pool)
    *refusals, stop = pool.broken("m", 1, "bad message", 1.0)
    assert told(refusals) == [Told(Refuse, lease, "worker_crashed")]
    assert stop == Stop("m", 1, kill=True)
    assert pool.exited("m", 1, "SIGKILL", 2.0) == []
    assert state(pool) is State.COLD


def test_a_crash_while_draining_buries_and_counts() -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    pool.shutdown(3.0)
    assert told(pool.exited("m", 1, "SIGSEGV", 4.0)) == [Told(EndLease, lease, "worker_crashed")]
    assert pool.models["m"].deaths == 1
    assert pool.state.stopped


@pytest.mark.parametrize("wanted", WITH_PROCESS)
@pytest.mark.parametrize("generation", [0, 2])
def test_words_about_another_incarnation_are_dropped(wanted: State, generation: int) -> None:
    pool = in_state(wanted)
    deadline = pool.next_deadline()
    assert pool.ready("m", generation, 5, 5, 2.0) == []
    assert pool.load_failed("m", generation, "no", 2.0) == []
    assert pool.broken("m", generation, "no", 2.0) == []
    assert pool.exited("m", generation, "SIGKILL", 2.0) == []
    pool.started("m", generation, 666)
    pool.loading("m", generation, 2.0)
    assert state(pool) is wanted
    assert pool.models["m"].current.pid == 1234
    assert pool.next_deadline() == deadline


@pytest.mark.parametrize("wanted", [State.COLD, State.FAILED])
def test_words_about_a_process_that_is_gone_are_dropped(wanted: State) -> None:
    pool = in_state(wanted)
    generation = pool.models["m"].generation
    assert pool.ready("m", generation, 5, 5, 2.0) == []
    assert pool.exited("m", generation, "SIGKILL", 2.0) == []
    assert pool.broken("m", generation, "no", 2.0) == []
    assert state(pool) is wanted
    assert pool.models["m"].deaths == 0


@pytest.mark.parametrize("wanted", [State.READY, State.DRAINING, State.STOPPING])
def test_ready_and_load_failed_count_while_loading_alone(wanted: State) -> None:
    pool = in_state(wanted)
    assert pool.ready("m", 1, 5, 5, 2.0) == []
    assert pool.load_failed("m", 1, "no", 2.0) == []
    assert state(pool) is wanted


def test_a_reason_lasts_as_long_as_what_it_explains() -> None:
    pool = Pool([Spec("m")], rules=Rules(recovery="resume", max_restarts=2))
    acquire(pool)
    for generation in (1, 2):
        pool.dying("m", generation, "SIGABRT", 1.0)
        assert pool.models["m"].reason == "SIGABRT"
        pool.exited("m", generation, "SIGABRT", 1.0)
        assert pool.models["m"].reason == ""
    assert state(pool) is State.CRASHED
    assert pool.models["m"].deaths == 2


def test_one_request_probes_a_model_that_kept_dying() -> None:
    pool = Pool([Spec("m")], rules=Rules(recovery="resume", max_restarts=1))
    acquire(pool)
    pool.exited("m", 1, "SIGABRT", 1.0)
    pool.tick(10.0)
    leases = [acquire(pool, 10.0) for _ in range(3)]
    effects = pool.ready("m", 2, 0, 4096, 11.0)
    assert [each.lease for each in effects if isinstance(each, Grant)] == leases[:1]
    # One that ends without a token makes room for the next probe.
    effects = pool.release(leases[0], 12.0)
    assert [each.lease for each in effects if isinstance(each, Grant)] == leases[1:2]
    effects = pool.passed(leases[1], 13.0)
    assert [each.lease for each in effects if isinstance(each, Grant)] == leases[2:]


def test_who_waits_for_a_probe_is_served_once_the_files_are_others() -> None:
    pool = Pool([Spec("m")], rules=Rules(recovery="resume", max_restarts=1))
    acquire(pool)
    pool.exited("m", 1, "SIGABRT", 1.0)
    pool.tick(10.0)
    probe, waiting = acquire(pool, 10.0), acquire(pool, 10.0)
    effects = pool.ready("m", 2, 0, 4096, 11.0)
    assert [each.lease for each in effects if isinstance(each, Grant)] == [probe]
    effects = pool.changed("m", 12.0)
    assert [each.lease for each in effects if isinstance(each, Grant)] == [waiting]


def test_all_whose_memory_is_back_at_once_are_told_what_follows() -> None:
    rules = Rules(release=ReleaseRule.WHEN_SEEN)
    pool = Pool([Spec("a"), Spec("b")], limits=LIMITS, rules=rules)
    for name in "ab":
        acquire(pool, model=name)
        pool.load_failed(name, 1, "no such file", 1.0)
        pool.exited(name, 1, "exit status 0", 2.0)
    late = [acquire(pool, 3.0, model=name) for name in "ab"]
    assert told(pool.memory.memory_seen(0, 4.0)) == [
        Told(Refuse, lease, "model_load_failed") for lease in late
    ]


def test_stranded_memory_that_comes_back_is_no_later_incarnations() -> None:
    rules = Rules(release=ReleaseRule.WHEN_SEEN)
    pool = Pool([Spec("m")], limits=LIMITS, rules=rules)
    for generation in (1, 2):
        now = 100.0 * generation
        lease = acquire(pool, now)
        pool.ready("m", generation, 8 * GB, 4096, now)
        pool.release(lease, now)
        pool.exited("m", generation, "SIGKILL", now)
        if generation == 1:
            pool.tick(now + STRANDED_SECONDS)
    assert state(pool) is State.RELEASING
    assert pool.memory.memory_seen(8 * GB, 201.0) == []  # the first accounts for it
    pool.memory.memory_seen(4 * GB, 202.0)
    assert state(pool) is State.COLD


def test_stranded_memory_of_a_model_that_is_cold_again_comes_back() -> None:
    pool = Pool([Spec("m")], limits=LIMITS, rules=Rules(release=ReleaseRule.WHEN_SEEN))
    pool.preload("m", 0.0)
    pool.ready("m", 1, 8 * GB, 4096, 1.0)
    pool.exited("m", 1, "SIGKILL", 2.0)
    pool.tick(2.0 + STRANDED_SECONDS)
    assert (state(pool), pool.state.ledger.stranded) == (State.COLD, 8 * GB)
    assert pool.memory.memory_seen(0, 20.0) == []
    assert (state(pool), pool.state.ledger.stranded) == (State.COLD, 0)
