"""supervisor.scheduler.requests, through the pool: queues, places, and fallbacks."""

from __future__ import annotations

import pytest

from supervisor.scheduler.effects import Effect, Grant, Refuse, Spawn
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool
from tests.helpers.pools import GB, ask, loaded, said, serve, small_machine, states


def test_requests_of_one_model_are_served_in_their_order() -> None:
    pool = small_machine(Spec("a", estimate_bytes=GB, concurrency=2))
    leases = [ask(pool, "a", float(i)) for i in range(5)]
    granted = [e.lease for e in pool.ready("a", 1, GB, 1, 9.0) if isinstance(e, Grant)]
    for i, lease in enumerate(leases):
        granted += [e.lease for e in pool.release(lease, 10.0 + i) if isinstance(e, Grant)]
    assert granted == leases


def test_one_model_does_not_take_all_places_of_the_server() -> None:
    pool = small_machine("a", "b", rules=Rules(max_requests=4))
    hogs = [ask(pool, "a", float(i)) for i in range(4)]
    lease, effects = pool.acquire("r", "b", 60.0, 5.0)
    refused = [(e.lease, e.error.code) for e in effects if isinstance(e, Refuse)]
    assert refused == [(hogs[-1], "queue_full")]
    assert lease in pool.models["b"].waiting
    _, (full,) = pool.acquire("r", "a", 60.0, 6.0)
    assert isinstance(full, Refuse)
    assert "max_requests" in full.error.message


@pytest.mark.parametrize(("asked", "displaced"), [("b", False), ("c", True)])
def test_a_newcomer_displaces_only_who_has_two_more_than_its_model(
    asked: str, displaced: bool
) -> None:
    pool = small_machine("a", "b", "c", rules=Rules(max_requests=3))
    _, last, _ = ask(pool, "a", 0.0), ask(pool, "a", 1.0), ask(pool, "b", 2.0)
    lease, effects = pool.acquire("r", asked, 60.0, 5.0)
    assert refused(effects) == [(last if displaced else lease, "queue_full")]


def test_a_server_whose_places_are_all_taken_by_running_requests_is_full() -> None:
    pool = small_machine("a", "b", rules=Rules(max_requests=1))
    serve(pool, "a", 0.0)
    lease, effects = pool.acquire("r", "b", 60.0, 5.0)
    assert refused(effects) == [(lease, "queue_full")]


def test_a_loaded_model_serves_whatever_its_next_load_would_need() -> None:
    pool = small_machine("a")
    loaded(pool, "a")
    pool.estimated("a", 11 * GB, 0, 5.0)
    lease, effects = pool.acquire("r", "a", 60.0, 6.0)
    assert effects == [Grant(lease, "a", "a#1", 1, until=1)]


def test_retry_after_of_a_full_queue_is_the_pace_at_which_places_become_free() -> None:
    pool = small_machine(Spec("a", estimate_bytes=GB, capacity=3, concurrency=1))
    ask(pool, "a", 0.0)
    pool.ready("a", 1, GB, 1, 1.0)
    for at in (7.0, 13.0):
        ask(pool, "a", at)
        running = next(iter(pool.models["a"].granted))
        pool.release(running, at)
    for _ in range(2):
        ask(pool, "a", 20.0)
    _, (refusal,) = pool.acquire("r", "a", 60.0, 20.0)
    assert isinstance(refusal, Refuse)
    assert refusal.error.retry_after == 6


def test_all_places_taken_through_the_hold_is_a_full_queue() -> None:
    pool = small_machine(Spec("a", estimate_bytes=GB, concurrency=1))
    serve(pool, "a", 0.0, size=GB)
    ask(pool, "a", 5.0, hold=2.0)
    (refusal,) = [effect for effect in pool.tick(7.0) if isinstance(effect, Refuse)]
    assert refusal.error.code == "queue_full"


# ── fallbacks ────────────────────────────────────────────────────────────────────────────────────


