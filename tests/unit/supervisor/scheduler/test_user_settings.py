"""Every lever that users have, as the scheduler and `/health` show it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from supervisor.api.health import render_health
from supervisor.machine.readers import MachineMemory
from supervisor.scheduler.effects import Effect, Grant, Loaded, LogLine, Refuse, Shrink, Spawn, Stop
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Limits, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from tests.helpers.pools import GB, ask, done, loaded, said, serve, small_machine, states

CODER, PHI, DEEPSEEK = "qwen2.5-coder-32b", "phi3.5-mini-4k", "deepseek-r1-70b"
USES = {CODER: 50, PHI: 5, DEEPSEEK: 2}
LOADS = {CODER: 25.3, PHI: 8.2, DEEPSEEK: 90.0}
SIZES = {CODER: 20 * GB, PHI: 3 * GB, DEEPSEEK: 42 * GB}


def used_pool(policy: str = "use_count", keep: int = 1) -> Pool:
    """Three models from a user's account: loaded, and used 50, 5 and 2 times."""
    rules = Rules(policy=policy, keep=keep)  # type: ignore[arg-type]
    specs = [Spec(name, estimate_bytes=size) for name, size in SIZES.items()]
    pool = Pool(specs, rules=rules, budget=128 * GB)
    now = 0.0
    for name, uses in USES.items():
        pool.preload(name, now)
        now += LOADS[name]
        pool.ready(name, 1, SIZES[name], 4096, now)
        for _ in range(uses):
            pool.release(ask(pool, name, now), now + 1.0)
            now += 1.0
    return pool


def health(pool: Pool) -> dict[str, Any]:
    body = render_health(
        pool.state, dict.fromkeys(SIZES, "org/repo"), MachineMemory(), "off", 0.0, "1"
    )
    parsed: dict[str, Any] = json.loads(body)
    return parsed


# ── eviction and cleanup ──────────────────────────────────────────────────────────────────────────


def test_jq_cached_models() -> None:
    """curl … | jq '.cached_models', of `/` and of `/health`: the same object."""
    cached = {model["name"]: model for model in health(used_pool())["cached_models"]}
    assert set(cached) == set(USES)
    for name, model in cached.items():
        assert model["use_count"] == USES[name]
        assert model["load_time_seconds"] == LOADS[name]
        assert model["last_used"] is not None


def test_jq_cached_models_sorted_by_use_count_reversed() -> None:
    """curl … | jq '.cached_models | sort_by(.use_count) | reverse'"""
    cached = health(used_pool())["cached_models"]
    ordered = sorted(cached, key=lambda model: model["use_count"])[::-1]
    assert [model["name"] for model in ordered] == [CODER, PHI, DEEPSEEK]


@pytest.mark.parametrize("policy", ["use_count", "gdsf"])
def test_scenario_1_a_normal_cleanup_keeps_the_most_used(policy: str) -> None:
    pool = used_pool(policy)
    effects = pool.memory.pressure(Level.WARN, "111.0 of 128.0 GB RAM in use (86.7%)", 1000.0)
    assert {effect.model for effect in effects if isinstance(effect, Stop)} == {PHI, DEEPSEEK}
    assert states(pool)[CODER] is State.READY
    assert "86.7%" in said(effects)
    lease, effects = pool.acquire("r", CODER, 60.0, 1001.0)
    assert effects == [Grant(lease, CODER, f"{CODER}#1", 1, until=1)]


def test_scenario_2_an_emergency_unloads_all() -> None:
    pool = used_pool()
    effects = pool.memory.pressure(Level.CRITICAL, "126.0 of 128.0 GB RAM in use (98.4%)", 1000.0)
    assert {effect.model for effect in effects if isinstance(effect, Stop)} == set(USES)
    for name in USES:
        pool.exited(name, 1, "exit status 0", 1001.0)
    assert health(pool)["cached_models"] == []
    assert pool.state.ledger.charged == 0


