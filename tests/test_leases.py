"""supervisor.leases, through the pool: who comes back from a death, in which order, and who not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from supervisor.blame import PROBATION, QUARANTINE_SECONDS
from supervisor.effects import Bury, Convict, Interrupt, Loaded, Proceed, Refuse, Spawn, Stop
from supervisor.leases import RETURN_SECONDS
from supervisor.lifecycle import State
from supervisor.pool import Effect, Fault, Grant, Limits, Pool, ReleaseRule, Rules, Spec
from supervisor.pressure import Level
from tests.trials import crash_of

LIMITS = Limits(load_stall=10.0, drain=20.0, stop=3.0, emergency_drain=4.0)
HOLD = 100.0


class Ward:
    """A pool of models `m` and `other`, and the requests in the worker of `m`."""

    def __init__(
        self, requests: int = 3, *, proven: bool = True, concurrency: int = 0, **rules: Any
    ) -> None:
        rules = {"recovery": "resume", "max_restarts": 10**9, **rules}
        specs = [Spec("m", concurrency=concurrency), Spec("other")]
        self.pool = Pool(specs, limits=LIMITS, rules=Rules(**rules), jitter=lambda: 1.0)
        self.now = 0.0
        self.asked = 0
        self.leases = [self.acquire() for _ in range(requests)]
        if requests:
            self.ready()
        if requests and proven:
            self.passed(self.leases[0])

    @property
    def entry(self) -> Any:
        return self.pool.entries["m"]

    def refusal(self) -> str | None:
        """The code with which the last request was refused as it came."""
        return self._refusal

    def state(self) -> State:
        state: State = self.entry.state
        return state

    def acquire(self, digest: bytes = b"", model: str = "m", hold: float = HOLD) -> int:
        """A lease's id; `refusal()` has the code where it is refused as it comes."""
        self.asked += 1
        lease, effects = self.pool.acquire(f"r{self.asked}", model, hold, self.now, digest)
        self._refusal = dict(ended(effects)).get(lease)
        return lease

    def ready(self) -> list[Effect]:
        return self.pool.ready("m", self.entry.generation, 0, 1, self.now)

    def exits(self, fault: Fault = Fault.REQUEST) -> list[Effect]:
        return self.pool.exited("m", self.entry.generation, "SIGABRT", self.now, crash_of(fault))

    def dies(self, fault: Fault = Fault.REQUEST, **positions: int) -> list[Effect]:
        """The worker dies and the next is ready; all who were in it return, by default from where
        they stood. The effects of the last step."""
        inside = list(self.entry.granted)
        standing = {lease: each.position for lease, each in self.entry.granted.items()}
        told = interrupted(self.exits(fault))
        assert sorted(told) == sorted(inside)
        for lease in inside:
            self.returned(lease, positions.get(f"r{lease}", standing[lease]))
        return self.ready() if self.entry.state is State.LOADING else []

    def returned(self, lease: int, position: int = 0) -> list[Effect]:
        return self.pool.returned(lease, position, self.now)

    def passed(self, lease: int) -> list[Effect]:
        return self.pool.passed(lease, self.now)

    def release(self, lease: int) -> list[Effect]:
        return self.pool.release(lease, self.now)

    def after(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.pool.tick(self.now)


def trials(effects: Iterable[Effect]) -> list[tuple[int, int, bool]]:
    """(lease, until, then_pause) of each grant under suspicion."""
    return [
        (each.lease, each.until, each.then_pause)
        for each in effects
        if isinstance(each, Grant) and each.until >= PROBATION
    ]


def tried(effects: Iterable[Effect]) -> list[int]:
    return [lease for lease, _, _ in trials(effects)]


def granted(effects: Iterable[Effect]) -> list[int]:
    """Those that are granted like anybody."""
    return [e.lease for e in effects if isinstance(e, Grant) and e.until < PROBATION]


def proceeding(effects: Iterable[Effect]) -> list[int]:
    return [effect.lease for effect in effects if isinstance(effect, Proceed)]


def interrupted(effects: Iterable[Effect]) -> list[int]:
    return [effect.lease for effect in effects if isinstance(effect, Interrupt)]


def ended(effects: Iterable[Effect]) -> list[tuple[int, str]]:
    return [(e.lease, e.error.code) for e in effects if isinstance(e, Refuse | Bury)]


def convicted(effects: Iterable[Effect]) -> list[str]:
    return [effect.request_id for effect in effects if isinstance(effect, Convict)]


# ── trials ───────────────────────────────────────────────────────────────────────────────────────


def test_suspects_are_tried_alone_the_shortest_way_first() -> None:
    ward = Ward(4)
    effects = ward.dies(r1=9, r2=0, r3=5, r4=5)
    assert trials(effects) == [(2, PROBATION, True)]
    newcomer = ward.acquire()
    assert trials(ward.passed(2)) == [(3, 5 + PROBATION, True)]
    assert trials(ward.passed(3)) == [(4, 5 + PROBATION, True)]
    effects = ward.passed(4)
    assert trials(effects) == [(1, 9 + PROBATION, False)]  # nobody is left to wait for
    assert not proceeding(effects)
    effects = ward.passed(1)
    assert proceeding(effects) == [2, 3, 4]
    assert granted(effects) == [newcomer]


def test_one_that_died_alone_is_tried_last() -> None:
    ward = Ward(3)
    assert tried(ward.dies(r1=0, r2=50, r3=60)) == [1]
    assert tried(ward.dies()) == [2]
    assert tried(ward.passed(2)) == [3]
    assert tried(ward.passed(3)) == [1]
    assert proceeding(ward.passed(1)) == [2, 3]


@pytest.mark.parametrize("how", ["passes", "ends", "leaves the queue", "its hold is over"])
def test_those_who_have_passed_go_on_after_the_last_suspect(how: str) -> None:
    ward = Ward(2)
    assert tried(ward.dies()) == [1]
    effects = ward.passed(1)
    assert tried(effects) == [2]
    if how == "passes":
        effects = ward.passed(2)
    elif how == "ends":
        effects = ward.release(2)
    else:
        ward = Ward(3)
        ward.dies()
        ward.release(3)
        if how == "leaves the queue":
            ward.release(2)
        else:
            assert ended(ward.after(HOLD)) == [(2, "worker_crashed")]
        effects = ward.passed(1)
    assert proceeding(effects) == [1]
    assert not any(lease.standing.name == "PAUSED" for lease in ward.entry.granted.values())


def test_nobody_is_tried_until_all_have_said_where_they_stand() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1, 40)
    assert ward.ready() == []
    newcomer = ward.acquire()
    assert tried(ward.returned(2, 3)) == [2]
    assert newcomer in ward.entry.waiting


