"""The events of `/admin/events`, sent to everybody who watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from supervisor.scheduler.model import Model
from supervisor.wire.control_frames import Happened, ToSupervisor
from supervisor.wire.stream import FrameStream
from supervisor.wire.text import to_json

WATCHERS_MAX = 32

Watcher = FrameStream[ToSupervisor]


class EventFeed:
    """Sends each event to all watchers, in order."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._watchers: set[Watcher] = set()
        self._states: dict[str, tuple[str, int]] = {}
        self._clock = clock

    def join(self, watcher: Watcher) -> bool:
        """Send it "watching", then all that happens. False, and nothing, when too many watch."""
        if len(self._watchers) >= WATCHERS_MAX:
            return False
        self._watchers.add(watcher)
        watcher.send(self._event("watching"))
        return True

    def leave(self, watcher: Watcher) -> None:
        """Send it nothing more. Harmless for one that has not joined."""
        self._watchers.discard(watcher)

    def close(self) -> None:
        """Close all connections: nothing more will happen."""
        for watcher in self._watchers:
            watcher.close()
        self._watchers.clear()

    def tell_states(self, models: Iterable[Model]) -> None:
        """Send an event for each model whose worker is in another state than before."""
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
        """Send one event. The connection of a watcher that reads too slowly is closed."""
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
        return Happened(to_json({"time": now, "event": event, **details}))
