"""When a process that runs makes no progress. Pure.

Slow is not stalled: what ends, however late, is progress, and a process that has made long steps is
given more time. Time in which the supervisor itself did not run does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.wire.progress import Reading

CHECK_SECONDS = 0.25
"""Between two checks of a process."""
LATE_SECONDS = 1.0
"""A check that comes so long after the last one restarts all clocks: we did not run in between."""
_STALL_MIN = 1.0
"""A loop beats four times a second, on a busy machine less often."""
_PATIENCE = 10
"""A step may take this many times the longest recent step; the preparation of a request, which is
one piece however long the prompt, this many times what a step may take."""
_SHOWN_LOOP, _SHOWN_STEP = 5.0, 15.0
"""A loop or a step that has stood still for so long, and for three times the longest recent step,
is shown as stalled, long before the process is killed for it. The first chunk of a large model's
prefill may take ten seconds, and its event loop turns meanwhile."""
_SHOWN_STEPS = 3
_STEP_MAX = 300.0
"""Seconds of a recent step that are believed."""


@dataclass(slots=True)
class _Clock:
    """Measures for how long a count has stood still."""

    count: object = None
    since: float = 0.0

    def age(self, count: object, now: float, *, restart: bool) -> float:
        if restart or count != self.count:
            self.count, self.since = count, now
        return now - self.since


class Watchdog:
    """Judges one process by its progress record. Times are seconds of one clock.

    A process has stalled when one step takes longer than `stall_seconds` and than ten times the
    longest recent step; when its event loop stands still for as long while a request waits for it;
    or when the preparation of a request takes ten times as long.
    """

    def __init__(self, stall_seconds: float) -> None:
        """`stall_seconds` below 1 count as 1."""
        self._stall = max(stall_seconds, _STALL_MIN)
        self._last_check: float | None = None
        self._step, self._loop, self._prompt = _Clock(), _Clock(), _Clock()
        self._all = _Clock()
        self.standstill: float | None = None
        """Seconds for which what should move had not moved at the last check, once that is so long
        that people want to know of it; None = it moves, or has nothing to do."""

    def check(self, reading: Reading, now: float, *, awaited: bool) -> str | None:
        """What has stalled, in words; None = nothing. `awaited`: a request waits for the process.

        To be called more often than every LATE_SECONDS.
        """
        late = self._is_late(now)
        step = self._step.age((reading.begun, reading.ended), now, restart=late)
        loop = self._loop.age(reading.beats, now, restart=late)
        prompt = self._prompt.age((reading.preparing, reading.prepared), now, restart=late)
        limit = max(self._stall, _PATIENCE * min(reading.longest, _STEP_MAX))
        usual = _SHOWN_STEPS * min(reading.longest, _STEP_MAX)
        stands = [
            age
            for moves, age, long in (
                (reading.begun == reading.ended, step, _SHOWN_STEP),
                (not awaited, loop, _SHOWN_LOOP),
                (reading.preparing == reading.prepared, prompt, _SHOWN_STEP),
            )
            if not moves and age >= min(limit, max(long, usual))
        ]
        self.standstill = max(stands, default=None)
        if reading.begun != reading.ended and step > limit:
            return f"its generation thread has been in one step for {step:.1f} s"
        if awaited and loop > limit:
            return f"its event loop has not turned for {loop:.1f} s"
        if reading.preparing != reading.prepared and prompt > _PATIENCE * limit:
            return f"a prompt has been in preparation for {prompt:.0f} s"
        return None

    def stands(self, reading: Reading, now: float) -> float:
        """Seconds for which nothing at all has moved, neither the event loop nor a thread, as far
        as this is asked. In place of `check`, and as often."""
        return self._all.age(reading, now, restart=self._is_late(now))

    def _is_late(self, now: float) -> bool:
        late = self._last_check is None or now - self._last_check > LATE_SECONDS
        self._last_check = now
        return late
