"""The oracle finds what goes wrong with loans, above a charge, and under pressure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from supervisor.scheduler import loans, overcharge
from supervisor.scheduler.effects import Effect, Lend
from supervisor.scheduler.ledger import Key, Ledger
from supervisor.scheduler.lifecycle import HAS_PROCESS
from supervisor.scheduler.loans import ALL, LoanNeeds, Loans
from supervisor.scheduler.model import Model
from supervisor.scheduler.out_of_reach import OutOfReach
from supervisor.scheduler.plan import Capacity, Loan, Need, Tenant, _Planning
from supervisor.scheduler.relief import Relief
from supervisor.scheduler.state import PoolState
from tests.property.planted import Bug, Bugs, promise, violation_of

bugs = Bugs()

open_needs, needs, repaid = Loans.open_needs, Loans.needs, Loans.repaid


# ── loans ────────────────────────────────────────────────────────────────────────────────────────


@bugs.plant("no loan beyond the budget", Capacity, "free_for", 0, r"OverBudget: .*")
def lend_what_is_not_free(self: Capacity, need: Need) -> float:
    return 1e12


@bugs.plant("a loan is charged before it is told", Loans, "lend", 0, r"\w: charge is wrong")
def lend_without_a_charge(self: Loans, key: Key, size: int) -> Effect:
    self._say(key, loans._less(self._said[key], size))
    return Lend(*key, size)


@bugs.plant(
    "idle loans are called back", _Planning, "_idle_loans", 2, r"\w \w+ .*\d+ of loans are idle"
)
def see_no_idle_loan(self: _Planning, counts: Callable[[Loan], bool]) -> int:
    return 0


@bugs.plant("one thing is asked at a time", Loans, "recallable", 1, "AssertionError: .*")
def ask_again_at_once(self: Loans, key: Key) -> int:
    said = self._said.get(key)
    return 0 if said is None else min(said.idle, self._state.ledger.lent(key))


@bugs.plant("nobody waits for an answer for ever", Loans, "expire", 0, "a tick leaves what is due")
def wait_for_an_answer_for_ever(self: Loans, now: float) -> list[Effect]:
    return []


@bugs.plant(
    "no busy model is evicted for another's cache",
    _Planning,
    "_open_to",
    3,
    r"busy \w is drained before anybody waited long enough",
)
def evict_busy_for_a_need(self: _Planning, need: Need) -> list[Tenant]:
    return [each for each in self._left if each.candidate.model != need.worker[0]]


@bugs.plant(
    "the oldest request gets the youngest's memory",
    _Planning,
    "_park_for",
    3,
    r"\w waits and younger \w is not parked",
)
def park_nobody(self: _Planning, need: Need, short: int) -> None:
    pass


@bugs.plant("nobody older is parked", _Planning, "_park_for", 1, r"\w parks for nobody older")
def park_an_older_one(self: _Planning, need: Need, short: int) -> None:
    live = [loan for loan in self._loans if loan.parkable]
    if live:
        loan = min(live, key=lambda each: each.youngest)
        self._plan.park = (loan.worker, min(short, loan.parkable))


@bugs.plant(
    "the youngest of all is parked", _Planning, "_park_for", 10, r"\w parks before younger \w"
)
def park_another_than_the_youngest(self: _Planning, need: Need, short: int) -> None:
    live = [loan for loan in self._loans if loan.parkable and loan.youngest > need.since]
    if live:
        loan = min(live, key=lambda each: each.youngest)
        self._plan.park = (loan.worker, min(short, loan.parkable))


@bugs.plant(
    "what is free is lent ahead of need", Loans, "open_needs", 0, r"\d+ are free and \w waits .*"
)
def lend_only_what_is_needed(self: Loans) -> list[Need]:
    return [need for need in open_needs(self) if need.least]


@bugs.plant("nobody waits for what can never be", OutOfReach, "look", 36, r"\w waits for ever")
def wait_for_it_for_ever(self: OutOfReach, now: float) -> list[Effect]:
    return []


@bugs.plant(
    "nobody is loaded anew for what may be yet", PoolState, "most_for", 0, r"\w is evicted for .*"
)
def think_that_nothing_can_be(self: PoolState, model: Model) -> float:
    return self.ledger.of(model.current.key) if model.state in HAS_PROCESS else math.inf


# ── words that cross ─────────────────────────────────────────────────────────────────────────────


@bugs.plant(
    "no idle model goes for what is on its way", Loans, "needs", 179, r"\w is evicted for nobody .*"
)
def overlook_what_is_on_its_way(self: Loans, model: Model, said: LoanNeeds) -> None:
    needs(self, model, replace(said, heard=ALL))


@bugs.plant(
    "no more is lent than is of use", Loans, "needs", 0, r"lent without need|\d+ lent, for .*"
)
def overlook_some_of_it(self: Loans, model: Model, said: LoanNeeds) -> None:
    needs(self, model, replace(said, heard=said.heard + self._lent.get(model.current.key, 0) // 2))


@bugs.plant(
    "what is of use is lent as it becomes free", loans, "_less", 3, r"\d+ are free and \w waits .*"
)
def forget_what_was_of_use(said: LoanNeeds, lent: int) -> LoanNeeds:
    return replace(said, least=0, most=0) if lent else said


@bugs.plant("what has come back is idle no more", Loans, "repaid", 61, r"asked for \d+, and .*")
def take_it_for_idle_still(self: Loans, model: Model, size: int, number: int, now: float) -> None:
    before = self._said.get(model.current.key)
    repaid(self, model, size, number, now)
    if before is not None and not number:
        self._say(model.current.key, before)


@bugs.plant(
    "no more is awaited than there is", Loans, "_expected", 14, r"\w needs \d+ while .* are idle"
)
def await_what_is_used_by_now(self: Loans, key: Key, asked: loans._Asked) -> int:
    return min(asked.bytes, self._state.ledger.lent(key))


# ── workers above their charge, and pressure ─────────────────────────────────────────────────────


@bugs.plant("who holds what it may is let alone", overcharge, "is_over", 0, "shrinks without need")
def everybody_has_outgrown(footprint: int, charge: int) -> bool:
    return True


@bugs.plant(
    "what is held counts against the charge of that time",
    Ledger,
    "footprint",
    0,
    "shrinks without need",
)
def count_it_against_a_later_charge(self: Ledger, key: Key, size: int) -> None:
    if (charge := self.charges.get(key)) is not None and not charge.is_gone:
        charge.footprint, charge.allowed = size, charge.bytes


@bugs.plant(
    "no restart in a cycle", Model, "may_restart_for_excess", 15, r"\w is restarted in a cycle"
)
def restart_at_once(self: Model, now: float) -> bool:
    return True


@bugs.plant(
    "pressure that did not help spares for a while",
    Relief,
    "_spares",
    49,
    r"\w is unloaded in vain .*",
)
def spare_nobody(self: Relief, model: Model, now: float) -> bool:
    return False


@pytest.mark.parametrize("planted", bugs, ids=promise)
def test_a_broken_promise_is_found(planted: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(planted.violation, violation_of(planted, monkeypatch))
