"""What users of other servers complained about, a test each: of memory and scheduling here, of the
rest where their subject is."""

from __future__ import annotations

import ast

import pytest

from supervisor.scheduler.effects import EndLease, Grant, LogLine, Refuse, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import ReleaseRule, Rules, Spec
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.relief import EXIT_SECONDS
from tests.helpers.pools import GB, HOLD, ask, done, loaded, said, serve, small_machine, states
from tests.helpers.serving import ROOT

COMPLAINTS = (
    "ollama#17408",
    "llama-swap#946",
    "llama.cpp#28443",
    "llama.cpp#28698",
    "llama.cpp#25528",
    "llama.cpp#18921",
    "LM Studio#671",
    "omlx#1867",
    "llama-swap#612",
    "ollama#5642",
    "ollama#8006",
    "unsloth#9688",
    "sglang#25811",
    "vllm#48966",
    "hermes-agent#52261",
    "omlx#882",
    "ollama#17013",
    "omlx#1106",
    "llama-swap#1037",
    "omlx#2184",
)
"""The reports that we design against. A test that is named for one has it in its docstring."""


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_a_complaint_has_a_test(complaint: str) -> None:
    named = [
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        if complaint in (text := path.read_text())
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if complaint in (ast.get_docstring(node) or "")
    ]
    assert named


def test_an_evicted_model_is_not_resurrected_by_a_request() -> None:
    """ollama#17408: every load hung for 5.5 h, with green health."""
    pool = small_machine("a", "b")
    loaded(pool, "a")
    waiter, effects = pool.acquire("r", "b", HOLD, 10.0)
    assert done(effects) == [Stop("a", 1, kill=False)]
    late, effects = pool.acquire("r", "a", HOLD, 10.1)
    assert effects == []
    assert states(pool)["a"] is State.STOPPING
    assert pool.exited("a", 1, "exit status 0", 11.0) == [Spawn("b", 1)]
    assert pool.ready("b", 1, 8 * GB, 1, 12.0)[0] == Grant(waiter, "b", "b#1", 1, until=1)
    pool.release(waiter, 13.0)
    pool.exited("b", 1, "exit status 0", 14.0)
    assert pool.ready("a", 2, 8 * GB, 1, 15.0) == [Grant(late, "a", "a#2", 2, until=1)]


def test_a_ttl_unload_that_meets_a_request_wedges_nothing() -> None:
    """llama-swap#946: the group was wedged for ever."""
    pool = small_machine(Spec("a", estimate_bytes=8 * GB, ttl=30.0))
    loaded(pool, "a")
    assert pool.next_deadline() == 32.0
    assert done(pool.tick(32.0)) == [Stop("a", 1, kill=False)]
    lease, effects = pool.acquire("r", "a", HOLD, 32.0)
    assert effects == []
    assert pool.exited("a", 1, "exit status 0", 33.0) == [Spawn("a", 2)]
    assert pool.ready("a", 2, 8 * GB, 1, 34.0) == [Grant(lease, "a", "a#2", 2, until=1)]


def test_two_waiters_and_one_eviction_are_both_served() -> None:
    """llama.cpp#28443: the second was queued for ever."""
    pool = small_machine("a", "b", "c")
    loaded(pool, "a")
    second, third = ask(pool, "b", 10.0), ask(pool, "c", 10.5)
    assert pool.exited("a", 1, "exit status 0", 11.0) == [Spawn("b", 1)]
    pool.ready("b", 1, 8 * GB, 1, 12.0)
    assert done(pool.release(second, 13.0)) == [Stop("b", 1, kill=False)]
    assert pool.exited("b", 1, "exit status 0", 14.0) == [Spawn("c", 1)]
    assert pool.ready("c", 1, 8 * GB, 1, 15.0) == [Grant(third, "c", "c#1", 1, until=1)]


def test_a_model_just_loaded_serves_its_own_request_first() -> None:
    """llama.cpp#28698: it was evicted by the next in the queue before."""
    pool = small_machine("a", "b", rules=Rules(min_residency=0.0, max_wait=0.0))
    first = ask(pool, "a", 0.0)
    ask(pool, "b", 0.1)
    granted, *rest = pool.ready("a", 1, 8 * GB, 1, 1.0)
    assert granted == Grant(first, "a", "a#1", 1, until=1)
    assert done(rest) == []
    assert states(pool)["a"] is State.DRAINING
    assert done(pool.release(first, 9.0)) == [Stop("a", 1, kill=False)]


