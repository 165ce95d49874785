"""What a model was found not to bear: how many requests at once, after it ran out of memory.

Deaths of this kind are the crowd's: each of its requests may pass alone, and all together kill
again. So a model that has died of it serves half as many at once, and twice as many after each
quiet while, until it is back at what was configured. Pure; times are seconds of the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

QUIET_SECONDS = 2 * 3600.0
"""Without a death of this kind, after which the limit doubles."""


@dataclass(frozen=True, slots=True)
class LearnedLimit:
    """At most so many requests at once, since then."""

    concurrency: int
    since: float

    @property
    def ends(self) -> float:
        """When it is lifted by a step, unless there is another death."""
        return self.since + QUIET_SECONDS


def stepped_down(
    known: LearnedLimit | None, configured: int, crowd: int, now: float
) -> LearnedLimit:
    """After a death of `crowd` requests: half of what were too many. `configured` 0 = no limit. A
    request that was alone was not a crowd, and the limit is halved instead."""
    limit = known.concurrency if known is not None else configured or crowd
    many = min(limit, crowd) if crowd > 1 else limit
    return LearnedLimit(max(1, many // 2), now)


def climbed(known: LearnedLimit, configured: int, now: float) -> LearnedLimit | None:
    """After all quiet whiles until `now`, a step for each; None = as configured again. Without a
    configured limit there is nothing to climb to, and one while ends it."""
    whiles = int((now - known.since) / QUIET_SECONDS)
    if whiles < 1:
        return known
    limit = known.concurrency * 2 ** min(whiles, 32)
    if limit >= configured:
        return None
    return LearnedLimit(limit, known.since + whiles * QUIET_SECONDS)
