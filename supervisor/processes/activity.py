"""What a worker does now, from readings of its progress record. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from supervisor.wire.progress import Reading

WINDOW_SECONDS = 3.0
"""Of which the rate of tokens is the mean: long enough for a big model's few tokens a second."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Figures for people; none of them decides anything."""

    tokens_per_second: float = 0.0
    """Of all its requests together, over the last seconds."""
    prefilled: int = 0
    """Prompt tokens that are done, of the requests that have no token yet."""
    to_prefill: int = 0
    """And all that these have; 0 = nobody is being prefilled."""
    stalled: float | None = None
    """Seconds for which it has stood still though it has work; None = it moves."""


class Meter:
    """Measures one worker. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        """Times and the tokens made by then; the first one is at least a window old, if any is."""
        self._last = Reading()

    def feed(self, reading: Reading, now: float, *, awaited: bool) -> None:
        """A reading; `awaited`: the worker has requests. What comes after rest is measured from
        there, not from the beginning of a window in which there was nothing to do."""
        samples = self._samples
        if not awaited and samples and samples[0][1] == reading.tokens:
            samples.clear()
        samples.append((now, reading.tokens))
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_SECONDS:
            samples.popleft()
        self._last = reading

    def activity(self, stalled: float | None = None) -> Activity:
        """As of the last reading. `stalled` is the watchdog's."""
        total = self._last.to_prefill
        return Activity(self._rate(), min(self._last.prefilled, total), total, stalled)

    def _rate(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (began, before), (ended, after) = self._samples[0], self._samples[-1]
        return max(0, after - before) / (ended - began) if ended > began else 0.0