def test_a_gateway_that_says_nothing_is_not_waited_for() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.ready()
    assert ward.pool.next_deadline() == RETURN_SECONDS
    assert ward.after(RETURN_SECONDS - 0.1) == []
    effects = ward.after(0.1)
    assert ended(effects) == [(2, "worker_crashed")]
    assert tried(effects) == [1]
    assert ward.returned(2, 7) == []
    assert ward.release(2) == []


def test_a_client_that_leaves_while_it_returns_or_is_tried_holds_nobody_up() -> None:
    ward = Ward(3)
    ward.exits()
    ward.returned(1)
    ward.returned(2)
    ward.ready()
    assert tried(ward.release(3)) == [1]
    assert tried(ward.release(1)) == [2]
    assert ward.release(2) == []
    assert ward.state() is State.READY


def test_those_who_have_passed_are_not_suspected_when_another_kills() -> None:
    ward = Ward(3, max_recoveries=1)
    ward.dies(r2=50, r3=60)
    ward.passed(1)
    assert tried(ward.passed(2)) == [3]
    effects = ward.dies(r3=70)  # it got on, but not far enough
    assert tried(effects) == [3]
    assert sorted(ward.entry.waiting) == [1, 2]
    effects = ward.passed(3)
    assert granted(effects) == [1, 2]
    assert not proceeding(effects)


