"""What a world knows of deaths: who is suspected, on probation, or quarantined, and who goes on.

`DeathAccounts` is told by the world what happens to its workers and requests, and by the effects
what the scheduler makes of it, and raises `Violation` when that is not what was promised:

* who ran in a worker that died runs again alone, first, until it has passed; but for OUTSIDE;
* while one is on probation nobody else runs there: who has passed is paused, the rest waits;
* nobody stays paused, and no suspect waits, where one of them could run alone;
* quarantined are those, and all those, who died alone twice without passing, on a model that
  works;
* a death is forgiven so often and not more often; what has a token is not replayed;
* a model is left alone after so many deaths without a token, for as long as documented.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from supervisor.scheduler.blame import DEATHS_ALONE_MAX, PROBATION_TOKENS
from supervisor.scheduler.breaker import BACKOFF_FIRST
from supervisor.scheduler.death import Death, Fault
from supervisor.scheduler.effects import Grant
from supervisor.scheduler.model import Rules

_INTERRUPTIONS_MAX = 20
_EPSILON = 1e-6


def death_of(fault: Fault) -> Death:
    """A death that was the fault of these."""
    return Death("some-id", "it died", "See to it.", fault)


class Violation(AssertionError):
    """The scheduler did what it must not."""


def check(holds: object, text: str) -> None:
    if not holds:
        raise Violation(text)


@dataclass
class Request:
    """What the world knows of one lease."""

    model: str
    deadline: float
    by_hand: bool
    status: str = "waiting"
    """waiting, granted, returning"""
    name: str = ""
    hold: float = 0.0
    digest: bytes = b""
    poison: bool = False
    """It kills whatever it runs in."""
    position: int = 0
    until: int = 0
    """Where its grant asks to hear of it; 0 = nowhere, or it was heard."""
    suspect: bool = False
    on_probation: bool = False
    pauses: bool = False
    paused: bool = False
    interrupted: bool = False
    """Ever."""
    death_undecided: bool = False
    fault: Fault | None = None
    """Whose its last death was, once that is known."""
    unproductive: int = 0
    interruptions: int = 0
    keep_alive: float | None = None
    """What it says of the model's time to live, until it is served."""


@dataclass
class Record:
    """One model's deaths since its last token."""

    proven: bool = False
    deaths: list[float] = field(default_factory=list)
    trips: int = 0
    pause: tuple[float, float] | None = None
    """At least and at most, seconds: how long it must be left alone after its last death."""

    def progressed(self) -> None:
        self.proven, self.trips = True, 0
        self.deaths.clear()

    def forgiven(self) -> None:
        """Somebody asked by hand."""
        self.trips, self.pause = 0, None
        self.deaths.clear()

    def died(self, rules: Rules, now: float) -> None:
        self.deaths.append(now)
        recent = [at for at in self.deaths if at > now - rules.restart_window]
        if self.trips or len(recent) >= rules.max_restarts:
            longest = min(rules.backoff_max, BACKOFF_FIRST * 2**self.trips)
            self.trips += 1
            self.pause = (0.75 * longest, longest)


