"""What happens to models, told to whoever watches: the events of `/admin/events`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import msgspec

from supervisor.scheduler.model import Model
from supervisor.wire.frames import Happened, ToSupervisor
from supervisor.wire.stream import FrameStream

WATCHERS_MAX = 32

Watcher = FrameStream[ToSupervisor]


class EventFeed:
    """Tells every change of a model's state and every decision once, to all watchers in order."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._watchers: set[Watcher] = set()
        self._states: dict[str, tuple[str, int]] = {}
        self._clock = clock

    def join(self, watcher: Watcher) -> bool:
        """False when too many watch already. Told "watching", and whatever happens after it."""
        if len(self._watchers) >= WATCHERS_MAX:
            return False
        self._watchers.add(watcher)
        watcher.send(self._event("watching"))
        return True

    def leave(self, watcher: Watcher) -> None:
        """No longer one of them; others are fine."""
        self._watchers.discard(watcher)

    def close(self) -> None:
        """Nothing more will happen: let all go."""
        for watcher in self._watchers:
            watcher.close()
        self._watchers.clear()

    def states(self, models: Iterable[Model]) -> None:
        """Tell which models' workers are in another state than before."""
        for model in models:
            state = (model.state.value, model.generation)
            if self._states.get(model.name, ("cold", 0)) != state:
                self._states[model.name] = state
                self.tell(
                    "state",
                    model=model.name,
                    state=model.state.value,
                    generation=model.generation,
                    reason=model.reason or None,
                )

    def tell(self, event: str, **details: Any) -> None:
        """One event. Who reads too slowly is let go rather than kept in memory."""
        if not self._watchers:
            return
        happened = self._event(event, **details)
        for watcher in tuple(self._watchers):
            if watcher.is_behind:
                self.leave(watcher)
                watcher.close()
            else:
                watcher.send(happened)

    def _event(self, event: str, **details: Any) -> Happened:
        now = datetime.fromtimestamp(self._clock()).astimezone().isoformat("T", "milliseconds")
        return Happened(msgspec.json.encode({"time": now, "event": event, **details}))
