"""supervisor.pool: who gets which worker, step by step and under any interleaving."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from supervisor.diagnosis import Cause, Crash, Diagnosis
from supervisor.entry import Rules, Standing
from supervisor.errors import BulkheadError, ModelNotFound
from supervisor.lifecycle import HAS_PROCESS, State
from supervisor.pool import Bury, Effect, Grant, Limits, Pool, Refuse, Rules, Spawn, Spec, Stop

LIMITS = Limits(load_stall=10.0, drain=20.0, stop=3.0, stop_per_gigabyte=0.5)
HOLD = 100.0
WITH_PROCESS = sorted(HAS_PROCESS)


def make_pool(*specs: Spec, default_model: str = "") -> Pool:
    return Pool(specs or (Spec("m"),), default_model=default_model, limits=LIMITS)


def acquire(pool: Pool, now: float = 0.0, *, model: str = "m", hold: float = HOLD) -> int:
    """A lease's id, for a request of which nothing but waiting or a spawn is expected."""
    lease, effects = pool.acquire("r", model, hold, now)
    assert all(isinstance(effect, Spawn | Grant) for effect in effects)
    return lease


def loading_pool() -> Pool:
    pool = make_pool()
    assert pool.preload("m", 0.0) == [Spawn("m", 1)]
    pool.started("m", 1, 1234)
    return pool


def ready_pool(memory_bytes: int = 0) -> Pool:
    pool = loading_pool()
    assert pool.ready("m", 1, memory_bytes, 4096, 1.0) == []
    return pool


def state(pool: Pool, model: str = "m") -> State:
    return pool.entries[model].state


def in_state(wanted: State) -> Pool:
    """A pool whose model `m`, generation 1, is in that state, without any lease."""
    pool = make_pool()
    if wanted is State.COLD:
        return pool
    pool = loading_pool()
    if wanted is State.LOADING:
        return pool
    if wanted is State.FAILED:
        pool.load_failed("m", 1, "no such file", 1.0)
        pool.exited("m", 1, "exit status 0", 2.0)
    elif wanted is State.DRAINING:
        pool.ready("m", 1, 0, 4096, 1.0)
        acquire(pool, 1.0)
        pool.shutdown(1.0)
    else:
        pool.ready("m", 1, 0, 4096, 1.0)
        if wanted is State.STOPPING:
            pool.broken("m", 1, "it stalled", 1.0)
    assert state(pool) is wanted
    return pool


@dataclass(frozen=True)
class Told:
    """Refuse and Bury effects, comparable: errors have no equality of their own."""

    kind: type[Effect]
    lease: int
    code: str


def told(effects: Iterable[Effect]) -> list[Told]:
    return [
        Told(type(effect), effect.lease, effect.error.code)
        for effect in effects
        if isinstance(effect, Refuse | Bury)
    ]


def error_of(effects: Iterable[Effect]) -> BulkheadError:
    (error,) = [effect.error for effect in effects if isinstance(effect, Refuse | Bury)]
    return error


# ── names ────────────────────────────────────────────────────────────────────────────────────────

NAMED = (
    Spec("fast", aliases=("small", "qwen")),
    Spec("mlx-community/Qwen3-4B-4bit", aliases=("qwen:latest",)),
    Spec("llama3:8b"),
    Spec("phi:latest"),
)


@pytest.mark.parametrize(
    ("requested", "name"),
    [
        ("fast", "fast"),
        ("small", "fast"),
        ("fast:latest", "fast"),
        ("small:latest", "fast"),
        ("qwen", "fast"),
        ("qwen:latest", "mlx-community/Qwen3-4B-4bit"),  # exact wins over dropping the suffix
        ("mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-4B-4bit"),
        ("mlx-community/Qwen3-4B-4bit:latest", "mlx-community/Qwen3-4B-4bit"),
        ("llama3:8b", "llama3:8b"),
        ("llama3:8b:latest", "llama3:8b"),
        ("phi:latest", "phi:latest"),
        ("", "llama3:8b"),
        ("default_model", "llama3:8b"),
    ],
)
def test_a_name_means_its_model(requested: str, name: str) -> None:
    assert make_pool(*NAMED, default_model="llama3:8b").resolve(requested).spec.name == name