class DeathAccounts:
    """The cases of one world."""

    def __init__(
        self, rules: Rules, requests: dict[int, Request], models: Iterable[str], *, calm: bool
    ) -> None:
        """`requests` are the open ones, by lease. In a `calm` world only poison kills."""
        self._rules = rules
        self._requests = requests
        self.calm = calm
        self.records = {model: Record() for model in models}
        self.quarantined: set[bytes] = set()
        self._deaths_alone: Counter[bytes] = Counter()
        """Deaths alone since it last passed."""
        self._untold: set[str] = set()
        """Requests that must be quarantined, and nobody has said so."""
        self._absent: list[Request] = []
        """They left before it was known whose fault their death was."""

    def of(self, model: str, status: str) -> list[tuple[int, Request]]:
        return [
            (lease, request)
            for lease, request in self._requests.items()
            if request.model == model and request.status == status and not request.by_hand
        ]

    def suspects(self, model: str) -> list[tuple[int, Request]]:
        return [(lease, request) for lease, request in self.of(model, "waiting") if request.suspect]

    def probation(self, model: str) -> bool:
        return any(request.on_probation for _, request in self.of(model, "granted"))

    # ── what happens ─────────────────────────────────────────────────────────────────────────────

    def died(self, model: str, fault: Fault, now: float) -> None:
        """A worker has died unasked, and it is known why. Those in it are not told yet."""
        record = self.records[model]
        early = [r for r in (*self._requests.values(), *self._absent) if r.model == model]
        early = [request for request in early if request.death_undecided and request.fault is None]
        inside = [*early, *(request for _, request in self.of(model, "granted"))]
        quarantines = fault is not Fault.OUTSIDE and record.proven
        if not quarantines or not any(
            request.on_probation and self._deaths_alone[request.digest] + 1 >= DEATHS_ALONE_MAX
            for request in inside
        ):
            record.died(self._rules, now)
        for request in inside:
            request.fault = fault
        for request in early:
            if request.status == "waiting":
                self._decide(request)
        for request in self._absent:
            if request.fault is not None and request.death_undecided:
                self._decide(request)
        self._absent = [request for request in self._absent if request.death_undecided]

    def returns(self, request: Request, position: int, now: float) -> None:
        """It says where it stands."""
        if position > request.position:
            request.position, request.unproductive = position, 0
            self.records[request.model].progressed()
        request.status, request.deadline = "waiting", now + request.hold
        if request.death_undecided and request.fault is not None:
            self._decide(request)

    def passes(self, request: Request) -> None:
        """It says that it has come as far as it was asked for."""
        self.records[request.model].progressed()
        if request.on_probation:
            del self._deaths_alone[request.digest]
            request.suspect = request.on_probation = False
            request.paused = request.pauses
            request.position, request.unproductive = max(request.position, request.until), 0
        request.until = 0

    def ends(self, request: Request) -> None:
        """It leaves, or is refused."""
        if request.death_undecided and request.on_probation:
            if request.fault is None:
                self._absent.append(request)
            else:
                self._decide(request)

    def _decide(self, request: Request) -> None:
        fault, request.fault, request.death_undecided = request.fault, None, False
        if request.paused:
            request.paused = False
            return
        request.unproductive += 1
        request.interruptions += 1
        request.suspect |= fault is not Fault.OUTSIDE
        alone, request.on_probation = request.on_probation, False
        if alone and request.position >= request.until:
            del self._deaths_alone[request.digest]
        elif alone and fault is not Fault.OUTSIDE:
            self._deaths_alone[request.digest] += 1
            record = self.records[request.model]
            if self._deaths_alone[request.digest] >= DEATHS_ALONE_MAX and record.proven:
                self.quarantined.add(request.digest)
                self._untold.add(request.name)

    # ── what the scheduler says ──────────────────────────────────────────────────────────────────

    def interrupt(self, request: Request, *, parked: bool) -> None:
        request.status, request.interrupted = "returning", True
        request.death_undecided = not parked
        if parked:
            request.paused = request.on_probation = False

    def grant(self, lease: int, request: Request, grant: Grant, limit: int) -> None:
        """A waiting one gets a place, of which there are `limit`, 0 = any number; `request` still
        counts as one that waits."""
        model = request.model
        check(request.digest not in self.quarantined, f"{lease} is quarantined and granted")
        check(not request.death_undecided, f"{lease} is granted before its death is decided")
        check(not self.of(model, "returning"), f"{lease} is granted while others return")
        check(not self.probation(model), f"{lease} is granted beside a probation")
        suspects = self.suspects(model)
        if suspects:
            check(request.suspect, f"{lease} is granted while suspects wait")
            order = [(self._deaths_alone[r.digest], r.position, i) for i, r in suspects]
            check(min(order)[2] == lease, f"{lease} is on probation before {min(order)[2]}")
            running = [i for i, r in self.of(model, "granted") if not r.paused]
            check(not running, f"{lease} is on probation beside {running}")
            check(
                grant.until == request.position + PROBATION_TOKENS, "its probation is not so long"
            )
            more = len(suspects) > 1 and len(self.of(model, "granted")) + 1 != limit
            check(grant.then_pause == more, f"{lease} pauses for nobody, or does not")
            request.on_probation = True
        else:
            first = min(i for i, _ in self.of(model, "waiting"))
            check(first == lease, f"{lease} is granted before {first}")
            record = self.records[model]
            news = not record.proven or record.deaths
            asked = request.position + 1 if news else 0
            check(grant.until == asked, f"{lease} is asked to tell of token {grant.until}")
            check(not grant.then_pause, f"{lease} pauses without a probation")
        request.until, request.pauses = grant.until, grant.then_pause

    def unpause(self, lease: int, request: Request, limit: int, *, drains: bool) -> None:
        """A paused one goes on. Before the suspects only if these have no place: all `limit` are
        taken, or somebody runs who had the last one."""
        check(request.paused and request.status == "granted", f"{lease} goes on and did not pause")
        check(not self.probation(request.model), f"{lease} goes on beside a probation")
        granted = self.of(request.model, "granted")
        placeless = 0 < limit <= len(granted) or any(not each.paused for _, each in granted)
        waits = self.suspects(request.model) and not drains and not placeless
        check(not waits, f"{lease} goes on before the suspects")
        request.paused = False

    def quarantine(self, model: str, name: str) -> None:
        check(name in self._untold, f"{name} is quarantined without cause")
        self._untold.discard(name)

    def refused(self, lease: int, request: Request, code: str, now: float) -> None:
        """One that had been interrupted, or is quarantined, ends: with cause?"""
        if code == "request_crashed_worker":
            check(request.digest in self.quarantined, f"{lease} is blamed")
            poison = request.poison or not self.calm
            check(poison, f"{lease} is blamed for what poison has done")
            return
        if request.interrupted and code != "shutting_down":
            late = request.deadline <= now
            check(
                late or self.gives_up(request) or code.startswith("model_"),
                f"{lease} gives up with {code}",
            )

    def gives_up(self, request: Request) -> bool:
        if self.calm and not request.poison and self._rules.max_recoveries:
            exhausted = request.interruptions > _INTERRUPTIONS_MAX
        else:
            useless = request.unproductive > self._rules.max_recoveries
            exhausted = useless or request.interruptions > _INTERRUPTIONS_MAX
        replayed = self._rules.recovery == "replay" and request.position > 0
        return exhausted or (replayed and request.status == "waiting")

    # ── what must hold after every step ──────────────────────────────────────────────────────────

    def compare(self, model: str, state: str, *, closed: bool) -> None:
        """`state` is the model's, `closed` whether a load gate keeps its requests waiting."""
        check(not self._untold, f"{self._untold} are quarantined and nobody says so")
        granted = self.of(model, "granted")
        running = [lease for lease, request in granted if not request.paused]
        paused = [lease for lease, request in granted if request.paused]
        for lease, request in self.of(model, "waiting"):
            check(request.digest not in self.quarantined, f"{lease} is quarantined and waits")
            exhausted = (
                request.interrupted and not request.death_undecided and self.gives_up(request)
            )
            check(not exhausted, f"{lease} never gives up")
        if self.probation(model):
            check(len(running) == 1, f"{running} run beside a probation")
        elif state in ("ready", "draining"):
            check(not paused, f"{paused} are paused for nobody")
        if state == "ready" and not self.probation(model) and not self.of(model, "returning"):
            held = running or (closed and not granted)
            check(not self.suspects(model) or held, f"{model} is ready and suspects wait")
        unheard = self.records[model].pause is not None and state != "releasing"
        check(not unheard, f"{model} keeps dying and is not left alone")

    def crashed(self, model: str, left: float) -> None:
        """The scheduler leaves the model alone for so long."""
        pause = self.records[model].pause
        check(pause is not None, f"{model} is left alone")
        assert pause is not None
        least, most = pause
        check(least - _EPSILON <= left <= most + _EPSILON, f"{model} is left alone for {left} s")
        self.records[model].pause = None
