"""supervisor.scheduler.relief, through the pool: who gives memory up, and in which order."""

from __future__ import annotations

import pytest

from supervisor.scheduler.effects import (
    EndLease,
    Interrupt,
    LimitSequences,
    Recall,
    RememberExcess,
    Shrink,
    Spawn,
    Stop,
)
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import LoanNeeds
from supervisor.scheduler.model import Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from supervisor.scheduler.relief import EXIT_SECONDS, GROWN_SECONDS, SPARED_SECONDS
from tests.helpers.pools import GB, ask, done, loaded, serve, small_machine, states, told

RESUMES = Rules(recovery="resume", keep=0)


def machine(*, rules: Rules = RESUMES) -> Pool:
    """`chat` runs two requests; `pinned` and `idle` are loaded and idle. 4 GB each, of 20."""
    pool = small_machine(
        Spec("chat", estimate_bytes=4 * GB),
        Spec("pinned", estimate_bytes=4 * GB, pin=True),
        Spec("idle", estimate_bytes=4 * GB),
        budget=20 * GB,
        rules=rules,
    )
    loaded(pool, "pinned", "idle", size=4 * GB)
    serve(pool, "chat", 0.0, size=4 * GB)
    ask(pool, "chat", 1.0)
    return pool


def borrow(pool: Pool, model: str, size: int, idle: int = 0) -> None:
    """The model is lent `size` bytes; so many of them are idle."""
    pool.memory.needs(model, 1, LoanNeeds(least=1, most=size, since=1.0), 5.0)
    pool.memory.needs(model, 1, LoanNeeds(idle=idle), 5.0)


# ── a worker above its charge ────────────────────────────────────────────────────────────────────


def test_a_worker_above_its_charge_steps_down_and_comes_back_with_a_larger_one() -> None:
    pool = machine()
    borrow(pool, "chat", 2 * GB, idle=GB)
    charge = pool.state.ledger.of(("chat", 1))
    assert charge == 6 * GB
    assert done(pool.memory.footprint("chat", 1, 8 * GB, 10.0)) == [
        Shrink("chat", 1),
        Recall("chat", 1, 1, GB),
    ]
    pool.memory.repaid("chat", 1, GB, 1, 10.1)
    assert done(pool.memory.footprint("chat", 1, 8 * GB, 11.0)) == [LimitSequences("chat", 1, 1)]
    effects = done(pool.memory.footprint("chat", 1, 8 * GB, 12.0))
    assert [type(effect) for effect in effects] == [RememberExcess, Interrupt, Interrupt, Stop]
    assert states(pool) == {"chat": State.STOPPING, "pinned": State.READY, "idle": State.READY}
    assert pool.models["chat"].size == 4 * GB + 3 * GB
    pool.exited("chat", 1, "exit status 0", 13.0)
    assert done(pool.returned(3, 5, 13.1)) == [Spawn("chat", 2)]
    assert pool.state.ledger.of(("chat", 2)) == 7 * GB
    pool.ready("chat", 2, 4 * GB, 1, 14.0)
    assert pool.state.ledger.of(("chat", 2)) == 7 * GB


def test_concurrency_steps_down_by_choices_and_not_by_requests() -> None:
    pool = small_machine(Spec("chat", estimate_bytes=4 * GB), budget=20 * GB, rules=RESUMES)
    pool.acquire("r", "chat", 100.0, 0.0, places=16)
    pool.ready("chat", 1, 4 * GB, 1, 1.0)
    pool.memory.footprint("chat", 1, 8 * GB, 10.0)
    assert done(pool.memory.footprint("chat", 1, 8 * GB, 11.0)) == [LimitSequences("chat", 1, 8)]


def test_a_worker_within_its_charge_is_let_alone() -> None:
    pool = machine()
    assert pool.memory.footprint("chat", 1, 4 * GB, 10.0) == []
    assert pool.memory.footprint("chat", 2, 40 * GB, 10.0) == []  # another incarnation


