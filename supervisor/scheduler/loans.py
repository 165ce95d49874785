"""KV cache on loan: what the workers say of it, and what they are asked for.

A ready worker says how it stands with `LoanNeeds`. What it is lent is charged in the ledger before
it is told, and what it gives back is free once it has said so: the ledger is never below what the
workers may hold. `plan` decides who is lent what and who is asked for what.

Words cross. What was lent and the worker had not heard of when it spoke comes off what it asks for;
what it gave back before it heard of a recall comes off what that may bring. So both sides come to
the same, whoever has heard what by then.

A worker is asked for one thing at a time. It answers within `PROMISED_SECONDS`; one that has not in
`ANSWER_SECONDS` counts as giving nothing, so that other means are tried, until it answers, or is
asked anew after `_SILENT_SECONDS`. One that gives less than it said it had is not asked for idle
bytes for a moment, since its next word may promise as much: other means have their turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from supervisor.scheduler.effects import Effect, Lend, Recall, warning
from supervisor.scheduler.ledger import Key
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import Model
from supervisor.scheduler.plan import Loan, Need
from supervisor.scheduler.state import PoolState
from supervisor.units import gigabytes

ANSWER_SECONDS = 2.0
"""The promise is 200 ms, between two steps; one step of a slow machine may take longer."""
_SILENT_SECONDS = 30.0
_REST_SECONDS = 1.0
_SERVING = (State.READY, State.DRAINING)


ALL = 2**63 - 1
"""More than anybody is ever lent."""


@dataclass(frozen=True, slots=True)
class LoanNeeds:
    """How a worker stands with its loan, see `wire.frames.Needs`. Bytes, and times on the pool's
    clock, monotonic seconds."""

    least: int = 0
    most: int = 0
    since: float = 0.0
    idle: int = 0
    youngest: float = 0.0
    parkable: int = 0
    heard: int = ALL
    """Of all that it has been lent, as far as that is."""


@dataclass(slots=True)
class _Asked:
    """What a worker was asked to give back."""

    number: int
    bytes: int
    park: bool
    until: float
    """When it counts as silent, or, once it does, when it may be asked anew."""
    silent: bool = False


class Loans:
    """The words of all workers about their loans, and what they are asked for."""

    def __init__(self, state: PoolState) -> None:
        self._state = state
        self._said: dict[Key, LoanNeeds] = {}
        """How each stands by its last word and what has passed since."""
        self._lent: dict[Key, int] = {}
        """All that each was ever lent, whatever it has given back."""
        self._asked: dict[Key, _Asked] = {}
        self._rests: dict[Key, float] = {}
        """Workers that gave less than they had said, and until when it counts as idle no more."""
        self._numbers = itertools.count(1)

    # ── what workers say ─────────────────────────────────────────────────────────────────────────

    def needs(self, model: Model, needs: LoanNeeds) -> None:
        """READY or DRAINING: the worker stands so from now on. It is not trusted to count."""
        key = model.current.key
        lent = self._state.ledger.lent(key)
        idle = max(0, min(needs.idle, lent))
        said = replace(needs, idle=idle, parkable=max(0, min(needs.parkable, lent - idle)))
        on_its_way = max(0, self._lent.get(key, 0) - needs.heard)
        self._say(key, _less(said, on_its_way))

    def repaid(self, model: Model, size: int, number: int, now: float) -> None:
        """The worker holds `size` bytes of its loan no longer, because it was asked so with that
        `number`, or, 0, by itself."""
        key = model.current.key
        asked, said = self._asked.get(key), self._said.get(key)
        expected = 0 if asked is None else self._expected(key, asked)
        self._state.ledger.repay(key, size)
        if asked is not None and asked.number == number:
            del self._asked[key]
            if size < expected:
                self._rests[key] = now + _REST_SECONDS
            if asked.park and said is not None:  # whom it has parked it says anew
                said = replace(said, youngest=0.0, parkable=0)
        if said is not None:
            self._say(key, replace(said, idle=max(0, said.idle - size)))

    def _say(self, key: Key, said: LoanNeeds) -> None:
        self._said[key] = said
        self._state.models[key[0]].current.idle_bytes = said.idle

    # ── what is decided about them ───────────────────────────────────────────────────────────────

    def lend(self, key: Key, size: int) -> Effect:
        """Charge it, and have it told."""
        self._state.ledger.lend(key, size)
        self._lent[key] = self._lent.get(key, 0) + size
        self._say(key, _less(self._said[key], size))
        return Lend(*key, size)

    def recall(self, key: Key, size: int, now: float, *, park: bool = False) -> Effect:
        """Ask a worker, which is not being asked, for so much of its loan."""
        assert key not in self._asked
        number = next(self._numbers)
        self._asked[key] = _Asked(number, size, park, now + ANSWER_SECONDS)
        return Recall(*key, number, size, park)

    def recall_idle(self, size: float, now: float, only: Model | None = None) -> list[Effect]:
        """Call back so much of the idle loans, the least valuable first, or all there is; those of
        one model where one is given. What is on its way back already is not counted."""
        effects: list[Effect] = []
        for loan in self.loans():
            if size > 0 and loan.idle and (only is None or loan.worker == only.current.key):
                part = int(min(loan.idle, size))
                size -= part
                effects.append(self.recall(loan.worker, part, now))
        return effects

    # ── what `plan` looks at ─────────────────────────────────────────────────────────────────────

    def on_its_way(self, key: Key) -> int:
        """Bytes that the worker was asked for, and that are still expected of it."""
        asked = self._asked.get(key)
        return 0 if asked is None or asked.silent else self._expected(key, asked)

    def _expected(self, key: Key, asked: _Asked) -> int:
        """What it will give, as it has spoken since: it had not heard of the recall by then."""
        said = self._said.get(key, LoanNeeds())
        most = asked.bytes if asked.park else min(asked.bytes, said.idle)
        return min(most, self._state.ledger.lent(key))

    def recallable(self, key: Key) -> int:
        """Bytes of its loan that the worker would give back if it were asked now."""
        said = self._said.get(key)
        asks = key in self._asked or key in self._rests
        return 0 if said is None or asks else min(said.idle, self._state.ledger.lent(key))

    def open_needs(self) -> list[Need]:
        """Of all workers that have said so, those ahead of need included."""
        found = []
        for model in self._serving():
            key = model.current.key
            said = self._said.get(key)
            if said is not None and said.most:
                drains = model.state is State.DRAINING
                found.append(Need(key, said.least, said.most, said.since, drains, model.pinned))
        return found

    def loans(self) -> list[Loan]:
        """What may be had of all workers. Those whose idle part is worth least come first: of
        models that nobody uses, then of those that were used the longest ago, then large ones."""

        def worth(model: Model) -> tuple[bool, float, int, str]:
            return (
                model.in_use,
                model.last_used or 0.0,
                -self.recallable(model.current.key),
                model.name,
            )

        return [self._loan(model) for model in sorted(self._serving(), key=worth)]

    def _loan(self, model: Model) -> Loan:
        key = model.current.key
        said = self._said.get(key, LoanNeeds())
        idle = self.recallable(key)
        asked = self._asked.get(key)
        silent = asked is not None and asked.silent
        awaited = self.on_its_way(key)
        return Loan(
            key,
            idle=idle,
            awaited=awaited,
            in_use=self._state.ledger.lent(key) - idle - awaited,
            drains=model.state is State.DRAINING,
            stands=bool(said.least) or silent,
            youngest=said.youngest,
            parkable=0 if asked is not None else said.parkable,
        )

    def _serving(self) -> Iterable[Model]:
        return [model for model in self._state.models.values() if model.state in _SERVING]

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def deadlines(self) -> list[float]:
        """When `expire` must be called though nothing has happened."""
        return [*(asked.until for asked in self._asked.values()), *self._rests.values()]

    def expire(self, now: float) -> list[Effect]:
        """Wait no longer for those who have not answered in time."""
        effects: list[Effect] = []
        for key, until in list(self._rests.items()):
            if until <= now:
                del self._rests[key]
        for key, asked in list(self._asked.items()):
            if asked.until > now:
                continue
            if asked.silent:
                del self._asked[key]
                continue
            asked.silent, asked.until = True, now + _SILENT_SECONDS
            wanted = f"{gigabytes(asked.bytes)} of its loan"
            effects.append(warning(f"{key[0]}#{key[1]} was asked for {wanted} and is silent"))
        return effects

    def forget_dead(self) -> None:
        """Workers that serve no longer give back all they have, and need nothing."""
        living = {model.current.key for model in self._serving()}
        for words in (self._said, self._lent, self._asked, self._rests):
            for key in words.keys() - living:
                del words[key]


def _less(needs: LoanNeeds, lent: int) -> LoanNeeds:
    """What is still needed once so many bytes are there."""
    least = max(0, needs.least - lent)
    return replace(needs, least=least, most=max(least, needs.most - lent))