def test_a_request_that_got_on_to_the_end_of_its_trial_is_not_struck_by_the_next_death() -> None:
    """Its word that it has passed crosses that of the death."""
    ward = Ward(1)
    assert trials(ward.dies(r1=4)) == [(1, 4 + PROBATION, False)]
    assert trials(ward.dies(r1=4)) == [(1, 4 + PROBATION, False)]  # a strike
    ward.exits()
    assert ward.passed(1) == []
    assert not convicted(ward.returned(1, 4 + PROBATION))
    assert trials(ward.ready()) == [(1, 4 + 2 * PROBATION, False)]
    assert not convicted(ward.dies(r1=4 + PROBATION))  # the first strike anew
    ward.exits()
    assert convicted(ward.returned(1, 4 + PROBATION)) == ["r1"]


def test_places_are_not_exceeded_by_suspects() -> None:
    ward = Ward(0, concurrency=2)
    first, second, third = (ward.acquire() for _ in range(3))
    ward.ready()
    assert tried(ward.dies()) == [first]
    ward.passed(first)
    ward.passed(second)
    assert sorted(ward.entry.granted) == [first, second]
    assert granted(ward.release(first)) == [third]


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def test_two_deaths_alone_convict_and_the_others_go_on() -> None:
    ward = Ward(3)
    assert tried(ward.dies(r2=50, r3=50)) == [1]
    assert tried(ward.dies()) == [2]
    ward.passed(2)
    assert tried(ward.passed(3)) == [1]
    assert interrupted(ward.exits()) == [2, 3, 1]
    effects = ward.returned(1)
    assert convicted(effects) == ["r1"]
    assert ended(effects) == [(1, "request_crashed_worker")]
    ward.returned(2, 66)
    ward.returned(3, 66)
    assert granted(ward.ready()) == [2, 3]


def test_a_strike_is_forgotten_with_the_trial_that_is_passed() -> None:
    ward = Ward(1)
    assert tried(ward.dies()) == [1]
    assert tried(ward.dies()) == [1]  # a strike
    ward.passed(1)
    assert tried(ward.dies()) == [1]
    assert not convicted(ward.dies())
    assert ward.entry.granted


def test_the_guilty_and_its_equals_are_refused_for_an_hour() -> None:
    ward = Ward(1)
    poison, equal = ward.acquire(b"x"), ward.acquire(b"x")
    assert tried(ward.dies(r1=50)) == [poison]
    assert tried(ward.dies()) == [1]  # who has no death alone, and no equal that had one
    assert tried(ward.passed(1)) == [poison]
    ward.exits()
    effects = ward.returned(poison)
    assert convicted(effects) == ["r2"]
    assert ended(effects) == [(poison, "request_crashed_worker"), (equal, "request_crashed_worker")]
    assert ward.pool.docket.verdicts(ward.now) == [(b"x", QUARANTINE_SECONDS)]
    ward.returned(1, 66)
    assert granted(ward.ready()) == [1]
    ward.acquire(b"x")
    assert ward.refusal() == "request_crashed_worker"
    ward.acquire(b"y")
    assert ward.refusal() is None
    ward.after(QUARANTINE_SECONDS)
    ward.acquire(b"x")
    assert ward.refusal() is None


def test_no_request_is_guilty_on_a_model_that_never_made_a_token() -> None:
    ward = Ward(0)
    lease = ward.acquire(b"x")
    ward.ready()
    ward.dies()
    ward.dies()  # alone
    ward.exits()  # alone
    effects = ward.returned(lease)
    assert ended(effects) == [(lease, "worker_crashed")]
    assert not convicted(effects)
    assert ward.pool.docket.verdicts(ward.now) == []
    # Once the model has made one for somebody, its deaths alone count.
    other, lease = ward.acquire(), ward.acquire(b"x")
    assert ward.refusal() is None
    assert granted(ward.ready()) == [other, lease]
    ward.passed(other)
    assert tried(ward.dies()) == [other]
    assert tried(ward.passed(other)) == [lease]
    ward.exits()
    assert convicted(ward.returned(lease)) == ["r3"]