@pytest.mark.parametrize(
    "requested", ["llama3", "Fast", "fast ", "fast:8b", "phi", ":latest", "latest", "qwen3/4b"]
)
def test_an_unknown_name_is_refused_as_such(requested: str) -> None:
    pool = make_pool(*NAMED, default_model="fast")
    with pytest.raises(ModelNotFound) as caught:
        pool.resolve(requested)
    assert caught.value.param == "model"
    assert caught.value.message.startswith(
        f"The model `{requested}` does not exist or you do not have access to it."
    )
    lease, effects = pool.acquire("r", requested, HOLD, 0.0)
    assert told(effects) == [Told(Refuse, lease, "model_not_found")]
    assert pool.release(lease, 1.0) == []


@pytest.mark.parametrize("requested", ["", "default_model"])
def test_without_a_default_a_request_must_name_its_model(requested: str) -> None:
    with pytest.raises(ModelNotFound, match="default_model"):
        make_pool(*NAMED).resolve(requested)


def test_a_default_may_be_an_alias_and_a_model_may_be_called_default_model() -> None:
    assert make_pool(*NAMED, default_model="small").resolve("").spec.name == "fast"
    pool = make_pool(Spec("a"), Spec("b", aliases=("default_model",)), default_model="a")
    assert pool.resolve("default_model").spec.name == "b"
    assert pool.resolve("").spec.name == "a"


# ── (1) refuse ───────────────────────────────────────────────────────────────────────────────────


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


# ── (2), (3), (4) grant, wait, load ──────────────────────────────────────────────────────────────


def test_a_ready_model_grants_at_once() -> None:
    pool = ready_pool()
    lease, effects = pool.acquire("r", "m", HOLD, 2.0)
    assert effects == [Grant(lease, "m", "m#1", 1)]


def test_everyone_waits_for_one_load_and_is_granted_in_order() -> None:
    pool = make_pool(Spec("m", aliases=("alias",)))
    first, effects = pool.acquire("r1", "m", HOLD, 0.0)
    assert effects == [Spawn("m", 1)]
    later = [pool.acquire(f"r{i}", name, HOLD, 1.0) for i, name in enumerate(["m", "alias", "m"])]
    assert [effects for _, effects in later] == [[], [], []]
    leases = [first, *(lease for lease, _ in later)]
    assert len(set(leases)) == 4
    assert pool.ready("m", 1, 7, 4096, 2.0) == [Grant(lease, "m", "m#1", 1) for lease in leases]
    assert pool.entries["m"].memory_bytes == 7
    assert pool.entries["m"].context == 4096


@pytest.mark.parametrize("wanted", [State.LOADING, State.STOPPING])
def test_whoever_comes_while_a_worker_is_on_its_way_waits(wanted: State) -> None:
    pool = in_state(wanted)
    _, effects = pool.acquire("r", "m", HOLD, 2.0)
    assert effects == []
    assert len(pool.entries["m"].waiting) == 1


def test_models_do_not_wait_for_each_other() -> None:
    pool = make_pool(Spec("a"), Spec("b"))
    assert pool.acquire("r", "a", HOLD, 0.0)[1] == [Spawn("a", 1)]
    lease, effects = pool.acquire("r", "b", HOLD, 0.0)
    assert effects == [Spawn("b", 1)]
    assert pool.ready("b", 1, 0, 1, 1.0) == [Grant(lease, "b", "b#1", 1)]
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
    assert pool.entries["m"].deaths == 1


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
    assert pool.entries["m"].deaths == 0


def test_changed_files_let_a_failed_model_be_tried_again() -> None:
    pool = in_state(State.FAILED)
    pool.changed("m")
    assert state(pool) is State.COLD
    assert pool.entries["m"].reason == ""
    assert pool.acquire("r", "m", HOLD, 3.0)[1] == [Spawn("m", 2)]


def test_an_earlier_failure_is_forgotten_once_the_model_has_loaded() -> None:
    pool = in_state(State.FAILED)
    pool.changed("m")
    lease = acquire(pool, 3.0)
    pool.ready("m", 2, 0, 1, 4.0)
    effects = pool.exited("m", 2, "SIGABRT", 5.0)
    assert told(effects) == [Told(Bury, lease, "worker_crashed")]
    assert state(pool) is State.COLD
    assert pool.entries["m"].deaths == 1


