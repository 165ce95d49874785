"""What may fail again and again, and is told once."""

from __future__ import annotations

import logging

log = logging.getLogger("bulkhead.supervisor")


class Trouble:
    """One thing that is tried again and again. The log is told when it begins to fail, when it
    fails in another way, and when it works again."""

    def __init__(self, what: str) -> None:
        """`what` completes "cannot …"."""
        self._what = what
        self._why: str | None = None

    def failed(self, error: Exception) -> None:
        """It has failed."""
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if why != self._why:
            self._why = why
            log.error("cannot %s: %s", self._what, why)

    def worked(self) -> None:
        """It has not failed."""
        if self._why is not None:
            self._why = None
            log.warning("can again %s", self._what)
