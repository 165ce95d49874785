"""What a world knows of deaths: who is suspected, on probation, or quarantined, and who goes on.

`DeathAccounts` is told by the world what happens to its workers and requests, and by the effects
what the scheduler makes of it, and raises `Violation` when that is not what was promised:

* who ran in a worker that died comes back at once, together with the others, as far as there are
  places; nobody waits for one who is tried but the accused's own worker, and nobody's hold runs;
* a suspect is tried once all others in its worker have passed, one at a time; who is accused is
  tried first and with the worker to itself;
* quarantined are those, and all those, who died as the only one on trial twice without passing, the
  last time alone, on a model that works;
* a crowd that dies again, and one that was accused and passes, lower the model's limit;
* a death is forgiven so often and not more often; what has a token is not replayed;
* a model is left alone after so many deaths without a token, for as long as documented.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from supervisor.scheduler.blame import DEATHS_MAX, PROBATION_TOKENS
from supervisor.scheduler.breaker import BACKOFF_FIRST, CROWD_GRACE
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
    """waiting, granted, returning, ended"""
    name: str = ""
    hold: float = 0.0
    digest: bytes = b""
    poison: bool = False
    """It kills whatever it runs in."""
    position: int = 0
    start: int = 0
    """Where it was granted."""
    until: int = 0
    """Where its grant asks to hear of it; 0 = nowhere, or it was heard."""
    awaited: bool = False
    """Since a death it has not passed yet."""
    suspect: bool = False
    on_probation: bool = False
    interrupted: bool = False
    """Ever."""
    unproductive: int = 0
    interruptions: int = 0
    deaths: int = 0
    """That were not from outside."""
    stuck: int = 0
    """Of them, since it last passed."""
    among: int = 0
    """How many there were when it was accused beside others."""
    places: int = 1
    """Choices that have not ended."""
    at_once: int = 0
    """How many of them it can use at a time, 0 = all."""
    held: int = 0
    """How many are on the worker, or may be, while it is granted."""
    allowed: int = 0
    """How many may be, once those that are too many have ended."""
    keep_alive: float | None = None
    """What it says of the model's time to live, until it is served."""

    @property
    def wants(self) -> int:
        return min(self.places, self.at_once or self.places)