def test_a_request_that_makes_tokens_elsewhere_proves_the_model() -> None:
    ward = Ward(1, proven=False)
    ward.dies(r1=3)  # it made them itself
    ward.dies()
    ward.exits()
    assert convicted(ward.returned(1, 3)) == ["r1"]


@pytest.mark.parametrize("when", ["returning", "before the cause is known", "never returns"])
def test_leaving_spares_nobody_the_verdict(when: str) -> None:
    ward = Ward(1)
    lease = ward.acquire(b"x")
    ward.release(1)
    assert tried(ward.dies()) == [lease]
    assert tried(ward.dies()) == [lease]  # a strike
    effects: list[Effect] = []
    if when == "before the cause is known":
        ward.pool.dying("m", ward.entry.generation, "SIGABRT", ward.now)
        ward.returned(lease)
        assert not convicted(ward.release(lease))
        effects = ward.exits()
    else:
        ward.exits()
        effects = ward.release(lease) if when == "returning" else ward.after(RETURN_SECONDS)
    assert convicted(effects) == ["r2"]
    ward.acquire(b"x")
    assert ward.refusal() == "request_crashed_worker"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_death_from_outside_strikes_nobody(leaves: bool) -> None:
    ward = Ward(1)
    lease = ward.acquire(b"x")
    ward.release(1)
    assert tried(ward.dies()) == [lease]
    ward.pool.dying("m", 2, "SIGABRT", ward.now)
    if leaves:
        ward.release(lease)
    ward.exits(Fault.OUTSIDE)
    ward.returned(lease)
    assert ward.pool.docket.strikes(b"x", ward.now) == 0


def test_a_death_from_outside_makes_no_suspects_and_clears_none() -> None:
    ward = Ward(2, max_recoveries=5)
    assert granted(ward.dies(Fault.OUTSIDE)) == [1, 2]
    assert tried(ward.dies()) == [1]
    assert tried(ward.dies(Fault.OUTSIDE)) == [1]
    assert tried(ward.passed(1)) == [2]


def test_who_returns_late_is_judged_by_its_own_death() -> None:
    """The next worker has died meanwhile, of something else."""
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.exits(Fault.OUTSIDE)
    ward.returned(2)
    assert tried(ward.ready()) == [1]
    assert tried(ward.passed(1)) == [2]


def test_deaths_of_memory_make_suspects() -> None:
    assert tried(Ward(2).dies(Fault.MEMORY)) == [1]


# ── giving up ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_request_gives_up_after_so_many_deaths_without_a_new_token(most: int) -> None:
    ward = Ward(1, max_recoveries=most, proven=False)
    for _ in range(most):
        assert tried(ward.dies()) == [1]
    ward.exits()
    assert ended(ward.returned(1)) == [(1, "worker_crashed")]


def test_a_new_token_makes_it_go_on_but_twenty_deaths_are_enough() -> None:
    ward = Ward(1, max_recoveries=1)
    for number in range(20):
        assert tried(ward.dies(r1=PROBATION * number + 1)) == [1]
        ward.passed(1)
    ward.exits()
    assert ended(ward.returned(1, 10_000)) == [(1, "worker_crashed")]


def test_a_hold_that_is_over_tells_of_the_death_and_not_of_the_queue() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.now = 3.0
    ward.returned(2)
    late = ward.acquire(hold=1.0)
    ward.now = 4.0
    assert ended(ward.pool.tick(4.0)) == [(late, "model_loading")]
    for _ in range(11):  # its load goes on
        ward.pool.loading("m", 2, ward.now)
        effects = ward.after(9.0)
        if effects:
            break
    assert ended(effects) == [(1, "worker_crashed"), (2, "worker_crashed")]


def test_newcomers_displace_newcomers_alone() -> None:
    ward = Ward(0, max_requests=3)
    for _ in range(3):
        ward.acquire()
    ward.ready()
    ward.exits()
    for lease in (1, 2, 3):
        ward.returned(lease)
    ward.acquire(model="other")
    assert ward.refusal() == "queue_full"
    ward.release(3)
    newcomer = ward.acquire()
    ward.acquire(model="other")
    assert ward.refusal() is None
    assert newcomer not in ward.entry.waiting
    assert sorted(ward.entry.waiting) == [1, 2]