def test_an_earlier_cause_is_forgotten_with_its_worker() -> None:
    pool = ready_pool()
    pool.broken("m", 1, "it closed its channel", 2.0)
    pool.exited("m", 1, "SIGKILL", 3.0)
    assert pool.entries["m"].reason == ""
    acquire(pool, 4.0)
    assert "(SIGABRT)" in error_of(pool.exited("m", 2, "SIGABRT", 5.0)).message


@pytest.mark.parametrize("wanted", [*WITH_PROCESS, State.COLD])
def test_changed_files_mean_nothing_to_a_model_that_did_not_fail(wanted: State) -> None:
    pool = in_state(wanted)
    pool.changed("m")
    assert state(pool) is wanted


@pytest.mark.parametrize("wanted", [*WITH_PROCESS, State.FAILED])
def test_a_preload_is_nothing_where_the_model_is_not_cold(wanted: State) -> None:
    pool = in_state(wanted)
    assert pool.preload("m", 2.0) == []
    assert state(pool) is wanted


def test_a_preload_while_shutting_down_is_nothing() -> None:
    pool = make_pool()
    pool.shutdown(0.0)
    assert pool.preload("m", 1.0) == []


# ── (5) death ────────────────────────────────────────────────────────────────────────────────────


def test_each_lease_of_a_dead_worker_dies_exactly_once() -> None:
    pool = ready_pool()
    leases = [acquire(pool, 2.0) for _ in range(3)]
    effects = pool.exited("m", 1, "SIGABRT", 3.0)
    assert told(effects) == [Told(Bury, lease, "worker_crashed") for lease in leases]
    assert len(effects) == 3
    assert state(pool) is State.COLD
    assert pool.exited("m", 1, "SIGABRT", 3.0) == []
    assert [pool.release(lease, 4.0) for lease in leases] == [[], [], []]
    assert [pool.fault(lease, "torn", 4.0) for lease in leases] == [[], [], []]
    assert pool.entries["m"].deaths == 1
    assert pool.entries["m"].pid is None
    assert pool.entries["m"].memory_bytes == 0
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
    crash = Crash("some-id", Diagnosis(cause, "a line of the log"))
    message = error_of(getattr(pool, event)("m", 1, "SIGABRT", 10.0, crash)).message
    assert f"m#1 died (SIGABRT: {told}" in message
    assert what_to_do in message
    assert message.endswith(" `bulkhead crashes some-id` has the report.")
    assert "a line" not in message


@pytest.mark.parametrize(
    ("cause", "standing"),
    [(Cause.GPU_VICTIM, Standing.CLEAR), (Cause.GPU_HANG, Standing.SUSPECT)],
)
def test_nobody_is_suspected_of_what_came_from_outside(cause: Cause, standing: Standing) -> None:
    pool = Pool([Spec("m")], limits=LIMITS, rules=Rules(recovery="resume"))
    lease = acquire(pool)
    pool.ready("m", 1, 0, 1, 7.5)
    pool.exited("m", 1, "SIGABRT", 10.0, Crash("some-id", Diagnosis(cause)))
    pool.returned(lease, 0, 10.0)
    assert pool.entries["m"].waiting[lease].standing is standing


def test_what_we_killed_says_why_in_our_words() -> None:
    pool = make_pool()
    acquire(pool)
    pool.ready("m", 1, 0, 1, 7.5)
    pool.broken("m", 1, "bad message: torn", 9.0)
    crash = Crash("some-id", Diagnosis(Cause.PROTOCOL))
    message = error_of(pool.exited("m", 1, "SIGKILL", 10.0, crash)).message
    assert "m#1 died (SIGKILL; bad message: torn) during this request" in message
    assert "some-id" in message


def test_a_clean_exit_that_nobody_asked_for_is_a_crash() -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    assert told(pool.exited("m", 1, "exit status 0", 3.0)) == [Told(Bury, lease, "worker_crashed")]
    assert pool.entries["m"].deaths == 1


