"""Which sequences share a batch.

A batch pads every row to its longest, so rows of very different length are kept apart; but each
batch reads the model's weights for itself, so that rows of about one length are kept together, and
whoever is short counts as `FLOOR`. Pure decisions over lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

UNIT = 256
"""mlx-lm's caches grow by so many tokens."""
FLOOR = 1024
"""Ordinary chats share one batch, whatever their length is: padded to this they cost little."""
MOST = 4
"""How many times the shortest row's size the longest one's may be in a batch."""
JOIN = 3
"""The same for one who joins: below `MOST`, so that nobody joins only to be parted again."""
MERGE = 2
"""The same for two batches that become one, which copies both."""

Span = tuple[int, int]
"""(shortest, longest) of a batch's rows in tokens."""


def size(length: int) -> int:
    """What a row of so many tokens counts for."""
    return max(FLOOR, -(-length // UNIT) * UNIT)


def span(lengths: Sequence[int]) -> Span:
    """Of one batch's rows."""
    return min(lengths), max(lengths)


def fit(spans: Sequence[Span], factor: int = MOST) -> bool:
    """Whether rows of all these lengths may be in one batch."""
    return size(max(high for _, high in spans)) <= factor * size(min(low for low, _ in spans))


def join(newcomers: Span, batches: Sequence[Span]) -> int | None:
    """The index of the batch that `newcomers`, who fit together, join; None = they begin one. Of
    several that fit it is the one whose longest row is nearest, for the least padding."""
    fitting = [i for i, each in enumerate(batches) if fit([newcomers, each], JOIN)]
    return min(fitting, key=lambda i: abs(size(batches[i][1]) - size(newcomers[1])), default=None)


def part(lengths: Sequence[int]) -> list[int]:
    """The indices of the rows that leave a batch, the short ones, where it has come to hold too
    different ones; else none. Those who stay are within `JOIN`: the longest grows on, and not at
    each of its steps shall somebody leave."""
    longest = size(max(lengths))
    if longest <= MOST * size(min(lengths)):
        return []
    return [i for i, length in enumerate(lengths) if JOIN * size(length) < longest]


def merge(batches: Sequence[Span]) -> tuple[int, int] | None:
    """Two batches that have come to be of about one length, by index, the lower one first; the
    first takes in the second."""
    for i, one in enumerate(batches):
        for j in range(i + 1, len(batches)):
            if fit([one, batches[j]], MERGE):
                return i, j
    return None


def together(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences in as few batches as `JOIN` allows, each in the order given."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches and fit([(lengths[batches[-1][0]], lengths[i])], JOIN):
            batches[-1].append(i)
        else:
            batches.append([i])
    return [sorted(batch) for batch in batches]
