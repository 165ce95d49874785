"""The oracle finds what goes wrong after a death."""

from __future__ import annotations

import re

import pytest

from supervisor.scheduler import recovery
from supervisor.scheduler.blame import BlameRecords
from supervisor.scheduler.breaker import Breaker
from supervisor.scheduler.death import Fault
from supervisor.scheduler.effects import Effect
from supervisor.scheduler.lease import Lease
from supervisor.scheduler.model import LearnedLimit, Model
from supervisor.scheduler.recovery import Recovery
from tests.property.planted import Bug, Bugs, promise, violation_of

bugs = Bugs()

decide_death = Recovery.decide_death
died = Breaker.died
pass_place = Recovery.pass_place
suspect = Recovery._suspect
add_death = BlameRecords.add_death
convict = Recovery._convict
take_back = Recovery.take_back
try_suspects = Recovery.try_suspects


@bugs.plant("all come back together", Recovery, "_suspect", 1, r"\w is ready and those .* wait")
def suspect_everybody(
    self: Recovery, model: Model, lease: Lease, now: float, *, pointed: bool
) -> list[Effect]:
    return suspect(self, model, lease, now, pointed=True)


@bugs.plant(
    "nobody who is back waits for suspects", Recovery, "try_suspects", 8, r"\d+ is tried before .*"
)
def try_suspects_first(self: Recovery, model: Model, now: float) -> list[Effect]:
    return [self._try(model, model.suspects[0])]


@bugs.plant("one at a time is tried", Recovery, "try_suspects", 8, r"\d+ is on probation beside .*")
def try_all_suspects(self: Recovery, model: Model, now: float) -> list[Effect]:
    effects = try_suspects(self, model, now)
    if model.suspects and model.granted and self._requests.free_places(model):
        effects.append(self._try(model, model.suspects[0]))
    return effects


@bugs.plant("who had hardly begun is tried", recovery, "hardly_begun", 8, r"\d+ is tried before .*")
def point_at_nobody(inside: list[Lease]) -> list[Lease]:
    return []


@bugs.plant(
    "the accused is tried first", BlameRecords, "deaths", 3, r"\d+ is granted before \d+, .*"
)
def accuse_nobody(self: BlameRecords, digest: bytes, now: float) -> int:
    return 0


@bugs.plant("no hold runs in a recovery", Model, "hold_ends", 0, r"\d+ gives up with .*")
def hold_runs_always(self: Model, lease: Lease) -> float | None:
    return lease.deadline


@bugs.plant(
    "a hold runs where there is no room", Model, "hold_ends", 0, "a hold that nobody watches"
)
def hold_runs_never(self: Model, lease: Lease) -> float | None:
    return lease.deadline if lease.error is None else None


@bugs.plant(
    "a death from outside is nobody's", Recovery, "decide_death", 1, r"\d+ is asked to tell .*"
)
def suspect_after_any_death(self: Recovery, model: Model, now: float) -> list[Effect]:
    if model.undecided is not None and model.undecided.fault is not None:
        model.undecided.fault = Fault.REQUEST
    return decide_death(self, model, now)


@bugs.plant("who has passed is cleared", Recovery, "pass_place", 60, r"\w is ready and \[.+\] wait")
def nobody_passes(self: Recovery, model: Model, lease: Lease, now: float) -> list[Effect]:
    return []


@bugs.plant(
    "who is acquitted was one too many", Recovery, "pass_place", 8, r"\w may run \d+ and .*"
)
def acquit_and_forget(self: Recovery, model: Model, lease: Lease, now: float) -> list[Effect]:
    lease.accused_among = frozenset()
    return pass_place(self, model, lease, now)


@bugs.plant(
    "a crowd that dies again is too large", Recovery, "_presume", 1, r"\w may run \d+ and .*"
)
def presume_nothing(
    self: Recovery, model: Model, limit: LearnedLimit, crowd: frozenset[int], why: str
) -> list[Effect]:
    return []


@bugs.plant(
    "who died as the only one on trial, then alone, is quarantined",
    Recovery,
    "_count_death",
    7,
    r"\{.+\} are quarantined and nobody says so",
)
def count_no_death(
    self: Recovery, model: Model, lease: Lease, inside: list[Lease], now: float
) -> list[Effect]:
    return []


@bugs.plant(
    "the last of them is alone", BlameRecords, "add_death", 0, r".* is quarantined without cause"
)
def count_every_death_as_alone(
    self: BlameRecords, digest: bytes, now: float, *, alone: bool
) -> int:
    return add_death(self, digest, now, alone=True) + add_death(self, digest, now, alone=True)


@bugs.plant(
    "a model is proven anew after a quarantine", Recovery, "_convict", 3, r"\d+ is asked to tell .*"
)
def stay_proven(self: Recovery, model: Model, lease: Lease) -> list[Effect]:
    effects = convict(self, model, lease)
    model.proven = True
    return effects


@bugs.plant("one of a crowd is found first", Breaker, "died", 0, r"\w is left alone")
def allow_no_crowd(self: Breaker, now: float, *, crowd: bool = False) -> float | None:
    return died(self, now)


@bugs.plant(
    "who is quarantined is refused",
    BlameRecords,
    "is_quarantined",
    13,
    r"\d+ is quarantined and admitted",
)
def admit_quarantined(self: BlameRecords, digest: bytes, now: float) -> bool:
    return False


@bugs.plant("so many deaths are forgiven and no more", Recovery, "_suspect", 4, r"\d+ never .* up")
def forgive_every_death(
    self: Recovery, model: Model, lease: Lease, now: float, *, pointed: bool
) -> list[Effect]:
    unproductive, lease.unproductive = lease.unproductive, 0
    effects = suspect(self, model, lease, now, pointed=pointed)
    lease.unproductive = unproductive
    return effects


@bugs.plant("what has a token is not replayed", Recovery, "take_back", 10, r"\d+ never gives up")
def forget_what_was_sent(
    self: Recovery, model: Model, lease: Lease, position: int, now: float, hold: float = 0
) -> list[Effect]:
    return take_back(self, model, lease, 0, now, hold)


@bugs.plant(
    "a model that keeps dying is left alone",
    Breaker,
    "died",
    0,
    r"\w keeps dying and is not left alone",
)
def never_open(self: Breaker, now: float, *, crowd: bool = False) -> float | None:
    return None


@pytest.mark.parametrize("planted", bugs, ids=promise)
def test_a_broken_promise_is_found(planted: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(planted.violation, violation_of(planted, monkeypatch))