@pytest.mark.parametrize("wanted", [State.READY, State.DRAINING])
def test_who_is_in_a_dying_worker_learns_it_before_its_exit(wanted: State) -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    if wanted is State.DRAINING:
        pool.shutdown(2.5)
    effects = pool.dying("m", 1, "SIGABRT", 3.0)
    assert told(effects) == [Told(Bury, lease, "worker_crashed")]
    assert "(SIGABRT) during this request" in error_of(effects).message
    assert state(pool) is State.STOPPING
    assert pool.dying("m", 1, "SIGABRT", 3.0) == []
    assert pool.exited("m", 1, "SIGABRT", 4.0) == []
    assert pool.entries["m"].deaths == 1


def test_who_comes_while_a_worker_dies_waits_for_the_next() -> None:
    pool = ready_pool()
    pool.dying("m", 1, "SIGSEGV", 3.0)
    late = acquire(pool, 3.5)
    assert pool.exited("m", 1, "SIGSEGV", 4.0) == [Spawn("m", 2)]
    assert pool.ready("m", 2, 0, 1, 6.0) == [Grant(late, "m", "m#2", 2)]


def test_who_waits_for_a_load_that_dies_is_refused_at_once() -> None:
    pool = loading_pool()
    lease = acquire(pool, 0.5)
    assert told(pool.dying("m", 1, "SIGBUS", 1.0)) == [Told(Refuse, lease, "worker_crashed")]


def test_a_dying_worker_that_does_not_die_is_killed() -> None:
    pool = ready_pool()
    pool.dying("m", 1, "SIGABRT", 3.0)
    due = pool.next_deadline()
    assert due is not None
    assert pool.tick(due) == [Stop("m", 1, kill=True)]


def test_a_killed_worker_buries_its_leases_at_its_exit_and_serves_the_late_by_a_new_one() -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    assert pool.broken("m", 1, "its channel closed", 3.0) == [Stop("m", 1, kill=True)]
    late = acquire(pool, 4.0)
    effects = pool.exited("m", 1, "SIGKILL", 5.0)
    assert told(effects) == [Told(Bury, lease, "worker_crashed")]
    assert "its channel closed" in effects[0].error.message if isinstance(effects[0], Bury) else ""
    assert effects[-1] == Spawn("m", 2)
    assert pool.ready("m", 2, 0, 1, 6.0) == [Grant(late, "m", "m#2", 2)]


def test_a_fault_kills_the_worker_and_a_second_one_is_harmless() -> None:
    pool = ready_pool()
    first, second = acquire(pool, 2.0), acquire(pool, 2.0)
    assert pool.fault(first, "a torn frame", 3.0) == [Stop("m", 1, kill=True)]
    assert state(pool) is State.STOPPING
    assert pool.fault(second, "another", 3.0) in ([], [Stop("m", 1, kill=True)])
    effects = pool.exited("m", 1, "SIGKILL", 4.0)
    assert told(effects) == [
        Told(Bury, first, "worker_crashed"),
        Told(Bury, second, "worker_crashed"),
    ]
    assert pool.entries["m"].deaths == 1


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
    assert told(pool.exited("m", 1, "SIGSEGV", 4.0)) == [Told(Bury, lease, "worker_crashed")]
    assert pool.entries["m"].deaths == 1
    assert pool.stopped


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
    assert pool.entries["m"].pid == 1234
    assert pool.next_deadline() == deadline


@pytest.mark.parametrize("wanted", [State.COLD, State.FAILED])
def test_words_about_a_process_that_is_gone_are_dropped(wanted: State) -> None:
    pool = in_state(wanted)
    generation = pool.entries["m"].generation
    assert pool.ready("m", generation, 5, 5, 2.0) == []
    assert pool.exited("m", generation, "SIGKILL", 2.0) == []
    assert pool.broken("m", generation, "no", 2.0) == []
    assert state(pool) is wanted
    assert pool.entries["m"].deaths == 0


@pytest.mark.parametrize("wanted", [State.READY, State.DRAINING, State.STOPPING])
def test_ready_and_load_failed_count_while_loading_alone(wanted: State) -> None:
    pool = in_state(wanted)
    assert pool.ready("m", 1, 5, 5, 2.0) == []
    assert pool.load_failed("m", 1, "no", 2.0) == []
    assert state(pool) is wanted


# ── (6) leaving ──────────────────────────────────────────────────────────────────────────────────