def test_without_recovery_a_death_ends_its_requests() -> None:
    ward = Ward(2, recovery="off")
    effects = ward.exits()
    assert ended(effects) == [(1, "worker_crashed"), (2, "worker_crashed")]
    assert not interrupted(effects)


def test_replay_takes_back_what_had_no_token() -> None:
    ward = Ward(3, recovery="replay")
    assert interrupted(ward.exits()) == [1, 2, 3]
    assert ended(ward.returned(1, 1)) == [(1, "worker_crashed")]
    ward.returned(2)
    ward.returned(3)
    assert trials(ward.ready()) == [(2, PROBATION, True)]
    assert tried(ward.passed(2)) == [3]


def test_replay_strikes_what_dies_alone_after_its_first_token() -> None:
    ward = Ward(0, recovery="replay")
    lease = ward.acquire(b"x")
    ward.ready()
    ward.dies()
    ward.exits()
    assert ended(ward.returned(lease, PROBATION - 1)) == [(lease, "worker_crashed")]
    assert ward.pool.docket.strikes(b"x", ward.now) == 1


# ── parking ──────────────────────────────────────────────────────────────────────────────────────


def drained(ward: Ward, why: str) -> list[Effect]:
    """What follows when the worker has to go though requests run."""
    if why == "by hand":
        ward.pool.unload("m", ward.now)
    elif why == "shutdown":
        ward.pool.shutdown(ward.now)
    elif why == "emergency":
        ward.pool.pressure(Level.CRITICAL, "figures", ward.now)
    else:
        ward.pool._evict(ward.entry, ward.pool.entries["other"], ward.now)
    return ward.after(LIMITS.emergency_drain if why == "emergency" else LIMITS.drain)


@pytest.mark.parametrize("why", ["eviction", "emergency"])
def test_what_has_to_stop_is_parked_and_goes_on_later(why: str) -> None:
    ward = Ward(2, max_recoveries=0, max_restarts=1)
    effects = drained(ward, why)
    assert interrupted(effects) == [1, 2]
    assert Stop("m", 1, kill=False) in effects
    ward.pool.pressure(Level.NORMAL, "figures", ward.now)
    ward.returned(1, 7)
    ward.returned(2, 8)
    assert Spawn("m", 2) in ward.pool.exited("m", 1, "exit status 0", ward.now)
    assert granted(ward.ready()) == [1, 2]
    assert ward.entry.deaths == 0


def test_what_is_parked_is_no_stalled_loads_fault() -> None:
    ward = Ward(1)
    drained(ward, "eviction")
    ward.returned(1, 7)
    ward.pool.exited("m", 1, "exit status 0", ward.now)
    late = ward.acquire()
    assert ended(ward.after(LIMITS.load_stall)) == [(late, "model_loading")]
    assert sorted(ward.entry.waiting) == [1]


def test_what_is_parked_learns_why_if_it_cannot_go_on() -> None:
    ward = Ward(1)
    drained(ward, "emergency")
    ward.returned(1)
    ward.exits()
    assert ended(ward.after(HOLD)) == [(1, "memory_pressure")]


@pytest.mark.parametrize(
    ("why", "code"), [("by hand", "model_loading"), ("shutdown", "shutting_down")]
)
def test_what_a_person_wants_gone_ends(why: str, code: str) -> None:
    ward = Ward(2)
    effects = drained(ward, why)
    assert ended(effects) == [(1, code), (2, code)]
    assert not interrupted(effects)


def test_a_trial_that_is_parked_is_held_again() -> None:
    ward = Ward(2)
    assert tried(ward.dies()) == [1]
    ward.passed(1)
    assert interrupted(drained(ward, "eviction")) == [1, 2]
    ward.returned(1, PROBATION + 1)
    ward.returned(2, 3)
    ward.exits()
    effects = ward.ready()
    assert trials(effects) == [(2, 3 + PROBATION, False)]
    assert granted(ward.passed(2)) == [1]