@dataclass
class Scene:
    """A death that is not decided yet."""

    inside: list[Request]
    fault: Fault | None = None
    memory: bool = False
    """It lowers the limit by itself."""
    limit: int = 0
    """Of the model when it died, 0 = none."""

    @property
    def choices(self) -> int:
        """That ran, of all requests."""
        return sum(request.held for request in self.inside)

    @property
    def fewer(self) -> bool:
        """Whether half of those that were inside are fewer than there may be."""
        most, many = self.limit or self.choices, self.choices
        half = max(1, (min(most, many) if many > 1 else most) // 2)
        return half < most


@dataclass
class Blame:
    """What is known of a digest since it last passed."""

    deaths: int = 0
    alone: bool = False

    @property
    def guilty(self) -> bool:
        return self.deaths >= DEATHS_MAX and self.alone


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

    def died(self, rules: Rules, now: float, *, crowd: bool) -> None:
        self.deaths.append(now)
        recent = [at for at in self.deaths if at > now - rules.restart_window]
        if self.trips or len(recent) >= rules.max_restarts + CROWD_GRACE * crowd:
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
        self.ends_all = rules.recovery == "off"
        """Whether deaths end their requests: without recovery, or in a shutdown."""
        self._blame: dict[bytes, Blame] = {}
        self._scenes: dict[str, Scene] = {}
        self._untold: set[str] = set()
        """Requests that must be quarantined, and nobody has said so."""
        self._lowers: dict[str, int] = {}
        """Models whose limit must be at most so much by the end of this step."""

    def of(self, model: str, status: str) -> list[tuple[int, Request]]:
        return [
            (lease, request)
            for lease, request in self._requests.items()
            if request.model == model and request.status == status and not request.by_hand
        ]

    def suspects(self, model: str) -> list[tuple[int, Request]]:
        return [(lease, request) for lease, request in self.of(model, "waiting") if request.suspect]

    def clear(self, model: str) -> list[tuple[int, Request]]:
        """Those who were interrupted, wait, and are no suspects."""
        waiting = self.of(model, "waiting")
        return [(i, r) for i, r in waiting if r.interrupted and not r.suspect]

    def probation(self, model: str) -> bool:
        return any(request.on_probation for _, request in self.of(model, "granted"))

    def blame(self, request: Request) -> Blame:
        return self._blame.get(request.digest, Blame())

    def accused(self, model: str) -> list[int]:
        """Suspects that have a death and may not be guilty."""
        return [
            lease
            for lease, request in self.suspects(model)
            if self.blame(request).deaths and not self.blame(request).guilty
        ]

    # ── what happens ─────────────────────────────────────────────────────────────────────────────

    def died(self, model: str, fault: Fault, now: float, *, memory: bool, limit: int) -> None:
        """A worker has died unasked, and it is known why; `memory`: by that it lowers the `limit`.
        Those in it are perhaps not told yet."""
        record, granted = self.records[model], [r for _, r in self.of(model, "granted")]
        if granted and not self.ends_all:
            self._scenes[model] = Scene(granted)
        scene = self._scenes.get(model)
        if scene is not None and scene.fault is not None:
            scene = None  # of an earlier death
        convicts = False
        if scene is not None:
            scene.fault, scene.memory, scene.limit = fault, memory, limit
            one = scene.inside[0] if scene.choices == 1 else None
            convicts = (
                one is not None
                and fault is not Fault.OUTSIDE
                and record.proven
                and one.awaited
                and self.blame(one).deaths + 1 >= DEATHS_MAX
            )
        if not convicts:
            back = [r for status in ("waiting", "returning") for _, r in self.of(model, status)]
            came = [r for r in back if r.interrupted] + ([] if self.ends_all else granted)
            record.died(self._rules, now, crowd=len(came) > 1)
        if not granted:
            self._decide(model)

    def returns(self, request: Request, position: int, now: float) -> None:
        """It says where it stands."""
        if position > request.position:
            request.position, request.unproductive = position, 0
            self.records[request.model].progressed()
        request.status, request.deadline = "waiting", now + request.hold
        self._decide(request.model)

    def passes(self, request: Request) -> None:
        """It says that it has come as far as it was asked for."""
        self.records[request.model].progressed()
        if request.awaited:
            self._pass(request)
        request.until = 0

    def _pass(self, request: Request) -> None:
        self._blame.pop(request.digest, None)
        request.suspect = request.on_probation = request.awaited = False
        request.position = max(request.position, request.until)
        request.unproductive = request.stuck = 0
        if request.among:
            self._lower(request.model, request.among - 1)
            request.among = 0

    def _lower(self, model: str, most: int) -> None:
        self._lowers[model] = min(self._lowers.get(model, 2**31), max(1, most))

    def ends(self, request: Request) -> None:
        """It leaves, or is refused."""
        request.status = "ended"
        self._decide(request.model)

    def _decide(self, model: str) -> None:
        """What the last death means, once everybody has returned from it."""
        scene = self._scenes.get(model)
        if scene is None or scene.fault is None:
            return
        if any(request.status in ("returning", "granted") for request in scene.inside):
            return
        del self._scenes[model]
        inside, theirs = scene.inside, scene.fault is not Fault.OUTSIDE
        for request in inside:
            if request.awaited and request.position >= request.until:
                self._pass(request)
        on_trial = [request for request in inside if request.awaited]
        again = sum(request.held for request in inside if request.deaths) >= 2
        fresh = [r for r in inside if r.position < r.start + PROBATION_TOKENS]
        pointed = fresh if 2 * len(fresh) < len(inside) else []
        # Several choices of one request are a crowd of their own.
        judged = len(inside) > 1 and scene.fault is not Fault.MEMORY
        one = len(on_trial) == 1 and on_trial[0].held == 1 and judged
        counts = theirs and len(on_trial) == 1 and (scene.choices == 1 or one)
        lowers = theirs and again and not counts and not scene.memory
        for request in inside:
            if not ((scene.memory or lowers) and scene.fewer and request.unproductive):
                request.unproductive += 1
            request.interruptions += 1
            if theirs:
                request.deaths += 1
                request.stuck += 1
        if counts:
            (request,) = on_trial
            blame = self._blame.setdefault(request.digest, Blame())
            blame.deaths, blame.alone = blame.deaths + 1, len(inside) == 1
            if not blame.alone:
                request.among = len(inside)
            if blame.guilty:
                self._find_guilty(model, request)
        if lowers:
            self._lower(model, scene.choices // 2)
        for request in inside:
            was_tried, request.awaited, request.on_probation = request.on_probation, False, False
            stuck = request.stuck >= 2 or (request.stuck and self.blame(request).deaths)
            request.suspect = bool(was_tried or stuck or (theirs and request in pointed))

    def _find_guilty(self, model: str, request: Request) -> None:
        if self.records[model].proven:
            self.records[model].proven = False
            self.quarantined.add(request.digest)
            self._untold.add(request.name)

    # ── what the scheduler says ──────────────────────────────────────────────────────────────────

    def interrupt(self, request: Request, *, parked: bool) -> None:
        request.status, request.interrupted = "returning", True
        if parked:
            request.suspect |= request.on_probation
            request.on_probation = False
            return
        scene = self._scenes.setdefault(request.model, Scene([]))
        if request not in scene.inside:
            scene.inside.append(request)

    def grant(self, lease: int, request: Request, grant: Grant, limit: int) -> None:
        """A waiting one gets a place, of which there are `limit`, 0 = any number; `request` still
        counts as one that waits."""
        model = request.model
        check(request.digest not in self.quarantined, f"{lease} is quarantined and granted")
        check(model not in self._scenes, f"{lease} is granted before a death is decided")
        check(not self.of(model, "returning"), f"{lease} is granted while others return")
        check(not self.probation(model), f"{lease} is granted beside a probation")
        granted, suspects, clear = (
            self.of(model, "granted"),
            self.suspects(model),
            self.clear(model),
        )
        accused = [] if granted else self.accused(model)
        if accused:
            check(lease == min(accused), f"{lease} is granted before {min(accused)}, the accused")
        elif request.suspect:
            check(not clear, f"{lease} is tried before {[i for i, _ in clear]} are back")
            running = [i for i, r in granted if r.awaited]
            check(not running, f"{lease} is on probation beside {running}")
            order = [(self.blame(r).guilty, r.position, i) for i, r in suspects]
            check(min(order)[2] == lease, f"{lease} is on probation before {min(order)[2]}")
        else:
            queue = clear if suspects else self.of(model, "waiting")
            check(queue, f"{lease} is granted while suspects wait")
            first = min(i for i, _ in queue)
            check(first == lease, f"{lease} is granted before {first}")
        record = self.records[model]
        news = not record.proven or record.deaths
        asked = request.position + 1 if news else 0
        if request.stuck:
            asked = request.position + PROBATION_TOKENS
        check(grant.until == asked, f"{lease} is asked to tell of token {grant.until}")
        request.on_probation = request.suspect
        request.awaited, request.start = request.stuck > 0, request.position
        request.until = grant.until

    def quarantine(self, model: str, name: str) -> None:
        for _, request in self.of(model, "waiting"):
            # It was guilty before anybody had a token, and somebody has one now.
            if request.name == name and self.blame(request).guilty:
                self._find_guilty(model, request)
        check(name in self._untold, f"{name} is quarantined without cause")
        self._untold.discard(name)

    def refused(self, lease: int, request: Request, code: str, *, late: bool) -> None:
        """One that had been interrupted, or is quarantined, ends: with cause? `late`: its hold is
        over."""
        if code == "request_crashed_worker":
            check(request.digest in self.quarantined, f"{lease} is blamed")
            poison = request.poison or not self.calm
            check(poison, f"{lease} is blamed for what poison has done")
            return
        if request.interrupted and code != "shutting_down":
            check(
                late or self.gives_up(request) or code.startswith("model_"),
                f"{lease} gives up with {code}",
            )
            if self.blame(request).guilty:
                self._blame.pop(request.digest)

    def gives_up(self, request: Request) -> bool:
        """Whether it may."""
        if self.calm and not request.poison and self._rules.max_recoveries >= 2:
            exhausted = request.interruptions > _INTERRUPTIONS_MAX
        else:
            useless = request.unproductive > self._rules.max_recoveries
            exhausted = useless or request.interruptions > _INTERRUPTIONS_MAX
        replayed = self._rules.recovery == "replay" and request.position > 0
        return exhausted or (replayed and request.status == "waiting")

    # ── what must hold after every step ──────────────────────────────────────────────────────────

    def compare(self, model: str, state: str, *, closed: bool, limit: int) -> None:
        """`state` is the model's, `closed` whether a load gate keeps its requests waiting, `limit`
        how many may run, 0 = any number."""
        check(not self._untold, f"{self._untold} are quarantined and nobody says so")
        most = self._lowers.pop(model, 0)
        check(not most or 0 < limit <= most, f"{model} may run {limit} and {most} are too many")
        granted, undecided = self.of(model, "granted"), model in self._scenes
        for lease, request in self.of(model, "waiting"):
            check(request.digest not in self.quarantined, f"{lease} is quarantined and waits")
            tried = self.blame(request).deaths > 0  # its verdict is waited for
            exhausted = request.interrupted and not undecided and self.gives_up(request)
            over = request.interruptions > _INTERRUPTIONS_MAX
            check(not exhausted or (tried and not over), f"{lease} never gives up")
        on_probation = [lease for lease, request in granted if request.on_probation]
        awaited = [lease for lease, request in granted if request.awaited]
        check(not on_probation or on_probation == awaited, f"{awaited} run beside a probation")
        places = (1 if self.records[model].trips else limit) or 2**31
        full = sum(request.held for _, request in granted) >= places
        # Also those who were parked come back together.
        held_up = on_probation or undecided or self.of(model, "returning")
        if state == "ready" and self.records[model].proven and not held_up:
            guilty = [lease for lease, r in self.suspects(model) if self.blame(r).guilty]
            check(not guilty, f"{guilty} is guilty and waits")
        if state == "ready" and not (held_up or full or closed):
            check(not self.clear(model), f"{model} is ready and those from its death wait")
            check(not self.suspects(model) or awaited, f"{model} is ready and suspects wait")
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