def test_a_loading_model_is_never_a_victim() -> None:
    """llama.cpp#25528"""
    pool = small_machine("a", "b", rules=Rules(min_residency=0.0, max_wait=1.0))
    pool.preload("a", 0.0)
    ask(pool, "b", 0.5)
    assert done(pool.tick(50.0)) == []
    assert states(pool)["a"] is State.LOADING


def test_a_dead_child_is_not_loaded() -> None:
    """llama.cpp#18921"""
    pool = small_machine("a")
    loaded(pool, "a")
    pool.exited("a", 1, "SIGKILL", 5.0)
    assert states(pool)["a"] is State.COLD
    assert pool.state.ledger.charged == 0
    assert pool.acquire("r", "a", HOLD, 6.0)[1] == [Spawn("a", 2)]


def test_an_eviction_lets_running_generations_end() -> None:
    """LM Studio#671: it killed them."""
    pool = small_machine("a", "b", rules=Rules(min_residency=0.0, max_wait=5.0))
    running = serve(pool, "a", 0.0)
    ask(pool, "b", 10.0)
    assert states(pool)["a"] is State.READY
    assert pool.next_deadline() == 15.0
    assert done(pool.tick(15.0)) == []
    assert states(pool)["a"] is State.DRAINING
    assert done(pool.release(running, 60.0)) == [Stop("a", 1, kill=False)]


def test_the_next_model_loads_after_the_idle_one_has_gone() -> None:
    """omlx#1867: it loaded before, into a swap storm."""
    pool = small_machine("a", "b")
    loaded(pool, "a")
    _, effects = pool.acquire("r", "b", HOLD, 10.0)
    assert done(effects) == [Stop("a", 1, kill=False)]
    assert done(pool.tick(11.0)) == []
    assert pool.state.ledger.charged == 8 * GB
    assert pool.exited("a", 1, "exit status 0", 12.0) == [Spawn("b", 1)]
    assert pool.state.ledger.charged == 8 * GB


def test_the_next_model_loads_after_the_memory_is_seen_to_be_back() -> None:
    """The same on macOS, where a reaped process's memory may still be wired."""
    rules = Rules(min_residency=0.0, release=ReleaseRule.WHEN_SEEN)
    pool = small_machine("a", "b", rules=rules)
    loaded(pool, "a")
    pool.memory.footprint("a", 1, 8 * GB, 3.0)
    ask(pool, "b", 10.0)
    assert pool.exited("a", 1, "exit status 0", 12.0) == []
    assert pool.memory.memory_seen(5 * GB, 12.1) == []
    assert (states(pool)["a"], pool.state.ledger.charged) == (State.RELEASING, 5 * GB)
    assert pool.memory.memory_seen(0, 12.4) == [Spawn("b", 1)]


def test_stranded_memory_stays_charged_and_blocks_only_what_it_must() -> None:
    """omlx#2184: 414 GiB stayed wired, and the restarts went on 233 times."""
    rules = Rules(min_residency=0.0, release=ReleaseRule.WHEN_SEEN)
    small = Spec("small", estimate_bytes=2 * GB)
    pool = small_machine("a", "b", small, rules=rules)
    loaded(pool, "a")
    pool.memory.footprint("a", 1, 8 * GB, 3.0)
    waiter = ask(pool, "b", 10.0, hold=100.0)
    pool.exited("a", 1, "SIGKILL", 12.0)
    pool.memory.memory_seen(7 * GB, 13.0)
    assert "left 7.0 GB behind" in said(pool.tick(22.0))
    assert (states(pool)["a"], pool.state.ledger.stranded) == (State.COLD, 7 * GB)
    assert pool.acquire("r", "small", HOLD, 23.0)[1] == [Spawn("small", 1)]
    pool.ready("small", 1, 2 * GB, 1, 24.0)
    (refusal,) = [e for e in pool.tick(110.0) if isinstance(e, Refuse)]
    assert (refusal.lease, refusal.error.code) == (waiter, "insufficient_memory_now")
    assert "reboot needed" in refusal.error.message