@pytest.mark.parametrize(("keep", "gone"), [(0, 3), (2, 1), (3, 0)])
def test_keep_is_what_a_cleanup_leaves(keep: int, gone: int) -> None:
    effects = used_pool(keep=keep).memory.pressure(Level.WARN, "", 1000.0)
    assert sum(isinstance(effect, Stop) for effect in effects) == gone


def test_a_load_in_the_background_disturbs_nobody() -> None:
    """Another model generates meanwhile."""
    pool = small_machine("a", "b", budget=20 * GB)
    running = serve(pool, "a", 0.0)
    assert pool.acquire("r", "b", 60.0, 5.0)[1] == [Spawn("b", 1)]
    assert states(pool)["a"] is State.READY
    assert running in pool.models["a"].granted


def test_preloads_take_what_fits_and_evict_nobody() -> None:
    pool = small_machine("a", "b", "c", budget=20 * GB)
    assert [done(pool.preload(name, 0.0)) for name in "abc"] == [
        [Spawn("a", 1)],
        [Spawn("b", 1)],
        [],
    ]
    pool.ready("a", 1, 8 * GB, 1, 1.0)
    pool.ready("b", 1, 8 * GB, 1, 1.0)
    assert "c is not preloaded" in said(pool.tick(pool.state.limits.preload))
    assert set(states(pool).values()) == {State.READY, State.COLD}


@pytest.mark.parametrize("how", ["no such file", "SIGKILL"])
def test_a_preload_that_fails_is_a_warning(how: str) -> None:
    pool = small_machine("a")
    pool.preload("a", 0.0)
    effects = [] if how == "SIGKILL" else pool.load_failed("a", 1, how, 1.0)
    effects += pool.exited("a", 1, how, 2.0)
    (warning,) = [effect for effect in effects if isinstance(effect, LogLine)]
    assert warning.level == logging.WARNING
    assert warning.text.startswith("a is not preloaded: ")
    assert how in warning.text
    assert pool.next_deadline() is None  # it is not tried again


def test_a_preload_above_the_budget_is_a_warning() -> None:
    pool = small_machine("a", budget=GB)
    assert "a is not preloaded: " in said(pool.preload("a", 0.0))
    assert states(pool)["a"] is State.COLD


# ── limits, pins and times to live ───────────────────────────────────────────────────────────────


def test_max_loaded_unloads_the_least_recently_used_before_the_load() -> None:
    """MLX_MAX_CACHED_MODELS=2"""
    rules = Rules(policy="lru", max_loaded=2, min_residency=0.0)
    pool = small_machine("a", "b", "c", budget=100 * GB, rules=rules)
    loaded(pool, "a", now=0.0)
    loaded(pool, "b", now=10.0)
    _, effects = pool.acquire("r", "c", 60.0, 20.0)
    assert done(effects) == [Stop("a", 1, kill=False)]
    assert pool.exited("a", 1, "exit status 0", 21.0) == [Spawn("c", 1)]


def test_a_load_counts_towards_max_loaded() -> None:
    pool = small_machine("a", "b", budget=100 * GB, rules=Rules(max_loaded=1, min_residency=0.0))
    first = ask(pool, "a", 0.0)
    assert pool.acquire("r", "b", 60.0, 1.0)[1] == []
    pool.ready("a", 1, 8 * GB, 1, 2.0)
    assert done(pool.release(first, 3.0)) == [Stop("a", 1, kill=False)]


def test_the_periodic_cleanup_trims_to_max_loaded() -> None:
    """MLX_CACHE_CLEANUP_INTERVAL_SEC, after a configuration that lowered the number."""
    pool = small_machine("a", "b", "c", budget=100 * GB)
    for i, name in enumerate("abc"):
        loaded(pool, name, now=10.0 * i)
    pool.state.rules = Rules(policy="lru", max_loaded=1, cleanup_interval=600.0)
    pool.tick(100.0)
    assert pool.next_deadline() == 700.0
    assert done(pool.tick(700.0)) == [Stop("a", 1, kill=False), Stop("b", 1, kill=False)]


