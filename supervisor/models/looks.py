"""Looking at models' files beside the event loop, seldom enough to harm nobody."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from supervisor import background

log = logging.getLogger("bulkhead.supervisor")

INTERVAL = 0.25
"""Seconds between two looks at one model, at least."""
_SHARE = 20
"""And this many times what the last one took, most of which the interpreter's lock may be held."""
_MAX_PAUSE = 5.0
WAIT_SECONDS = 2.0
"""How long a look is waited for: a disk that has fallen asleep, or a server's that is gone."""

T = TypeVar("T")


@dataclass(slots=True)
class _Model:
    running: asyncio.Task[None] | None = None
    began: float = 0.0
    next: asyncio.Task[None] | None = None
    """Waits for its time to run."""
    not_before: float = 0.0
    looked: float = float("-inf")
    """When the last look that has ended began."""


class Looks(Generic[T]):
    """At most one look per model at a time, each on a thread of its own.

    `look` blocks on the disk; None = nothing new. `tell` is called on the event loop with what is
    new.
    """

    def __init__(self, look: Callable[[str], T | None], tell: Callable[[str, T], None]) -> None:
        self._look = look
        self._tell = tell
        self._models: dict[str, _Model] = {}

    async def refresh(self, name: str, within: float = 0.0) -> None:
        """Return when a look is told of that began after this call, which all share who come before
        it begins; or after WAIT_SECONDS, or at once where the last one hangs already. One that
        began at most `within` seconds ago will do."""
        model = self._models.setdefault(name, _Model())
        if model.running is not None and time.monotonic() - model.began > WAIT_SECONDS:
            return
        if within and time.monotonic() - model.looked <= within:
            return
        if model.next is None:
            model.next = background.start(self._run(name, model))
        await asyncio.wait([model.next], timeout=WAIT_SECONDS)

    async def _run(self, name: str, model: _Model) -> None:
        if model.running is not None:
            await asyncio.wait([model.running])
        await asyncio.sleep(max(0.0, model.not_before - time.monotonic()))
        model.running, model.next = model.next, None
        model.began = time.monotonic()
        try:
            found = await background.on_thread(partial(self._look, name), "files")
            if found is not None:
                self._tell(name, found)
        except Exception:
            log.exception("the files of model %s could not be looked at", name)
        finally:
            model.running, model.looked = None, model.began
            now = time.monotonic()
            pause = min(_MAX_PAUSE, _SHARE * (now - model.began))
            model.not_before = now + max(INTERVAL, pause)
