"""Where one instance keeps its files, and the lock that makes it the only one there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from supervisor.state.trouble import Trouble
from supervisor.wire.listener import check_private, make_private, temporary
from supervisor.wire.text import is_utf8

log = logging.getLogger("bulkhead.supervisor")

SUN_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes that a Unix socket's path may have."""
_REPLACED = ("address.json", "run.json")
"""Files that each start replaces, and cannot do without."""
_LONGEST_SOCKET = len("/w-0123456789abcdef.sock")


class StateError(Exception):
    """There can be no server here, or no second one: the message is the whole sentence, with what
    to do. What the system refuses is an OSError, which `startup.cannot_use` puts into words."""


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
        made = ((self.root, _make_usable), (self.logs, _make_usable), (self.run, make_private))
        for folder, make in made:
            try:
                make(folder)
            except OSError as error:
                first = first or error
        if first is not None:
            raise first

    def discard_run(self) -> None:
        """Remove the run directory if it lies elsewhere and is empty. Never raises."""
        if self.run.parent != self.root:
            with contextlib.suppress(OSError):  # it hurts nobody
                self.run.rmdir()

    def worker_socket(self, model: str, generation: int) -> Path:
        """A short name that no other incarnation has, whatever the model is called."""
        digest = hashlib.sha256(f"{model}#{generation}".encode()).hexdigest()[:16]
        return self.run / f"w-{digest}.sock"

    def counter_socket(self, generation: int) -> Path:
        """Of each counter another one."""
        return self.run / f"c-{generation}.sock"


def open_state(root: Path) -> StateDir:
    """Create what is missing. Raises StateError, OSError.

    Sockets live in STATE/run, since a temporary directory is swept while we run; only when that
    path is too long for a socket do they live in a directory of this user's under /tmp.
    """
    _check_name(root)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = root.resolve()
    (root / "logs").mkdir(mode=0o700, exist_ok=True)
    run = _place_for_sockets(root)
    try:
        make_private(run)
    except (PermissionError, NotADirectoryError):
        if not os.path.lexists(run):
            raise
        raise StateError(_not_ours(run)) from None
    return StateDir(root, run)


def examine(root: Path) -> None:
    """Whether a server could keep its files there, as far as that can be told without making
    anything that stays. Raises StateError or OSError, as a start with it would."""
    _check_name(root)
    try:
        root.lstat()
    except FileNotFoundError:
        parent = next(each for each in root.parents if os.path.lexists(each))
        _check_lengths(root, parent)
        _write_to(parent, told=root)
        return
    for folder in (root, root / "logs"):
        if os.path.isdir(folder):
            _write_to(folder, told=folder)
        elif os.path.lexists(folder):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    root = root.resolve()
    run = _place_for_sockets(root)
    if os.path.lexists(run):
        try:
            check_private(run)
        except (PermissionError, NotADirectoryError):
            raise StateError(_not_ours(run)) from None
    for path in (root / name for name in _REPLACED):
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(root / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))


def _write_to(folder: Path, *, told: Path) -> None:
    """Raises OSError about `told`."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(told)) from None


def _check_lengths(root: Path, parent: Path) -> None:
    """Of the names that are to be made below `parent`, which is there. Raises OSError."""
    names = [os.fsencode(name) for name in root.relative_to(parent).parts]
    path = os.fsencode(root / "logs" / "supervisor.log")
    if len(path) >= os.pathconf(parent, "PC_PATH_MAX") or any(
        len(name) > os.pathconf(parent, "PC_NAME_MAX") for name in names
    ):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(root))


def holder(root: Path) -> str | None:
    """The pid of the supervisor that holds this state directory, "unknown" where it does not say;
    None where nobody does. A start in the same instant may be refused. Raises OSError, but for a
    lock that is not there."""
    try:
        fd = os.open(root / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid_in(fd)
    finally:
        os.close(fd)
    return None


def _pid_in(lock: int) -> str:
    return os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"


def _check_name(root: Path) -> None:
    """Raises StateError where it, or what a link leads to, is not UTF-8: the name goes into JSON,
    such as of crash reports."""
    for name in (str(root), os.path.realpath(root)):
        if not is_utf8(name):
            raise StateError(
                f"cannot use the state directory {name!a}: its name is not UTF-8. Choose another "
                "--state-dir."
            )


def _not_ours(run: Path) -> str:
    return f"{run} belongs to somebody else; remove it or choose another --state-dir"


def _make_usable(folder: Path) -> None:
    """Have a folder that we can use. One that is there may be somebody else's, a link, or open to
    more than us: whoever made it so has chosen that. Raises OSError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        folder.chmod(mode | 0o700)


def _place_for_sockets(root: Path) -> Path:
    run = root / "run"
    fits = len(os.fsencode(run)) + _LONGEST_SOCKET <= SUN_PATH
    return run if fits else temporary(root)


class InstanceLock:
    """Exclusive hold on a state directory. The kernel drops it with the process, so it can't go
    stale; it is CLOEXEC, so no child keeps it. `keep` may run on another thread than the rest."""

    def __init__(self, state: StateDir) -> None:
        self._path = state.root / "lock"
        self._fd: int | None = None
        self._changing = threading.Lock()
        """Held while `_fd` changes, and never for anything that blocks."""
        self._trouble = Trouble(f"lock {self._path} again, which somebody has removed")

    def acquire(self) -> None:
        """Raises StateError when another supervisor holds the directory; OSError."""
        self._replace(self._fd, self._lock())

    def _lock(self) -> int:
        """The descriptor of the locked file. Raises StateError, OSError."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid_in(fd)
            os.close(fd)
            raise StateError(
                f"another Bulkhead (pid {pid}) already runs with the state "
                f"directory {self._path.parent}; stop it or choose another --state-dir"
            ) from None
        except OSError as error:
            os.close(fd)
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        with contextlib.suppress(OSError):  # a full disk: the pid is for people
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def _replace(self, held: int | None, fd: int | None) -> None:
        """From now on `fd` is what is held in place of `held`, which is closed; `fd` is where
        `held` was given up meanwhile."""
        with self._changing:
            done = self._fd == held
            if done:
                self._fd = fd
        unused = held if done else fd
        if unused is not None:
            os.close(unused)

    def keep(self) -> None:
        """Lock the directory anew if the file was removed or replaced, for who starts then would
        lock another file. The log is told once. Raises nothing."""
        held = self._fd
        if held is None or self._is_in_place(held):
            return
        try:
            self._replace(held, self._lock())
        except (StateError, OSError) as error:
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
        with self._changing:
            held, self._fd = self._fd, None
        if held is not None:
            os.close(held)


def slug(name: str) -> str:
    """A file name that no other model has: the model's name, or what of it may be in a file name
    with a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
    if plain == name:
        return plain
    return f"{plain or 'model'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