def test_a_cleanup_interval_of_zero_is_off() -> None:
    """MLX_CACHE_CLEANUP_INTERVAL_SEC=0"""
    pool = small_machine("a", "b", budget=100 * GB)
    loaded(pool, "a", "b")
    pool.state.rules = Rules(max_loaded=1, cleanup_interval=0.0)
    pool.tick(100.0)
    assert pool.next_deadline() is None


def test_idle_models_go_after_their_ttl_to_the_second() -> None:
    pool = small_machine(Spec("a", estimate_bytes=GB, ttl=30.0), "b", budget=100 * GB)
    loaded(pool, "a", "b", now=0.0)
    lease = ask(pool, "a", 20.0)
    assert done(pool.tick(60.0)) == []
    assert states(pool)["a"] is State.READY
    pool.release(lease, 61.0)
    assert pool.next_deadline() == 91.0
    assert done(pool.tick(90.9)) == []
    assert done(pool.tick(91.0)) == [Stop("a", 1, kill=False)]


# ── the load gate ─────────────────────────────────────────────────────────────────────────────────


def gated() -> tuple[Pool, int, int, list[Effect]]:
    """`a` generates, `b` wants to load: (pool, a's lease, b's, what was said)."""
    rules = Rules(load_gate="exclusive", load_gate_timeout=120.0, min_residency=0.0)
    pool = small_machine("a", "b", budget=100 * GB, rules=rules)
    running = serve(pool, "a", 0.0)
    waiter, effects = pool.acquire("r", "b", 600.0, 10.0)
    return pool, running, waiter, effects


def test_an_exclusive_load_waits_for_other_generations_and_says_so() -> None:
    pool, running, waiter, effects = gated()
    assert done(effects) == []
    assert said(effects) == "the load of b waits for the generations of a#1 (1)"
    assert pool.release(running, 20.0) == [Spawn("b", 1)]
    assert pool.ready("b", 1, 8 * GB, 1, 30.0) == [Grant(waiter, "b", "b#1", 1, until=1)]


def test_new_generations_wait_for_the_load_and_no_longer() -> None:
    pool, running, waiter, _ = gated()
    new, effects = pool.acquire("r", "a", 600.0, 11.0)
    assert effects == []
    assert pool.release(running, 20.0) == [Spawn("b", 1)]
    newer, effects = pool.acquire("r", "a", 600.0, 21.0)
    assert effects == []
    granted = pool.ready("b", 1, 8 * GB, 1, 30.0)
    assert {effect.lease for effect in granted if isinstance(effect, Grant)} == {new, newer, waiter}


def test_the_gate_opens_after_its_timeout_and_the_log_says_who_waited() -> None:
    pool, _, _, _ = gated()
    assert pool.next_deadline() == 130.0
    assert done(pool.tick(129.9)) == []
    effects = pool.tick(130.0)
    assert done(effects) == [Spawn("b", 1)]
    assert said(effects) == "the load of b waited 120 s for the generations of a#1 (1) and goes on"


def test_a_load_that_nobody_wants_any_more_opens_the_gate() -> None:
    pool, _, waiter, _ = gated()
    new = ask(pool, "a", 11.0)
    assert pool.release(waiter, 12.0) == [Grant(new, "a", "a#1", 1, until=1)]


def test_a_request_that_the_gate_kept_waiting_is_told() -> None:
    pool, _, _, _ = gated()
    ask(pool, "a", 11.0, hold=5.0)
    (refusal,) = [effect for effect in pool.tick(16.0) if isinstance(effect, Refuse)]
    assert refusal.error.code == "model_loading"
    assert "`b`" in refusal.error.message


# ── by hand, and pressure ─────────────────────────────────────────────────────────────────────────


