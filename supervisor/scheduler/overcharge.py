"""A worker that holds more than it is charged: what is done about it, step by step. Pure.

Its footprint is read about once a second. Each reading that is over the charge of that time, by
more than a measurement may be wrong, leads one step further down the table; its neighbours are not
touched.

    stage     still over              within again
    within    shrink         → shrunk
    shrunk    half at once   → limited   → within
    limited   half of that;
              at one: restart            after a calm while twice as many, until all may → within

A restart parks what runs, and charges the model more from then on. It is not repeated for a while
that doubles each time: a charge that can't be made to fit must not be reloaded in a cycle.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

TOLERANCE_SHARE = 0.05
TOLERANCE_BYTES = 256 * 10**6
STEP_SECONDS = 0.9
"""Between two steps: readings come once a second, and more often while memory is waited for."""
CALM_SECONDS = 60.0
"""Within the charge for so long, twice as many sequences may run."""
_BACKOFF_SECONDS = 60.0
_BACKOFF_MAX = 3600.0


def is_over(footprint: int, charge: int) -> bool:
    """Whether a process that was seen to hold so many bytes has outgrown its charge."""
    return footprint > charge * (1 + TOLERANCE_SHARE) + TOLERANCE_BYTES


def backoff(restarts: int) -> float:
    """Seconds for which a model that was restarted so often for this is not restarted again."""
    return 0.0 if not restarts else min(_BACKOFF_MAX, _BACKOFF_SECONDS * 2.0 ** (restarts - 1))


class Stage(enum.Enum):
    WITHIN = enum.auto()
    SHRUNK = enum.auto()
    """It was told to free its caches and gives back its idle loan."""
    LIMITED = enum.auto()
    """Fewer sequences run in it at once."""


class Action(enum.Enum):
    NONE = enum.auto()
    SHRINK = enum.auto()
    LIMIT = enum.auto()
    """At most `Watch.limit` at once; 0 = as configured."""
    RESTART = enum.auto()


@dataclass(frozen=True, slots=True)
class Watch:
    """How one incarnation stands."""

    stage: Stage = Stage.WITHIN
    limit: int = 0
    """Sequences that may run at once; 0 = as configured."""
    over: bool = False
    """What the last reading said."""
    since: float = -1.0e9
    """When the last step was taken, or the last reading over the charge came; monotonic seconds."""


def step(
    watch: Watch, *, over: bool, running: int, may_restart: bool, now: float
) -> tuple[Watch, Action]:
    """What a reading leads to, of a worker with so many requests in it."""
    if not over:
        return _calm(watch, running, now)
    if now < watch.since + STEP_SECONDS and watch.over:
        return watch, Action.NONE
    if watch.stage is Stage.WITHIN:
        return Watch(Stage.SHRUNK, 0, over, now), Action.SHRINK
    if watch.limit == 1:
        stays = Watch(Stage.LIMITED, 1, over, now)
        return stays, Action.RESTART if may_restart else Action.NONE
    limit = max(1, (watch.limit or running) // 2)
    return Watch(Stage.LIMITED, limit, over, now), Action.LIMIT


def _calm(watch: Watch, running: int, now: float) -> tuple[Watch, Action]:
    if watch.stage is not Stage.LIMITED:
        return Watch(), Action.NONE
    if now < watch.since + CALM_SECONDS:
        return Watch(watch.stage, watch.limit, False, watch.since), Action.NONE
    if running < watch.limit:  # the limit keeps nobody
        return Watch(), Action.LIMIT
    return Watch(Stage.LIMITED, 2 * watch.limit, False, now), Action.LIMIT
