"""Which loaded models go first: pure functions over what is known of each.

A policy is an order: the first of it is the one to lose. Who may be taken at all (idle ones at
once, busy ones after `max_wait`, pinned ones and fresh ones never) is decided elsewhere.

* lru        the one whose last use is the longest ago.
* use_count  the one with the fewest uses, then the longest ago.
* gdsf       the one with the lowest frequency × reload time ÷ size: bytes that bring back the least
             waiting (GreedyDual-Size-Frequency). The frequency ages by half in `HALF_LIFE` uses of
             any model, so that yesterday's favourite makes room for today's, and a night without
             any request changes nothing. The order suits a cache of many small things; a machine
             holds few models of very different sizes, so among the first of it the set that costs
             the least waiting is looked for exactly (`tests/bench/eviction.py` has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Final

HALF_LIFE = 32.0
"""Uses, over all models, after which a use counts half."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model that may be unloaded."""

    model: str
    bytes: int
    """What its unload gives back."""
    use_count: int = 0
    last_used: float = 0.0
    """Monotonic seconds; of a model that was never asked for, when it was loaded."""
    frequency: float = 0.0
    """Aged uses, as of now."""
    load_seconds: float = 1.0
    """What bringing it back would take."""


_EXACT = 8
"""Candidates among which the cheapest set is looked for: 2^8 sets at most."""

Key = Callable[[Candidate], tuple[float, ...]]


def _lru(candidate: Candidate) -> tuple[float, ...]:
    return (candidate.last_used,)


def _use_count(candidate: Candidate) -> tuple[float, ...]:
    return (candidate.use_count, candidate.last_used)


def _gdsf(candidate: Candidate) -> tuple[float, ...]:
    worth = candidate.frequency * candidate.load_seconds / max(1, candidate.bytes)
    return (worth, candidate.last_used)


POLICIES: Final[Mapping[str, Key]] = MappingProxyType(
    {"lru": _lru, "use_count": _use_count, "gdsf": _gdsf}
)


def aged(frequency: float, uses: float) -> float:
    """What `frequency` is worth after `uses` further uses of any model."""
    return float(frequency * 0.5 ** (uses / HALF_LIFE))


def order(candidates: Iterable[Candidate], policy: str) -> list[Candidate]:
    """The candidates, the first to lose first. The name decides between equals."""
    key = POLICIES[policy]
    return sorted(candidates, key=lambda candidate: (*key(candidate), candidate.model))


def choose(ordered: Sequence[Candidate], need: float, slots: int) -> list[Candidate]:
    """The fewest of the first whose unload gives back `need` bytes and `slots` places.

    Empty when all of them together do not. Whoever turns out superfluous is spared, the last of
    the order first: a large one late in it can make all the small ones before it unnecessary.
    """
    taken = list(ordered)
    back = sum(candidate.bytes for candidate in ordered)
    if back < need or len(taken) < slots:
        return []
    for candidate in reversed(ordered):
        if back - candidate.bytes >= need and len(taken) - 1 >= slots:
            taken.remove(candidate)
            back -= candidate.bytes
    return taken


def make_room(
    candidates: Iterable[Candidate], policy: str, need: float, slots: int = 0
) -> list[Candidate]:
    """Whom the policy unloads for `need` bytes and `slots` places; empty when all don't suffice."""
    ordered = order(candidates, policy)
    greedy = choose(ordered, need, slots)
    if policy != "gdsf" or len(greedy) == len(ordered):
        return greedy
    return _cheapest(ordered[:_EXACT], need, slots, greedy)


def _cheapest(
    candidates: Sequence[Candidate], need: float, slots: int, known: list[Candidate]
) -> list[Candidate]:
    """The set that loses the least frequency × reload time, if it is better than `known`."""

    def loss(chosen: Iterable[Candidate]) -> float:
        return sum(one.frequency * one.load_seconds for one in chosen)

    best, least = known, loss(known)
    if not known:
        return best
    for count in range(max(1, slots), len(candidates) + 1):
        for chosen in combinations(candidates, count):
            if sum(one.bytes for one in chosen) >= need and loss(chosen) < least:
                best, least = list(chosen), loss(chosen)
    return best
