"""Log files: the supervisor's own, and the upkeep of those that children write themselves."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S"
ROTATE_BYTES = 10 * 2**20
ROTATE_KEEP = 3
CHILD_BYTES = 16 * 2**20
"""A child's file is cut down to its tail beyond this size."""
CHILD_TAIL = 4 * 2**20
_STAMP = "[0-9]" * 8 + "T" + "[0-9]" * 6
CHILD_KEEP = 12
"""Processes of one kind or model whose files are kept."""


def set_up(path: Path) -> None:
    """Everything to `path`, rotated; to stderr only what a person at a terminal wants to see.

    launchd and systemd hold stderr and never rotate it, so without a terminal only warnings go
    there.
    """
    handler = logging.handlers.RotatingFileHandler(
        path,
        maxBytes=ROTATE_BYTES,
        backupCount=ROTATE_KEEP,
        encoding="utf-8",
        errors="backslashreplace",
    )
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    for each in (handler, console):
        each.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler, console], force=True)


def stamped(prefix: str) -> str:
    """How the names of a new process's files begin: `prefix` and the time; see `remove_old`."""
    return f"{prefix}.{datetime.now():%Y%m%dT%H%M%S}"


def remove_old(directory: Path, prefix: str) -> None:
    """Remove the oldest files that begin with `prefix`, keeping those of CHILD_KEEP processes.

    Names hold the start time, so their order is their age. The time is matched digit by digit, for
    the files of `qwen2` begin like those of `qwen2.5-coder`.
    """
    files = sorted(directory.glob(f"{prefix}.{_STAMP}.*std*"))
    for path in files[: max(0, len(files) - 2 * CHILD_KEEP)]:
        with contextlib.suppress(OSError):  # upkeep must not fail what it is upkeep for
            path.unlink()


def cut_to_tail(paths: Iterable[Path]) -> None:
    """Bound the files that children hold open for appending.

    The descriptor is the child's, so the file is shortened in place; O_APPEND makes its next write
    land at the new end. The last CHILD_TAIL bytes stay: they tell how it ended.
    """
    for path in paths:
        try:
            if path.stat().st_size <= CHILD_BYTES:
                continue
            with open(path, "rb") as file:
                file.seek(-CHILD_TAIL, os.SEEK_END)
                tail = file.read()
                while grown := file.read():  # until nothing has come while we read
                    tail += grown
                os.truncate(path, 0)
            with open(path, "ab") as file:  # behind what the child has written since
                file.write(tail)
        except OSError:
            continue