def test_agents_that_take_turns_do_not_thrash() -> None:
    """llama-swap#612: every request of one swapped out the other's model."""
    pool = small_machine("a", "b", rules=Rules())
    first = ask(pool, "a", 0.0)
    pool.ready("a", 1, 8 * GB, 1, 10.0)
    pool.release(first, 11.0)
    _, effects = pool.acquire("r", "b", HOLD, 12.0)
    assert done(effects) == []  # safe for 2 × 10 s from its load
    lease, effects = pool.acquire("r", "a", HOLD, 15.0)
    assert done(effects) == [Grant(lease, "a", "a#1", 1, until=1)]
    pool.release(lease, 16.0)
    assert pool.next_deadline() == 30.0
    assert done(pool.tick(30.0)) == [Stop("a", 1, kill=False)]


def test_a_client_that_leaves_cancels_no_load() -> None:
    """ollama#8006"""
    pool = small_machine("a")
    lease = ask(pool, "a", 0.0)
    assert pool.release(lease, 1.0) == []
    assert states(pool)["a"] is State.LOADING
    assert pool.ready("a", 1, 8 * GB, 1, 2.0) == []


def test_a_client_that_leaves_frees_its_place_in_the_queue() -> None:
    pool = small_machine(Spec("a", capacity=1, estimate_bytes=GB))
    lease = ask(pool, "a", 0.0)
    refused = pool.acquire("r", "a", HOLD, 0.1)[1]
    assert isinstance(refused[0], Refuse)
    pool.release(lease, 0.2)
    assert pool.acquire("r", "a", HOLD, 0.3)[1] == []


def test_a_dying_load_is_not_respawned_without_a_request() -> None:
    """unsloth#9688: unbounded respawn."""
    pool = small_machine("a")
    ask(pool, "a", 0.0)
    for generation in (1, 2):
        effects = pool.exited("a", generation, "SIGKILL", float(generation))
        assert [type(effect) for effect in effects] == [Refuse]
        assert pool.next_deadline() is None
        assert pool.acquire("r", "a", HOLD, generation + 0.5)[1] == [Spawn("a", generation + 1)]
    # Nor with one, for a while, once it has died three times.
    effects = pool.exited("a", 3, "SIGKILL", 3.0)
    assert [type(effect) for effect in effects] == [Refuse, LogLine]
    (refusal,) = pool.acquire("r", "a", HOLD, 3.5)[1]
    assert isinstance(refusal, Refuse)
    assert refusal.error.code == "model_unavailable"
    due = pool.next_deadline()
    assert due is not None
    assert [type(effect) for effect in pool.tick(due)] == [LogLine]
    assert pool.acquire("r", "a", HOLD, due)[1] == [Spawn("a", 4)]


def test_a_memory_error_is_no_context_overflow() -> None:
    """hermes-agent#52261: agents shortened their prompts."""
    pool = small_machine("a", "b")
    running, waiter = serve(pool, "a", 0.0), ask(pool, "b", 5.0, hold=2.0)
    (refusal,) = [e for e in pool.tick(7.0) if isinstance(e, Refuse)]
    assert (refusal.lease, refusal.error.code) == (waiter, "insufficient_memory_now")
    assert refusal.error.status == 503
    assert refusal.error.retry_after is not None
    assert "context" not in refusal.error.message
    assert "8.0 GB" in refusal.error.message
    assert "a#1" in refusal.error.message
    assert pool.release(running, 8.0) == []


def test_busy_is_a_typed_error() -> None:
    """llama-swap#1037: `error` was a bare string."""
    pool = small_machine("a", rules=Rules(max_requests=1))
    ask(pool, "a", 0.0)
    (refusal,) = pool.acquire("r", "a", HOLD, 0.1)[1]
    assert isinstance(refusal, Refuse)
    assert refusal.error.body()["error"]["code"] == "queue_full"
    assert 1 <= (refusal.error.retry_after or 0) <= 10


def test_a_model_that_can_never_fit_is_refused_at_once_with_the_figures() -> None:
    pool = small_machine(Spec("a", estimate_bytes=11 * GB))
    _, (refusal,) = pool.acquire("r", "a", HOLD, 0.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.error.status, refusal.error.code) == (400, "model_too_large")
    assert refusal.error.should_retry is False
    assert refusal.error.param == "model"
    for figure in ("11.0 GB", "10.0 GB"):
        assert figure in refusal.error.message