def test_a_drain_lets_the_trial_go_on_and_the_others_stand_theirs_elsewhere() -> None:
    ward = Ward(3)
    ward.dies()
    ward.passed(1)
    ward.pool._evict(ward.entry, ward.pool.entries["other"], ward.now)
    effects = ward.passed(2)
    assert proceeding(effects) == [1, 2]
    ward.release(1)
    assert Stop("m", 2, kill=False) in ward.release(2)
    ward.exits()
    assert trials(ward.ready()) == [(3, PROBATION, False)]


def test_a_shutdown_waits_for_nobody_to_return() -> None:
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    effects = ward.pool.shutdown(ward.now)
    assert sorted(ended(effects)) == [(1, "shutting_down"), (2, "shutting_down")]
    assert ward.returned(2) == []


# ── beside other models ──────────────────────────────────────────────────────────────────────────


def test_a_load_that_waits_at_the_gate_stops_no_trial_that_others_wait_for() -> None:
    ward = Ward(3, load_gate="exclusive")
    ward.dies()
    ward.passed(1)
    ward.acquire(model="other")
    assert ward.pool.entries["other"].state is State.COLD
    assert tried(ward.passed(2)) == [3]
    assert proceeding(ward.passed(3)) == [1, 2]
    late = ward.acquire()
    for lease in (1, 2, 3):
        effects = ward.release(lease)
    assert Spawn("other", 1) in effects
    assert late in ward.entry.waiting


def test_suspects_wait_at_the_gate_like_anybody_when_none_is_paused() -> None:
    ward = Ward(2, load_gate="exclusive", load_gate_timeout=5.0)
    assert tried(ward.dies()) == [1]
    other = ward.acquire(model="other")
    assert Spawn("other", 1) in ward.after(5.0)
    assert not tried(ward.release(1))
    effects = ward.pool.ready("other", 1, 0, 1, ward.now)
    assert granted(effects) == [other]
    assert tried(effects) == [2]


# ── loads and the breaker ────────────────────────────────────────────────────────────────────────


def test_a_death_while_it_loads_keeps_who_waits_but_no_person() -> None:
    ward = Ward(0)
    lease = ward.acquire()
    by_hand, _ = ward.pool.load("p", "m", HOLD, ward.now)
    effects = ward.exits()
    assert ended(effects) == [(by_hand, "worker_crashed")]
    assert Spawn("m", 2) in effects
    assert granted(ward.ready()) == [lease]


def crash_loop(ward: Ward) -> list[Effect]:
    """Three deaths without a token."""
    effects: list[Effect] = []
    for _ in range(3):
        if ward.state() is State.COLD:
            ward.acquire()
        effects = ward.exits()
    return effects


def test_a_model_that_keeps_dying_is_left_alone_for_a_while() -> None:
    ward = Ward(0, max_restarts=3)
    lease = ward.acquire()
    effects = crash_loop(ward)
    assert ended(effects) == [(lease, "model_unavailable")]
    assert ward.state() is State.CRASHED
    ward.acquire()
    assert ward.refusal() == "model_unavailable"
    assert ward.pool.preload("m", ward.now) == []
    assert ward.pool.next_deadline() == 5.0
    ward.after(4.9)
    assert ward.state() is State.CRASHED
    ward.after(0.1)
    ward.acquire()  # the probe
    assert ward.state() is State.LOADING
    ward.exits()
    assert ward.pool.next_deadline() == 15.0
    ward.after(10.0)
    probe = ward.acquire()
    assert granted(ward.ready()) == [probe]
    ward.passed(probe)
    assert tried(ward.dies()) == [probe]


def test_who_leaves_before_its_first_token_proves_nothing() -> None:
    ward = Ward(0, max_restarts=3)
    for _ in range(2):
        lease = ward.acquire()
        ward.ready()
        ward.release(lease)
        ward.exits()
    ward.acquire()
    ward.exits()
    assert ward.state() is State.CRASHED
    assert not ward.entry.proven