def test_what_was_given_back_during_the_reading_was_allowed_by_then() -> None:
    pool = machine()
    borrow(pool, "chat", 2 * GB, idle=2 * GB)
    pool.memory.footprint("chat", 1, 6 * GB, 10.0)
    pool.memory.repaid("chat", 1, 2 * GB, 0, 10.5)
    assert pool.memory.footprint("chat", 1, 6 * GB, 11.0) == []
    # What it still holds at the next reading it has no more right to.
    assert done(pool.memory.footprint("chat", 1, 6 * GB, 12.0)) == [Shrink("chat", 1)]


def test_what_was_lent_and_given_back_during_the_reading_was_allowed_by_then() -> None:
    pool = machine()
    pool.memory.footprint("chat", 1, 4 * GB, 10.0)
    borrow(pool, "chat", 2 * GB, idle=2 * GB)
    pool.memory.repaid("chat", 1, 2 * GB, 0, 10.5)
    assert pool.memory.footprint("chat", 1, 6 * GB, 11.0) == []


def test_a_restart_charges_what_was_held_beyond_the_charge_of_that_time() -> None:
    """What was given back between the reading and the pressure is no excess."""
    pool = machine()
    borrow(pool, "chat", 2 * GB, idle=2 * GB)
    pool.memory.footprint("chat", 1, 8 * GB, 10.0)
    pool.memory.repaid("chat", 1, 2 * GB, 1, 10.5)
    assert Stop("chat", 1, kill=False) in pool.memory.pressure(Level.HIGH, "", 10.6)
    assert pool.models["chat"].size == 4 * GB + 2 * GB


def outgrow(pool: Pool, model: str, generation: int, now: float, size: int = 8 * GB) -> float:
    for second in range(4):
        pool.memory.footprint(model, generation, size, now + second)
    return now + 4


def test_a_model_that_no_charge_contains_is_not_restarted_in_a_cycle() -> None:
    rules = Rules(recovery="resume", min_residency=0.0)
    spec = Spec("m", estimate_bytes=4 * GB, memory_bytes=4 * GB)  # charged as given
    pool = small_machine(spec, rules=rules)
    ask(pool, "m", 0.0)
    now = 0.0
    for generation in (1, 2):
        pool.ready("m", generation, 4 * GB, 1, now)
        now = outgrow(pool, "m", generation, now)
        expected = State.STOPPING if generation == 1 else State.READY
        assert states(pool)["m"] is expected
        if generation == 1:
            pool.exited("m", 1, "exit status 0", now)
            pool.returned(1, 5, now)
    outgrow(pool, "m", 2, now + 60.0)
    assert states(pool)["m"] is State.STOPPING


def test_a_model_whose_footprint_is_more_than_the_budget_is_charged_all_of_it() -> None:
    pool = small_machine(Spec("m", estimate_bytes=4 * GB), rules=RESUMES)
    ask(pool, "m", 0.0)
    pool.ready("m", 1, 4 * GB, 1, 1.0)
    outgrow(pool, "m", 1, 2.0, size=11 * GB)
    assert Spawn("m", 2) in pool.exited("m", 1, "exit status 0", 7.0) + pool.returned(1, 5, 7.0)
    assert pool.state.ledger.of(("m", 2)) == 10 * GB


def test_a_configured_charge_learns_of_no_excess() -> None:
    """It would count on the day that the setting goes."""
    pool = small_machine(Spec("m", estimate_bytes=4 * GB, memory_bytes=2 * GB), rules=RESUMES)
    loaded(pool, "m", size=4 * GB)
    outgrow(pool, "m", 1, 2.0)
    assert states(pool)["m"] is State.STOPPING
    assert (pool.models["m"].excess_bytes, pool.models["m"].size) == (0, 2 * GB)


