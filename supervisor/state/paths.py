"""Where one instance keeps its files, and the lock that makes it the only one there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from supervisor.state.trouble import Trouble
from supervisor.wire.listener import make_private

log = logging.getLogger("bulkhead.supervisor")

SUN_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes that a Unix socket's path may have."""
_LONGEST_SOCKET = len("/w-0123456789abcdef.sock")


class StateError(Exception):
    """The state directory can't be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class StateDir:
    """STATE and what is in it. `run` holds the sockets and may lie elsewhere: see `open_state`."""

    root: Path
    run: Path

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def children(self) -> Path:
        """Record of the running processes: the next start kills what is left of them."""
        return self.root / "children.json"

    @property
    def sizes(self) -> Path:
        return self.root / "sizes.json"

    @property
    def crashes(self) -> Path:
        return self.root / "crashes"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.json"

    @property
    def control(self) -> Path:
        return self.run / "control.sock"

    def restore(self) -> None:
        """Make the folders again that somebody has removed. Raises OSError."""
        first: OSError | None = None
        for folder in (self.root, self.logs, self.run):
            try:
                make_private(folder)
            except OSError as error:
                first = first or error
        if first is not None:
            raise first

    def worker_socket(self, model: str, generation: int) -> Path:
        """A short name that no other incarnation has, whatever the model is called."""
        digest = hashlib.sha256(f"{model}#{generation}".encode()).hexdigest()[:16]
        return self.run / f"w-{digest}.sock"


def open_state(root: Path) -> StateDir:
    """Create what is missing. Raises StateError.

    Sockets live in STATE/run, since a temporary directory is swept while we run; only when that
    path is too long for a socket, or not UTF-8, do they live in a directory of this user's under
    /tmp.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = root.resolve()
        (root / "logs").mkdir(mode=0o700, exist_ok=True)
        run = _place_for_sockets(root)
        try:
            make_private(run)
        except (PermissionError, NotADirectoryError):
            if not os.path.lexists(run):
                raise
            raise StateError(
                f"{run} belongs to somebody else; remove it or choose another --state-dir"
            ) from None
    except OSError as error:
        raise StateError(f"cannot use the state directory {root}: {error.strerror}") from error
    return StateDir(root, run)


def _place_for_sockets(root: Path) -> Path:
    run = root / "run"
    if len(os.fsencode(run)) + _LONGEST_SOCKET <= SUN_PATH and _is_utf8(run):
        return run
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    temporary = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
    return temporary / f"bulkhead-{os.getuid()}-{digest}"


def _is_utf8(path: Path) -> bool:
    """Messages carry the paths of sockets, and no text in another encoding."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


class InstanceLock:
    """Exclusive hold on a state directory. The kernel drops it with the process, so it can't go
    stale; it is CLOEXEC, so no child keeps it."""

    def __init__(self, state: StateDir) -> None:
        self._path = state.root / "lock"
        self._fd: int | None = None
        self._trouble = Trouble(f"lock {self._path} again, which somebody has removed")

    def acquire(self) -> None:
        """Raises StateError when another supervisor holds the directory."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot open {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            raise StateError(
                f"another Bulkhead (pid {holder or 'unknown'}) already runs with the state "
                f"directory {self._path.parent}; stop it or choose another --state-dir"
            ) from None
        except OSError as error:
            os.close(fd)
            raise StateError(f"cannot lock {self._path}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # a full disk: the pid is for people
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self.release()
        self._fd = fd

    def keep(self) -> None:
        """Lock the directory anew if the file was removed or replaced, for who starts then would
        lock another file. The log is told once. Raises nothing."""
        if self._fd is None or self._is_in_place(self._fd):
            return
        try:
            self.acquire()
        except StateError as error:
            self._trouble.failed(error)
        else:
            log.warning("the lock file %s was removed by somebody and is made again", self._path)
            self._trouble.worked()

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(fd))
        except OSError:
            return False

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def slug(name: str) -> str:
    """A file name that no other model has: the model's name, or what of it may be in a file name
    with a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
    if plain == name:
        return plain
    return f"{plain or 'model'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