def test_tokens_are_asked_for_while_they_are_news() -> None:
    def untils(effects: Iterable[Effect]) -> list[int]:
        return [effect.until for effect in effects if isinstance(effect, Grant)]

    ward = Ward(0)
    first, second = ward.acquire(), ward.acquire()
    assert untils(ward.ready()) == [1, 1]
    ward.passed(first)
    assert untils(ward.pool.acquire("r", "m", HOLD, ward.now)[1]) == [0]
    assert untils(ward.dies(Fault.OUTSIDE)) == [1, 1, 1]
    ward.passed(second)
    assert untils(ward.dies(Fault.OUTSIDE, r1=7)) == [0, 0, 0]  # a token of the last worker's


@pytest.mark.parametrize("when", ["crashed", "half-open", "releasing"])
def test_a_person_may_try_at_once(when: str) -> None:
    ward = Ward(0, max_restarts=3, release=ReleaseRule.WHEN_SEEN)
    ward.acquire()
    for number in range(3):
        ward.exits()
        if when != "releasing" or number < 2:
            ward.pool.memory_seen(0, ward.now)
    if when == "half-open":
        ward.after(5.0)
    by_hand, _ = ward.pool.load("p", "m", HOLD, ward.now)
    ward.pool.memory_seen(0, ward.now)
    assert ward.state() is State.LOADING
    assert by_hand in ward.entry.waiting
    ward.exits()
    ward.pool.memory_seen(0, ward.now)
    assert ward.state() is not State.CRASHED  # the first death of three


def test_who_returns_to_a_model_that_is_left_alone_or_failed_is_told_so() -> None:
    ward = Ward(2, max_restarts=1)
    ward.exits()
    assert ward.state() is State.CRASHED
    assert ended(ward.returned(1)) == [(1, "model_unavailable")]
    ward.after(5.0)  # half-open; the second has given up
    ward = Ward(2)
    ward.exits()
    ward.returned(1)
    ward.pool.load_failed("m", 2, "no such file", ward.now)
    ward.exits()
    assert ward.state() is State.FAILED
    assert ended(ward.returned(2)) == [(2, "model_load_failed")]


def test_a_death_that_convicts_does_not_count_against_the_model() -> None:
    ward = Ward(1, max_restarts=3)
    assert tried(ward.dies()) == [1]
    assert tried(ward.dies()) == [1]
    ward.exits()
    assert ward.state() is State.COLD
    assert convicted(ward.returned(1)) == ["r1"]


def test_a_model_that_worked_once_is_left_alone_before_it_convicts_everybody() -> None:
    ward = Ward(1, max_restarts=3)
    ward.dies()
    ward.dies()
    ward.exits()
    assert convicted(ward.returned(1)) == ["r1"]
    ward.acquire()
    ward.ready()
    ward.exits()
    assert ward.entry.state is State.CRASHED


def test_tokens_that_were_told_of_are_no_news_after_the_next_death() -> None:
    ward = Ward(1, max_restarts=2)
    assert tried(ward.dies()) == [1]
    ward.passed(1)
    assert tried(ward.dies(r1=PROBATION)) == [1]
    ward.exits()
    assert ward.entry.state is State.CRASHED


def test_deaths_from_outside_count_against_the_model_whoever_is_on_trial() -> None:
    ward = Ward(1, max_restarts=3)
    ward.dies()
    ward.dies()
    ward.exits(Fault.OUTSIDE)
    assert ward.state() is State.CRASHED


def test_nothing_is_due_after_a_shutdown_whatever_died_last() -> None:
    ward = Ward(1, max_restarts=1, release=ReleaseRule.WHEN_SEEN)
    ward.exits()
    ward.pool.shutdown(ward.now)
    ward.pool.memory_seen(0, ward.now)
    assert ward.state() is State.COLD
    assert ward.pool.next_deadline() is None


def test_a_load_by_hand_is_answered_while_a_trial_runs() -> None:
    ward = Ward(1)
    ward.dies()
    lease, effects = ward.pool.load("p", "m", HOLD, ward.now)
    assert effects == [Loaded(lease, "m", "m#2")]
