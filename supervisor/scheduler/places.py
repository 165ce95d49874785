"""How many of its choices each request may have on a worker at once.

A request with `n` choices takes `n` of its model's places, but not its neighbours'. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

_FREE_SHARE = 8
"""Requests with several choices leave one of so many places to whoever comes next."""


def shares(limit: int, wanted: Sequence[int]) -> list[int]:
    """Places for requests that want so many of `limit`, in the order of their arrival; 0 = no
    limit.

    Each gets one first, as far as there are any; the others are dealt out evenly, but for some that
    stay free: a request with one choice should find a place beside one with a hundred.
    """
    if not limit:
        return list(wanted)
    given = [int(number < limit) for number in range(len(wanted))]
    left = limit - sum(given) - (max(1, limit // _FREE_SHARE) if limit > 1 else 0)
    while left > 0:
        hungry = [number for number, want in enumerate(wanted) if 0 < given[number] < want]
        if not hungry:
            break
        each = max(1, left // len(hungry))
        for number in hungry:
            more = min(each, left, wanted[number] - given[number])
            given[number] += more
            left -= more
    return given