def test_an_emergency_with_everything_busy_ends_and_tells_why() -> None:
    pool = small_machine("a", "b", budget=20 * GB)
    running = serve(pool, "a", 0.0)
    loaded(pool, "b")
    effects = pool.memory.pressure(Level.CRITICAL, "63.5 of 64.0 GB", 10.0)
    assert Stop("b", 1, kill=False) in effects
    assert "63.5 of 64.0 GB" in said(effects)
    assert states(pool)["a"] is State.READY  # what goes before may be enough
    pool.memory.pressure(Level.CRITICAL, "63.5 of 64.0 GB", 10.0 + EXIT_SECONDS)
    waiter, held = ask(pool, "a", 15.0, hold=1.0), ask(pool, "b", 15.0)
    (refusal,) = [e for e in pool.tick(16.0) if isinstance(e, Refuse)]
    assert (refusal.lease, refusal.error.code) == (waiter, "memory_pressure")
    pool.exited("b", 1, "exit status 0", 16.5)
    ended, stop = pool.tick(25.0)
    assert isinstance(ended, EndLease)
    assert (ended.lease, ended.error.code) == (running, "memory_pressure")
    assert stop == Stop("a", 1, kill=False)
    pool.exited("a", 1, "exit status 0", 26.0)
    assert set(states(pool).values()) == {State.COLD}
    assert pool.memory.pressure(Level.NORMAL, "", 40.0)[-1] == Spawn("b", 2)
    assert pool.ready("b", 2, 8 * GB, 1, 41.0) == [Grant(held, "b", "b#2", 2, until=1)]


@pytest.mark.parametrize("others_idle", [True, False])
def test_a_wrong_estimate_is_made_good(others_idle: bool) -> None:
    """Idle models go; when that is not enough the new one does, and comes back with its size."""
    pool = small_machine("a", "b", size=5 * GB)
    first = serve(pool, "a", 0.0, size=5 * GB)
    if others_idle:
        pool.release(first, 2.0)
    lease = ask(pool, "b", 3.0)
    effects = pool.ready("b", 1, 6 * GB, 1, 4.0)
    assert "more than estimated" in said(effects)
    if others_idle:
        assert done(effects) == [Stop("a", 1, kill=False), Grant(lease, "b", "b#1", 1, until=1)]
        return
    assert done(effects) == [Stop("b", 1, kill=False)]
    assert pool.exited("b", 1, "exit status 0", 5.0) == []
    assert done(pool.release(first, 6.0)) == [Stop("a", 1, kill=False)]
    assert pool.exited("a", 1, "exit status 0", 7.0) == [Spawn("b", 2)]
    assert pool.state.ledger.of(("b", 2)) == 6 * GB
    assert pool.ready("b", 2, 6 * GB, 1, 8.0) == [Grant(lease, "b", "b#2", 2, until=1)]


def test_a_model_that_measurably_fits_alone_is_never_too_large() -> None:
    """Of the room for requests it gets what the budget leaves."""
    pool = small_machine(Spec("a", estimate_bytes=8 * GB, headroom_bytes=4 * GB), "b")
    lease = ask(pool, "a", 0.0)
    granted = pool.ready("a", 1, 9 * GB, 1, 1.0)
    assert granted == [Grant(lease, "a", "a#1", 1, until=1)]
    assert pool.state.ledger.charged == 10 * GB
    pool.exited("a", 1, "SIGKILL", 2.0)
    assert pool.acquire("r", "a", HOLD, 3.0)[1] == [Spawn("a", 2)]
    assert pool.state.ledger.charged == 10 * GB
    # An earlier run's measurement is treated alike.
    again = small_machine(Spec("a", estimate_bytes=8 * GB, headroom_bytes=4 * GB))
    again.recall("a", use_count=0, load_seconds=1.0, memory_bytes=9 * GB)
    assert again.acquire("r", "a", HOLD, 0.0)[1] == [Spawn("a", 1)]


def test_a_size_that_turns_out_impossible_is_told_as_such() -> None:
    pool = small_machine("a")
    lease = ask(pool, "a", 0.0)
    effects = done(pool.ready("a", 1, 11 * GB, 1, 1.0))
    (refusal,) = [effect for effect in effects if isinstance(effect, Refuse)]
    assert (refusal.lease, refusal.error.code) == (lease, "model_too_large")
    assert Stop("a", 1, kill=False) in effects
    assert "measured" in refusal.error.message
    pool.exited("a", 1, "exit status 0", 2.0)
    _, (again,) = pool.acquire("r", "a", HOLD, 3.0)
    assert isinstance(again, Refuse)
    assert again.error.code == "model_too_large"
