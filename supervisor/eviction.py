"""Which loaded models go first: pure functions over what is known of each.

A policy is an order: the first of it is the one to lose. Who may be taken at all (idle ones at
once, busy ones after `max_wait`, pinned ones and fresh ones never) is decided elsewhere.

* lru        the one whose last use is the longest ago.
* use_count  the one with the fewest uses, then the longest ago.
* gdsf       the one with the lowest frequency × reload time ÷ size: bytes that bring back the least
             waiting (GreedyDual-Size-Frequency). The frequency ages by half in `HALF_LIFE` uses of
             any model, so that yesterday's favourite makes room for today's, and a night without
             any request changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

HALF_LIFE = 16.0
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


def choose(ordered: Sequence[Candidate], need: float, slots: int = 0) -> list[Candidate]:
    """The fewest of the first whose unload gives back `need` bytes and `slots` places.

    Empty when all of them together do not. Whoever turns out superfluous is spared, the last of
    the order first: a large one late in it can make all the small ones before it unnecessary.
    """
    taken: list[Candidate] = []
    back = 0
    for candidate in ordered:
        if back >= need and len(taken) >= slots:
            break
        taken.append(candidate)
        back += candidate.bytes
    if back < need or len(taken) < slots:
        return []
    for candidate in reversed(tuple(taken)):
        if back - candidate.bytes >= need and len(taken) - 1 >= slots:
            taken.remove(candidate)
            back -= candidate.bytes
    return taken


def surplus(ordered: Sequence[Candidate], keep: int) -> list[Candidate]:
    """Whom a cleanup that leaves `keep` of them unloads: all but the last of the order."""
    return list(ordered[: max(0, len(ordered) - keep)])
