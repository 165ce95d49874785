"""The sequences of one model as plain values, for those who reckon and decide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from worker.engine import groups


@dataclass(frozen=True, slots=True)
class Member:
    """One sequence. `age` orders all of them, the oldest first: (its request's `now`, the order of
    arrival). `tokens` are in its cache, or will be when it decodes."""

    key: int
    request: str
    age: tuple[float, int]
    tokens: int
    kept: int = 0
    """Bytes of the cache that it keeps while it waits."""
    scored: bool = False
    """Whether its prompt's tokens are scored."""
    apart: bool = False
    """Whether it is in no batch with others, and keeps no cache while it waits."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that decode together, padded to the longest; the arrays have room for `room`
    tokens."""

    members: tuple[Member, ...]
    room: int

    @property
    def span(self) -> groups.Span:
        return groups.span([member.tokens for member in self.members])


@dataclass(frozen=True, slots=True)
class Scene:
    """All sequences: those under way, in `batches` or as `prompts`, and those `waiting`, be it for
    their first turn or parked. `places`: how many may be under way."""

    batches: tuple[Batch, ...] = ()
    prompts: tuple[Member, ...] = ()
    waiting: tuple[Member, ...] = ()
    places: int = 1
    pass_tokens: int = 0
    """Tokens that go through the model beside all these, in steps that need no cache."""

    @property
    def live(self) -> list[Member]:
        return [*(m for batch in self.batches for m in batch.members), *self.prompts]

    def without(self, member: Member) -> Scene:
        """The scene without one who is under way."""
        batches = []
        for batch in self.batches:
            left = tuple(each for each in batch.members if each.key != member.key)
            if len(left) == len(batch.members):
                batches.append(batch)
            elif left:
                # Rows are shifted when the longest leaves.
                shift = batch.span[1] - max(each.tokens for each in left)
                batches.append(Batch(left, batch.room - shift))
        prompts = tuple(each for each in self.prompts if each.key != member.key)
        return replace(self, batches=tuple(batches), prompts=prompts)


def youngest(members: Iterable[Member]) -> Member:
    return max(members, key=lambda member: member.age)


def oldest(members: Iterable[Member]) -> Member:
    return min(members, key=lambda member: member.age)