def test_what_a_person_has_loaded_anew_is_tried_with_its_first_charge() -> None:
    pool = small_machine(Spec("m", estimate_bytes=4 * GB), rules=RESUMES)
    loaded(pool, "m", size=4 * GB)
    outgrow(pool, "m", 1, 2.0, size=8 * GB)
    pool.exited("m", 1, "exit status 0", 7.0)
    assert pool.models["m"].size == 8 * GB
    effects = pool.load("r", "m", 10.0, 8.0)[1]
    assert RememberExcess("m", 0) in effects  # in a later run as well
    assert Spawn("m", 2) in effects
    assert pool.state.ledger.of(("m", 2)) == 4 * GB
    assert RememberExcess("m", 0) not in pool.load("r", "m", 10.0, 8.0)[1]


def test_a_pinned_idle_one_that_outgrew_its_charge_comes_back_by_itself() -> None:
    pool = machine()
    outgrow(pool, "pinned", 1, 10.0, size=6 * GB)
    assert Spawn("pinned", 2) in pool.exited("pinned", 1, "exit status 0", 15.0)


def test_a_pinned_one_comes_back_also_when_its_requests_have_gone() -> None:
    pool = machine(rules=Rules(recovery="off"))
    lease = ask(pool, "pinned", 5.0)
    outgrow(pool, "pinned", 1, 10.0, size=6 * GB)
    assert lease not in pool.state.leases
    assert Spawn("pinned", 2) in pool.exited("pinned", 1, "exit status 0", 15.0)


# ── a machine under pressure ─────────────────────────────────────────────────────────────────────


def gone(pool: Pool) -> set[str]:
    return {name for name, state in states(pool).items() if state is not State.READY}


def test_one_kind_goes_after_the_other_each_with_a_moment() -> None:
    pool = machine()
    borrow(pool, "chat", 2 * GB, idle=GB)
    recalled = done(pool.memory.pressure(Level.CRITICAL, "99 %", 10.0))
    assert recalled[0] == Recall("chat", 1, 1, GB)
    assert gone(pool) == set()
    pool.memory.repaid("chat", 1, GB, 1, 10.1)
    pool.memory.pressure(Level.CRITICAL, "99 %", 10.5)
    assert gone(pool) == set()
    pool.memory.pressure(Level.CRITICAL, "99 %", 11.0)
    assert gone(pool) == {"idle"}
    pool.memory.pressure(Level.CRITICAL, "99 %", 12.0)
    assert gone(pool) == {"idle"}  # it is not over yet
    pool.exited("idle", 1, "exit status 0", 12.5)
    pool.memory.pressure(Level.CRITICAL, "99 %", 13.0)
    assert gone(pool) == {"idle", "pinned"}
    pool.memory.pressure(Level.CRITICAL, "99 %", 13.0 + EXIT_SECONDS)
    assert gone(pool) == {"idle", "pinned", "chat"}


@pytest.mark.parametrize("level", [Level.WARN, Level.HIGH])
def test_below_an_emergency_pinned_and_busy_ones_stay(level: Level) -> None:
    pool = machine()
    for second in range(60):
        pool.memory.pressure(level, "90 %", 100.0 + second)
    assert gone(pool) == {"idle"}


def test_nothing_more_goes_while_the_pressure_falls() -> None:
    pool = machine()
    pool.memory.pressure(Level.CRITICAL, "99 %", 10.0)
    pool.exited("idle", 1, "exit status 0", 10.5)
    for second in range(1, 6):
        assert done(pool.memory.pressure(Level.CRITICAL, "90 %", 10.0 + second, eased=True)) == []
    assert gone(pool) == {"idle"}


def test_who_outgrew_its_charge_goes_first_and_nobody_else() -> None:
    pool = machine()
    pool.memory.footprint("chat", 1, 9 * GB, 9.5)
    pool.memory.pressure(Level.CRITICAL, "99 %", 10.0)
    assert gone(pool) == {"chat"}
    pool.exited("chat", 1, "exit status 0", 10.5)
    pool.memory.pressure(Level.CRITICAL, "60 %", 11.0, eased=True)
    assert gone(pool) == {"chat"}