def test_a_load_by_hand_makes_room_and_is_no_use() -> None:
    pool = small_machine("a", "b")
    loaded(pool, "a")
    lease, effects = pool.load("r", "b", 60.0, 10.0)
    assert done(effects) == [Stop("a", 1, kill=False)]
    assert pool.exited("a", 1, "exit status 0", 11.0) == [Spawn("b", 1)]
    assert pool.ready("b", 1, 8 * GB, 1, 12.0) == [Loaded(lease, "b", "b#1")]
    assert (pool.models["b"].use_count, pool.models["b"].in_use) == (0, False)
    again, effects = pool.load("r", "b", 60.0, 13.0)
    assert effects == [Loaded(again, "b", "b#1")]


def test_loads_by_hand_are_bounded_while_they_wait() -> None:
    pool = small_machine(Spec("a", estimate_bytes=GB, capacity=2))
    waiting = [pool.load("r", "a", 60.0, 0.0)[0] for _ in range(2)]
    _, (refusal,) = pool.load("r", "a", 60.0, 0.0)
    assert isinstance(refusal, Refuse)
    assert refusal.error.code == "queue_full"
    assert pool.ready("a", 1, GB, 1, 1.0) == [Loaded(lease, "a", "a#1") for lease in waiting]
    for _ in range(2):
        ask(pool, "a", 2.0)
    busy, effects = pool.load("r", "a", 60.0, 3.0)
    assert effects == [Loaded(busy, "a", "a#1")]


def test_a_load_by_hand_tries_a_failed_model_again() -> None:
    pool = small_machine("a")
    ask(pool, "a", 0.0)
    pool.load_failed("a", 1, "no such file", 1.0)
    pool.exited("a", 1, "exit status 0", 2.0)
    assert states(pool)["a"] is State.FAILED
    assert pool.load("r", "a", 60.0, 3.0)[1] == [Spawn("a", 2)]


def test_an_unload_by_hand_lets_requests_end() -> None:
    pool = small_machine("a")
    lease = serve(pool, "a", 0.0)
    assert pool.unload("a", 5.0) == []
    assert states(pool)["a"] is State.DRAINING
    assert pool.release(lease, 6.0) == [Stop("a", 1, kill=False)]
    assert pool.unload("a", 6.5) == []


def test_an_unload_during_the_load_serves_those_who_wait_and_nobody_else() -> None:
    pool = small_machine("a")
    lease = ask(pool, "a", 0.0)
    assert pool.unload("a", 1.0) == []
    assert pool.ready("a", 1, 8 * GB, 1, 2.0) == [Grant(lease, "a", "a#1", 1, until=1)]
    assert states(pool)["a"] is State.DRAINING
    assert pool.acquire("r", "a", 60.0, 3.0)[1] == []


def test_a_load_by_hand_takes_back_an_unload() -> None:
    pool = small_machine("a")
    pool.preload("a", 0.0)
    pool.unload("a", 1.0)
    lease, _ = pool.load("r", "a", 60.0, 2.0)
    assert pool.ready("a", 1, 8 * GB, 1, 3.0) == [Loaded(lease, "a", "a#1")]
    assert states(pool)["a"] is State.READY


def test_a_pinned_model_yields_to_an_emergency_alone() -> None:
    pool = small_machine(Spec("a", estimate_bytes=8 * GB, pin=True, ttl=5.0), "b")
    loaded(pool, "a")
    ask(pool, "b", 10.0)
    assert done(pool.tick(100.0)) == []
    assert done(pool.memory.pressure(Level.WARN, "", 101.0)) == []
    assert done(pool.memory.pressure(Level.HIGH, "", 102.0)) == [Shrink("a", 1)]
    assert done(pool.memory.pressure(Level.CRITICAL, "", 103.0)) == [Stop("a", 1, kill=False)]


