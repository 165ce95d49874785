"""Log files: the supervisor's own, and the upkeep of those that children write themselves."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path

from supervisor.log_handlers import Console, LogFile

CHILD_BYTES = 16 * 2**20
"""A child's file is cut down to its tail beyond this size."""
CHILD_TAIL = 4 * 2**20
_STAMP = "[0-9]" * 8 + "T" + "[0-9]" * 6
CHILD_KEEP = 12
"""Processes of one kind or model whose files are kept."""
_STDERR = 2


def set_up(path: Path) -> None:
    """Everything to `path`, rotated; to stderr only what a person at a terminal wants to see.

    launchd and systemd hold stderr and never rotate it, so without a terminal only warnings go
    there.
    """
    console = Console(_STDERR)
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    console.setLevel(logging.INFO if is_terminal else logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[LogFile(path), console], force=True)


def hold_standard_streams() -> None:
    """Where stdin, stdout or stderr is closed, have nothing there: else the next file or socket
    that is opened is what everybody writes to. Raises OSError."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def stamped(prefix: str) -> str:
    """How the names of a new process's files begin: `prefix` and the time in UTC, which is never
    set back for the end of summer time; see `remove_old`."""
    return f"{prefix}.{datetime.now(UTC):%Y%m%dT%H%M%S}"


def remove_old(directory: Path, prefix: str, living: Collection[Path] = ()) -> None:
    """Remove the oldest files that begin with `prefix`, keeping those of CHILD_KEEP processes, and
    those of `living` ones, whatever their names say. Never raises.

    Names hold the start time, so their order is their age. The time is matched digit by digit, for
    the files of `qwen2` begin like those of `qwen2.5-coder`.
    """
    with contextlib.suppress(OSError):  # upkeep must not fail what it is upkeep for
        files = sorted(directory.glob(f"{prefix}.{_STAMP}.*std*"))
        for path in files[: max(0, len(files) - 2 * CHILD_KEEP)]:
            if path not in living:
                with contextlib.suppress(OSError):
                    path.unlink()


def cut_to_tail(paths: Iterable[Path]) -> None:
    """Bound the files that children hold open for appending. Blocks on 20 MB of each: not for the
    event loop.

    The descriptor is the child's, so the file is shortened in place; O_APPEND makes its next write
    land at the new end. The last CHILD_TAIL bytes stay: they tell how it ended. A file that is
    renamed meanwhile stays the same one.
    """
    for path in paths:
        try:
            if path.stat().st_size <= CHILD_BYTES:
                continue
            with open(path, "a+b", opener=_existing) as file:
                file.seek(-CHILD_TAIL, os.SEEK_END)
                tail = file.read()
                while grown := file.read():  # until nothing has come while we read
                    tail += grown
                os.ftruncate(file.fileno(), 0)
                file.write(tail)  # behind what the child has written since
        except OSError:
            continue


def _existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)