def test_at_warn_the_others_are_left_alone_while_it_is_dealt_with() -> None:
    pool = machine()
    for now in (100.0, 101.0, 102.0):
        pool.memory.footprint("chat", 1, 9 * GB, now)
        pool.memory.pressure(Level.WARN, "90 %", now)
    assert gone(pool) == {"chat"}


def test_at_warn_they_are_not_left_alone_for_ever() -> None:
    pool = machine()
    pool.memory.footprint("chat", 1, 9 * GB, 100.0)  # and never read again
    for second in range(int(GROWN_SECONDS)):
        pool.memory.pressure(Level.WARN, "90 %", 100.0 + second)
        assert gone(pool) == set()
    for second in range(3):
        pool.memory.pressure(Level.WARN, "90 %", 100.0 + GROWN_SECONDS + second)
    assert gone(pool) == {"idle"}


def test_an_innocent_pinned_neighbour_of_long_chats_is_not_reloaded_in_a_cycle() -> None:
    """One model's chats grow until memory is gone, again and again; somebody asks for its idle,
    pinned neighbour each time that it was unloaded. That was four times in 53 s."""
    pool = small_machine(
        Spec("chat", estimate_bytes=4 * GB),
        Spec("pinned", estimate_bytes=4 * GB, pin=True),
        budget=20 * GB,
        rules=RESUMES,
    )
    loaded(pool, "pinned", size=4 * GB)
    running = serve(pool, "chat", 0.0, size=4 * GB)
    unloads, grown, now = [], 0, 10.0
    while now < 10.0 + SPARED_SECONDS:
        chat, pinned = pool.models["chat"], pool.models["pinned"]
        grown = grown + GB // 2 if chat.state is State.READY and chat.granted else 0
        # Memory is gone with what the chats hold, whether the neighbour is there or not.
        short = grown >= 2 * GB
        level = Level.CRITICAL if short else Level.NORMAL
        before = pinned.state
        pool.memory.pressure(level, "99 %", now)
        if before is State.READY and pinned.state is not State.READY:
            unloads.append(now)
        for model in (chat, pinned):
            if model.state is State.STOPPING:
                pool.exited(model.name, model.generation, "exit status 0", now)
        if running in chat.returning:
            pool.returned(running, 5, now, 1000.0)
        if pinned.state is State.COLD and not short:
            ask(pool, "pinned", now)
        pool.tick(now)
        for model in (chat, pinned):
            if model.state is State.LOADING:
                pool.ready(model.name, model.generation, 4 * GB, 1, now)
        for lease in list(pinned.granted):
            pool.release(lease, now)
        now += 1.0
    assert len(unloads) == 1


def test_an_emergency_spares_nobody_for_what_did_not_help_before_it() -> None:
    pool = machine()
    pool.memory.pressure(Level.WARN, "86 %", 100.0)
    assert gone(pool) == {"idle"}
    pool.exited("idle", 1, "exit status 0", 101.0)
    for now in (102.0, 104.0):
        pool.memory.pressure(Level.WARN, "86 %", now)
    pool.memory.pressure(Level.NORMAL, "80 %", 105.0)
    loaded(pool, "idle", size=4 * GB)
    for now in (110.0, 111.0, 112.0):
        pool.memory.pressure(Level.CRITICAL, "99 %", now)
    assert "idle" in gone(pool)


def test_who_is_refused_in_an_emergency_is_told_so() -> None:
    pool = machine(rules=Rules())
    for second in (10.0, 10.0 + EXIT_SECONDS, 10.0 + 2 * EXIT_SECONDS):
        pool.memory.pressure(Level.CRITICAL, "99 %", second)
    ended = told(pool.tick(10.0 + 2 * EXIT_SECONDS + 10.0))
    assert [(each.kind, each.code) for each in ended] == [(EndLease, "memory_pressure")] * 2