def test_an_emergency_ends_a_load_and_its_waiters_wait_on() -> None:
    pool = small_machine("a")
    ask(pool, "a", 0.0)
    assert done(pool.memory.pressure(Level.CRITICAL, "", 1.0)) == [Stop("a", 1, kill=False)]
    assert done(pool.exited("a", 1, "exit status 0", 2.0)) == []
    assert done(pool.memory.pressure(Level.NORMAL, "", 3.0)) == [Spawn("a", 2)]


def test_a_pinned_model_is_passed_over_for_another_victim() -> None:
    rules = Rules(policy="lru", min_residency=0.0)
    pool = small_machine("a", "b", "c", budget=16 * GB, rules=rules)
    loaded(pool, "a", now=0.0)
    loaded(pool, "b", now=10.0)
    pool.pin("a", 20.0)
    assert done(pool.acquire("r", "c", 60.0, 21.0)[1]) == [Stop("b", 1, kill=False)]


def test_unpinning_lets_the_waiter_in_at_once() -> None:
    pool = small_machine(Spec("a", estimate_bytes=8 * GB, pin=True), "b")
    loaded(pool, "a")
    ask(pool, "b", 10.0)
    assert done(pool.unpin("a", 11.0)) == [Stop("a", 1, kill=False)]


def test_high_pressure_starts_nothing_and_shrinks_caches() -> None:
    pool = small_machine("a", "b", budget=100 * GB)
    loaded(pool, "a")
    assert Shrink("a", 1) in pool.memory.pressure(Level.HIGH, "", 10.0)
    assert pool.memory.pressure(Level.HIGH, "", 11.0) == []
    ask(pool, "b", 12.0)
    assert states(pool)["b"] is State.COLD
    assert Spawn("b", 1) in pool.memory.pressure(Level.WARN, "", 20.0)


def test_a_cleanup_under_warn_spares_what_was_just_loaded() -> None:
    pool = small_machine("a", "b", budget=100 * GB, rules=Rules(keep=0, min_residency=60.0))
    loaded(pool, "a")
    assert done(pool.memory.pressure(Level.WARN, "", 10.0)) == []
    assert done(pool.memory.pressure(Level.WARN, "", 61.0)) == [Stop("a", 1, kill=False)]


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_an_earlier_run_learned_is_recalled() -> None:
    pool = small_machine("a")
    pool.recall("a", use_count=7, load_seconds=12.0, memory_bytes=3 * GB)
    ask(pool, "a", 0.0)
    assert pool.state.ledger.of(("a", 1)) == 3 * GB
    assert pool.models["a"].use_count == 8


def test_new_files_have_a_new_estimate_and_nothing_learned() -> None:
    pool = small_machine("a")
    pool.recall("a", use_count=1, load_seconds=1.0, memory_bytes=3 * GB)
    lease = ask(pool, "a", 0.0)
    pool.exited("a", 1, "SIGKILL", 1.0)
    assert pool.estimated("a", 6 * GB, GB, 2.0) == []
    ask(pool, "a", 3.0)
    assert pool.state.ledger.of(("a", 2)) == 6 * GB
    pool.ready("a", 2, 4 * GB, 1, 4.0)
    assert pool.state.ledger.of(("a", 2)) == 5 * GB  # measured, and the headroom it has yet to use
    assert lease not in pool.models["a"].granted


def test_a_configured_size_is_trusted_as_given() -> None:
    pool = small_machine(Spec("a", estimate_bytes=9 * GB, memory_bytes=4 * GB))
    serve(pool, "a", 0.0, size=7 * GB)
    assert pool.state.ledger.charged == 4 * GB


def test_default_limits_are_the_documented_ones() -> None:
    assert (Limits().drain, Limits().load_stall) == (120.0, 120.0)
    rules = Rules()
    assert (rules.policy, rules.keep, rules.max_loaded, rules.cleanup_interval) == (
        "gdsf",
        1,
        0,
        600,
    )
    assert (rules.load_gate, rules.load_gate_timeout, rules.max_requests) == ("shared", 120.0, 0)
    assert LogLine("x").level == 20
