"""How many requests at once a model may serve, after it died of more.

Want of memory is the fault of all requests together: each may pass alone, and all at once kill
again. So a model that has died of it serves half as many at once, and twice as many after each
quiet while, until it is back at what was configured. The same where a crowd that came back has died
again, whatever is said of the cause: a failed allocation may look like any other fault. Pure; times
are seconds of the caller's clock.
"""

from __future__ import annotations

from supervisor.scheduler.model import QUIET_SECONDS, LearnedLimit


def lowered(
    known: LearnedLimit | None, configured: int, in_flight: int, now: float
) -> LearnedLimit:
    """The limit after a death with `in_flight` requests: half of what were too many. `configured`
    0 = no limit. One request alone was not too many, and the limit before is halved instead."""
    limit = known.concurrency if known is not None else configured or in_flight
    many = min(limit, in_flight) if in_flight > 1 else limit
    return LearnedLimit(max(1, many // 2), now)


def at_most(
    known: LearnedLimit | None, configured: int, most: int, now: float
) -> LearnedLimit | None:
    """The limit where more than `most` are known to be too many; None = it is no higher already."""
    limit = known.concurrency if known is not None else configured
    return LearnedLimit(max(1, most), now) if not limit or limit > max(1, most) else None


def raised(known: LearnedLimit, configured: int, now: float) -> LearnedLimit | None:
    """The limit after all quiet whiles until `now`: doubled for each. None = as configured again;
    where nothing is configured there is no figure to return to, and one quiet while ends it."""
    whiles = int((now - known.since) / QUIET_SECONDS)
    if whiles < 1:
        return known
    limit = known.concurrency * 2 ** min(whiles, 32)
    if limit >= configured:
        return None
    return LearnedLimit(limit, known.since + whiles * QUIET_SECONDS)
