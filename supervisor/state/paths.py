"""Where one instance keeps its files, and the lock that makes it the only one there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
        run = root / "run"
        if len(os.fsencode(run)) + _LONGEST_SOCKET > SUN_PATH or not _is_utf8(run):
            digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
            run = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
            run /= f"bulkhead-{os.getuid()}-{digest}"
        _private_dir(run)
    except OSError as error:
        raise StateError(f"cannot use the state directory {root}: {error.strerror}") from None
    return StateDir(root, run)


def _is_utf8(path: Path) -> bool:
    """Messages carry the paths of sockets, and no text in another encoding."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _private_dir(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise StateError(
            f"{path} belongs to somebody else; remove it or choose another --state-dir"
        )
    path.chmod(0o700)


class InstanceLock:
    """Exclusive hold on a state directory. The kernel drops it with the process, so it can't go
    stale; it is CLOEXEC, so no child keeps it."""

    def __init__(self, state: StateDir) -> None:
        self._path = state.root / "lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Raises StateError when another supervisor holds the directory."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot open {self._path}: {error.strerror}") from None
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
            raise StateError(f"cannot lock {self._path}: {error.strerror}") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

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
