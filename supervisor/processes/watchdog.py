"""When a process that lives has stopped moving. Pure.

Slow is not stuck: what ends, however late, is progress, and a process that has shown long steps is
given more time. What the supervisor did not see, because its own loop was late, counts for nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.wire.progress import Reading

LOOK_SECONDS = 0.25
"""Between two looks at a process."""
LATE_SECONDS = 1.0
"""A look that comes so long after the last one starts all clocks anew."""
_STALL_MIN = 1.0
"""A loop beats four times a second, on a busy machine less often."""
_PATIENCE = 10
"""How many of its longest recent steps a step may take, and how many stalls the preparation of a
request, which is one piece however long the prompt."""
_STEP_MAX = 300.0
"""Seconds of a recent step that are believed."""


@dataclass(slots=True)
class _Clock:
    """Since when a count has stood still."""

    count: object = None
    since: float = 0.0

    def age(self, count: object, now: float, *, anew: bool) -> float:
        if anew or count != self.count:
            self.count, self.since = count, now
        return now - self.since


class Watchdog:
    """Judges one process by what is read of it. Times are seconds of one clock.

    Stalled is: a step that lasts longer than `stall_seconds` and than ten of the longest recent
    steps; an event loop that stands still for as long while somebody waits for the process; a
    request that has been prepared for ten times as long.
    """

    def __init__(self, stall_seconds: float) -> None:
        """At least 1 s is waited."""
        self._stall = max(stall_seconds, _STALL_MIN)
        self._looked: float | None = None
        self._step, self._loop, self._prompt = _Clock(), _Clock(), _Clock()

    def look(self, reading: Reading, now: float, *, awaited: bool) -> str | None:
        """What has stalled, in words; None = all moves. Between looks at most LATE_SECONDS may pass.
        `awaited`: somebody waits for the process."""
        late = self._looked is None or now - self._looked > LATE_SECONDS
        self._looked = now
        step = self._step.age((reading.begun, reading.ended), now, anew=late)
        loop = self._loop.age(reading.beats, now, anew=late)
        prompt = self._prompt.age((reading.preparing, reading.prepared), now, anew=late)
        limit = max(self._stall, _PATIENCE * min(reading.longest, _STEP_MAX))
        if reading.begun != reading.ended and step > limit:
            return f"its generation thread has been in one step for {step:.1f} s"
        if awaited and loop > limit:
            return f"its event loop has not turned for {loop:.1f} s"
        if reading.preparing != reading.prepared and prompt > _PATIENCE * limit:
            return f"a prompt has been in preparation for {prompt:.0f} s"
        return None
