"""What may fail again and again, and is told once."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("bulkhead.supervisor")


class Trouble:
    """One thing that is tried again and again. The log is told when it begins to fail, when it
    fails in another way, and when it works again."""

    def __init__(self, what: str) -> None:
        """`what` completes "cannot …"."""
        self._what = what
        self._why: str | None = None

    def failed(self, error: Exception, where: Path | None = None) -> None:
        """It has failed, `where` if that is not always the same: the log has the first place."""
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if why != self._why:
            self._why = why
            place = "" if where is None else f"{where}: "
            log.error("cannot %s: %s%s", self._what, place, why)

    def worked(self) -> None:
        """It has not failed."""
        if self._why is not None:
            self._why = None
            log.warning("can again %s", self._what)