def with_fallback(max_restarts: int = 10) -> Pool:
    """`a`, which is served by `b` while it is unavailable, and `c` by `a`."""
    return small_machine(
        Spec("a", estimate_bytes=GB, fallback="other-b"),
        Spec("b", aliases=("other-b",), estimate_bytes=GB, capacity=2),
        Spec("c", estimate_bytes=GB, fallback="a"),
        rules=Rules(min_residency=0.0, recovery="resume", max_restarts=max_restarts),
    )


def fail(pool: Pool, name: str) -> list[Effect]:
    """Its load, which runs or begins, fails."""
    pool.preload(name, 1.0)
    generation = pool.models[name].generation
    effects = pool.load_failed(name, generation, "no such file", 1.0)
    return [*effects, *pool.exited(name, generation, "exit status 0", 2.0)]


def refused(effects: list[Effect]) -> list[tuple[int, str]]:
    return [(each.lease, each.error.code) for each in effects if isinstance(each, Refuse)]


def test_a_model_that_fails_sends_those_who_wait_to_its_fallback() -> None:
    pool = with_fallback()
    first, second = ask(pool, "a", 0.0), ask(pool, "a", 0.5)
    by_hand, _ = pool.load("person", "a", 60.0, 0.5)
    effects = fail(pool, "a")
    assert refused(effects) == [(by_hand, "model_load_failed")]  # who wanted `a` itself
    assert "r asked for a and is served by its fallback b: The model `a` cannot" in said(effects)
    assert Spawn("b", 1) in effects
    grants = pool.ready("b", 1, GB, 4096, 3.0)
    assert [(e.lease, e.model, e.asked) for e in grants if isinstance(e, Grant)] == [
        (first, "b", "a"),
        (second, "b", "a"),
    ]


def test_who_comes_to_a_failed_model_goes_to_its_fallback_as_long_as_that_can_serve() -> None:
    pool = with_fallback()
    fail(pool, "a")
    for _ in range(2):
        effects = pool.acquire("r", "a", 60.0, 3.0)[1]
        assert not refused(effects)
        assert "r asked for a and is served by its fallback b" in said(effects)
    assert (pool.models["a"].use_count, pool.models["b"].use_count) == (0, 2)
    lease, effects = pool.acquire("r", "a", 60.0, 3.0)
    assert refused(effects) == [(lease, "model_load_failed")]  # and not `queue_full`, which is b's


def test_a_fallback_is_one_step_far() -> None:
    pool = with_fallback()
    fail(pool, "a")
    fail(pool, "c")
    lease, effects = pool.acquire("r", "c", 60.0, 3.0)
    assert refused(effects) == [(lease, "model_load_failed")]


def test_who_was_sent_on_is_not_sent_on_again() -> None:
    pool = with_fallback()
    lease = ask(pool, "c", 0.0)
    fail(pool, "c")
    assert lease in pool.models["a"].waiting
    assert refused(fail(pool, "a")) == [(lease, "model_load_failed")]


def test_a_model_that_keeps_dying_sends_those_on_who_have_no_tokens_of_it() -> None:
    pool = with_fallback(max_restarts=1)
    begun, fresh = ask(pool, "a", 0.0), ask(pool, "a", 0.0)
    for generation in (1, 2, 3):  # two more than if there were only one
        pool.ready("a", generation, GB, 4096, 1.0)
        effects = pool.exited("a", generation, "SIGABRT", 2.0)
        if generation < 3:
            pool.returned(begun, 0, 2.0)
            pool.returned(fresh, 0, 2.0)
    assert states(pool)["a"] is State.CRASHED
    assert refused(pool.returned(begun, 7, 2.0)) == [(begun, "model_unavailable")]
    assert pool.returned(fresh, 0, 2.0) == []  # it was not in the last one: one at a time
    assert not refused(effects)
    assert "r asked for a and is served by its fallback b: The model `a` keeps" in said(effects)
    assert fresh in pool.models["b"].waiting


def test_who_is_sent_on_keeps_its_turn() -> None:
    pool = with_fallback()
    first, second = ask(pool, "a", 0.0), ask(pool, "b", 0.5)
    fail(pool, "a")
    assert list(pool.models["b"].waiting) == [first, second]