def test_a_waiter_that_leaves_cancels_nothing() -> None:
    pool = make_pool()
    leaver = acquire(pool)
    assert pool.release(leaver, 1.0) == []
    assert state(pool) is State.LOADING
    late = acquire(pool, 2.0)
    assert pool.ready("m", 1, 0, 1, 3.0) == [Grant(late, "m", "m#1", 1)]


def test_releasing_twice_is_nothing() -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    assert pool.release(lease, 3.0) == []
    assert pool.release(lease, 4.0) == []
    assert pool.entries["m"].granted == {}
    assert pool.entries["m"].last_used == 3.0


def test_uses_are_counted_and_refusals_are_not() -> None:
    pool = make_pool(Spec("m", capacity=1))
    acquire(pool, 5.0)
    pool.acquire("r", "m", HOLD, 6.0)
    assert pool.entries["m"].use_count == 1
    assert pool.entries["m"].last_used == 5.0


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
    assert pool.ready("m", 1, 0, 1, 5.0) == [Grant(long, "m", "m#1", 1)]
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
    assert stop == Stop("m", 1, kill=True)
    assert pool.next_deadline() is None
    late = acquire(pool, 17.0)
    assert pool.exited("m", 1, "SIGKILL", 18.0) == [Spawn("m", 2)]
    assert pool.entries["m"].deaths == 1
    assert pool.ready("m", 2, 0, 1, 19.0) == [Grant(late, "m", "m#2", 2)]


def test_progress_is_no_reason_to_hurry_a_ready_worker() -> None:
    pool = ready_pool()
    pool.loading("m", 1, 5.0)
    assert pool.next_deadline() is None


def test_a_worker_that_ignores_sigterm_is_killed_later_the_larger_it_is() -> None:
    pool = ready_pool(memory_bytes=8 * 10**9)
    assert pool.shutdown(100.0) == [Stop("m", 1, kill=False)]
    assert pool.next_deadline() == 107.0
    assert pool.tick(106.9) == []
    assert pool.tick(107.0) == [Stop("m", 1, kill=True)]
    assert pool.next_deadline() is None
    assert pool.tick(1000.0) == []


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_without_processes_is_stopped_at_once() -> None:
    pool = make_pool()
    assert pool.shutdown(0.0) == []
    assert pool.stopped


def test_shutdown_stops_idle_workers_and_loads_and_refuses_waiters() -> None:
    pool = make_pool(Spec("idle"), Spec("loading"), Spec("cold"))
    pool.preload("idle", 0.0)
    pool.ready("idle", 1, 0, 1, 1.0)
    lease = acquire(pool, 1.0, model="loading")
    effects = pool.shutdown(2.0)
    assert told(effects) == [Told(Refuse, lease, "shutting_down")]
    stops = [effect for effect in effects if isinstance(effect, Stop)]
    assert stops == [Stop("idle", 1, kill=False), Stop("loading", 1, kill=False)]
    stopped = [pool.stopped]
    for model in ("idle", "loading"):
        assert pool.exited(model, 1, "exit status 0", 3.0) == []
        stopped.append(pool.stopped)
    assert stopped == [False, False, True]
    assert [entry.deaths for entry in pool.entries.values()] == [0, 0, 0]


def test_shutdown_lets_running_requests_finish() -> None:
    pool = ready_pool()
    first, second = acquire(pool, 2.0), acquire(pool, 2.0)
    assert pool.shutdown(3.0) == []
    assert state(pool) is State.DRAINING
    assert pool.next_deadline() == 23.0
    assert pool.release(first, 4.0) == []
    assert pool.release(second, 5.0) == [Stop("m", 1, kill=False)]
    assert pool.exited("m", 1, "exit status 0", 6.0) == []
    assert pool.stopped
    assert pool.entries["m"].deaths == 0


@pytest.mark.parametrize("again", [False, True])
def test_the_drain_deadline_or_a_second_shutdown_cuts_what_still_runs(again: bool) -> None:
    pool = ready_pool()
    lease = acquire(pool, 2.0)
    pool.shutdown(3.0)
    assert pool.tick(22.9) == []
    *buried, stop = pool.shutdown(22.9) if again else pool.tick(23.0)
    assert told(buried) == [Told(Bury, lease, "shutting_down")]
    assert stop == Stop("m", 1, kill=False)
    assert pool.release(lease, 24.0) == []
    assert pool.next_deadline() == (25.9 if again else 26.0)
    assert pool.exited("m", 1, "exit status 0", 25.0) == []
    assert pool.stopped


def test_nobody_is_spawned_for_after_shutdown() -> None:
    pool = in_state(State.STOPPING)
    lease = acquire(pool, 2.0)
    assert told(pool.shutdown(3.0)) == [Told(Refuse, lease, "shutting_down")]
    assert pool.exited("m", 1, "SIGKILL", 4.0) == []
    assert pool.stopped


# ── any interleaving ─────────────────────────────────────────────────────────────────────────────

CAPACITIES = {"a": 3, "b": 2}
NAMES = ["a", "alias", "b", "b:latest", "unknown", ""]
models = st.sampled_from(sorted(CAPACITIES))
spans = st.floats(0.0, 40.0)


@dataclass
class Request:
    """What the machine was told about one lease."""

    deadline: float
    status: str = "waiting"
    released: bool = False


class PoolMachine(RuleBasedStateMachine):
    """Posts events in any order and checks every effect against what was told before."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(
            [Spec("a", ("alias",), CAPACITIES["a"]), Spec("b", (), CAPACITIES["b"])],
            default_model="a",
            limits=LIMITS,
            rules=Rules(max_restarts=10**9),
        )
        self.now = 0.0
        self.requests: dict[int, Request] = {}
        self.processes: dict[str, int] = {}
        """The generation of each model's process, as Spawn effects and exits have it."""
        self.born: dict[str, int] = dict.fromkeys(CAPACITIES, 0)
        self.ready_ones: set[tuple[str, int]] = set()
        self.killed: set[tuple[str, int]] = set()

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Spawn(model, generation):
                    assert model not in self.processes
                    assert generation > self.born[model]
                    assert not self.pool.shutting_down
                    self.processes[model] = self.born[model] = generation
                case Stop(model, generation, kill):
                    assert self.processes.get(model) == generation
                    if kill:
                        self.killed.add((model, generation))
                case Grant(lease, model, worker, generation):
                    assert self.processes.get(model) == generation
                    assert (model, generation) in self.ready_ones
                    assert (model, generation) not in self.killed
                    assert worker == f"{model}#{generation}"
                    self.answer(lease, "waiting", "granted")
                case Refuse(lease, error):
                    assert isinstance(error, BulkheadError)
                    self.answer(lease, "waiting", "ended")
                case Bury(lease, error):
                    assert isinstance(error, BulkheadError)
                    self.answer(lease, "granted", "ended")

    def answer(self, lease: int, before: str, after: str) -> None:
        request = self.requests[lease]
        assert not request.released
        assert request.status == before
        request.status = after

    # ── requests ──

    @rule(name=st.sampled_from(NAMES), hold=spans)
    def acquire(self, name: str, hold: float) -> None:
        lease, effects = self.pool.acquire("r", name, hold, self.now)
        assert lease not in self.requests
        self.requests[lease] = Request(self.now + hold)
        self.perform(effects)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.requests)))
        self.requests[lease].released = True
        self.perform(self.pool.release(lease, self.now))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def fault(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.requests)))
        effects = self.pool.fault(lease, "a torn frame", self.now)
        request = self.requests[lease]
        if request.status != "granted" or request.released:
            assert effects == []
        self.perform(effects)

    # ── workers ──

    def of_process(self, data: st.DataObject) -> tuple[str, int]:
        return data.draw(st.sampled_from(sorted(self.processes.items())))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def started(self, data: st.DataObject) -> None:
        self.pool.started(*self.of_process(data), 1234)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def loading(self, data: st.DataObject) -> None:
        self.pool.loading(*self.of_process(data), self.now)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), size=st.integers(0, 10**11))
    def ready(self, data: st.DataObject, size: int) -> None:
        process = self.of_process(data)
        self.ready_ones.add(process)
        self.perform(self.pool.ready(*process, size, 4096, self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def load_failed(self, data: st.DataObject) -> None:
        self.perform(self.pool.load_failed(*self.of_process(data), "no such file", self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def broken(self, data: st.DataObject) -> None:
        self.perform(self.pool.broken(*self.of_process(data), "it stalled", self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def dying(self, data: st.DataObject) -> None:
        self.perform(self.pool.dying(*self.of_process(data), "SIGABRT", self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def exited(self, data: st.DataObject) -> None:
        model, generation = self.of_process(data)
        del self.processes[model]
        self.perform(self.pool.exited(model, generation, "SIGABRT", self.now))

    @rule(model=models, offset=st.sampled_from([-1, 1, 5]))
    def words_about_another_generation(self, model: str, offset: int) -> None:
        generation = self.pool.entries[model].generation + offset
        before = self.pool.entries[model].state
        events: list[Callable[[], list[Effect]]] = [
            lambda: self.pool.ready(model, generation, 1, 1, self.now),
            lambda: self.pool.load_failed(model, generation, "no", self.now),
            lambda: self.pool.broken(model, generation, "no", self.now),
            lambda: self.pool.dying(model, generation, "SIGABRT", self.now),
            lambda: self.pool.exited(model, generation, "SIGKILL", self.now),
        ]
        for event in events:
            assert event() == []
        assert self.pool.entries[model].state is before

    # ── the rest ──

    @rule(model=models)
    def preload(self, model: str) -> None:
        self.perform(self.pool.preload(model, self.now))

    @rule(model=models)
    def changed(self, model: str) -> None:
        self.pool.changed(model)

    @rule(span=spans)
    def tick(self, span: float) -> None:
        self.now += span
        self.perform(self.pool.tick(self.now))
        due = self.pool.next_deadline()
        assert due is None or due > self.now
        assert all(
            request.deadline > self.now
            for request in self.requests.values()
            if request.status == "waiting" and not request.released
        )

    @rule()
    def tick_at_the_deadline(self) -> None:
        due = self.pool.next_deadline()
        if due is not None:
            self.tick(max(0.0, due - self.now))

    @rule(sure=st.integers(0, 4))
    def shutdown(self, sure: int) -> None:
        if sure == 4:  # rarely, since it ends everything interesting
            self.perform(self.pool.shutdown(self.now))

    # ── what always holds ──

    @invariant()
    def the_pool_counts_as_we_do(self) -> None:
        waiting = {lease for entry in self.pool.entries.values() for lease in entry.waiting}
        granted = {lease for entry in self.pool.entries.values() for lease in entry.granted}
        open_ones = {
            status: {
                lease
                for lease, request in self.requests.items()
                if request.status == status and not request.released
            }
            for status in ("waiting", "granted")
        }
        assert waiting == open_ones["waiting"]
        assert granted == open_ones["granted"]

    @invariant()
    def a_process_exists_when_the_state_says_so(self) -> None:
        alive = {name for name, entry in self.pool.entries.items() if entry.state in HAS_PROCESS}
        assert alive == set(self.processes)
        assert self.pool.stopped == (not alive)

    @invariant()
    def only_lasting_states_are_seen(self) -> None:
        for entry in self.pool.entries.values():
            assert entry.state not in (State.RELEASING, State.CRASHED)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        for name, entry in self.pool.entries.items():
            assert len(entry.waiting) + len(entry.granted) <= CAPACITIES[name]
            if entry.waiting:
                assert entry.state in (State.LOADING, State.STOPPING)
                assert not self.pool.shutting_down
            if entry.granted:
                assert entry.state in (State.READY, State.DRAINING, State.STOPPING)

    @invariant()
    def every_passing_state_has_an_end(self) -> None:
        for name, entry in self.pool.entries.items():
            if entry.state in (State.LOADING, State.DRAINING):
                assert entry.deadline is not None
            if entry.state is State.DRAINING:
                assert entry.granted
            if entry.state is State.STOPPING and entry.deadline is None:
                assert (name, entry.generation) in self.killed
        due = self.pool.next_deadline()
        for request in self.requests.values():
            if request.status == "waiting" and not request.released:
                assert due is not None
                assert due <= request.deadline

    def teardown(self) -> None:
        """A shutdown, asked for twice, ends every request and every process."""
        self.perform(self.pool.shutdown(self.now))
        self.perform(self.pool.shutdown(self.now))
        for model, generation in sorted(self.processes.items()):
            del self.processes[model]
            self.perform(self.pool.exited(model, generation, "exit status 0", self.now))
        assert not self.processes
        assert self.pool.stopped
        assert self.pool.next_deadline() is None
        assert all(
            request.released or request.status == "ended" for request in self.requests.values()
        )


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=50)
