"""Unix sockets that stay reachable: whoever removes one finds it made again.

A socket has a path, and may be at another place where its folder can't be used: `places` tells both
sides the same ones from that path. Who listens keeps to the first place that works, who connects
tries them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from supervisor.wire.codec import REPLY_LIMIT
from supervisor.wire.stream import FrameStream, Handler, connect, listen

log = logging.getLogger("bulkhead.wire")

F = TypeVar("F")

LOOK_SECONDS = 1.0
"""Between two looks at whether a socket is still there."""


def folders(run: Path) -> tuple[Path, ...]:
    """The run directory, and where its sockets are when it can't be used."""
    return run, temporary(run)


def temporary(folder: Path) -> Path:
    """What stands in for a folder that sockets can't be in: always the same one, this user's."""
    base = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(base) / f"bulkhead-{os.getuid()}-{digest}"


def places(path: str) -> Iterator[str]:
    """Where the socket of that path may be, best first. The others are worked out when they are
    asked for: each request connects twice, nearly always at the first."""
    yield path
    wanted = Path(path)
    yield str(temporary(wanted.parent) / wanted.name)


def make_private(folder: Path) -> None:
    """Have a folder that is this user's alone, 0700; the one above is made too if it is missing.
    Raises OSError, PermissionError where it is somebody else's."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    if stat.S_IMODE(check_private(folder).st_mode) != 0o700:
        folder.chmod(0o700)


def check_private(folder: Path) -> os.stat_result:
    """What `lstat` says of the folder. Raises OSError, PermissionError where it is not ours: in a
    temporary directory anybody may have made it."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if status.st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "it belongs to somebody else", str(folder))
    return status


async def reach(path: str, frames: Any) -> FrameStream[F]:
    """Connect to the socket at whichever of its places. Raises the OSError of the first one."""
    first: OSError | None = None
    for place in places(path):
        try:
            check_private(Path(place).parent)
            return await connect(place, frames)
        except OSError as error:
            first = first or error
    assert first is not None
    raise first


class Listener(Generic[F]):
    """Serves a Unix socket for as long as its owner wants, whatever becomes of the file."""

    def __init__(
        self, path: str, frames: Any, handler: Handler[F], limit: int = REPLY_LIMIT
    ) -> None:
        """As `stream.listen`."""
        self._path = path
        self._frames = frames
        self._handler = handler
        self._limit = limit
        self._place = ""
        self._identity: tuple[int, ...] | None = None
        self._server: asyncio.Server | None = None
        self._is_lost = False
        """Whether the log was told that it can't listen, and it still can't."""

    async def open(self) -> None:
        """Listen, at the first place that can be used. Connections of before go on. Raises the
        OSError of the first one."""
        first: OSError | None = None
        for place in places(self._path):
            if place == self._place and self.is_in_place:
                return
            try:
                make_private(Path(place).parent)
                _free(place, self._identity)
                server = await listen(place, self._frames, self._handler, self._limit)
                status = os.stat(place)
            except OSError as error:
                first = first or error
                continue
            if self._server is not None:
                self._server.close()
                self._remove()
            # Held, for uvloop closes the socket of a server that nobody refers to.
            self._server, self._place = server, place
            self._identity = _identity(status)
            if first is not None:
                why = first.strerror or first
                log.warning("no socket can be at %s (%s); it is %s", self._path, why, place)
            return
        assert first is not None
        raise first

    @property
    def is_in_place(self) -> bool:
        """Whether who connects now arrives here, and may. A look at a folder or two."""
        try:
            check_private(Path(self._place).parent)  # as `reach` does
            status = os.stat(self._place)
        except OSError:
            return False
        return _identity(status) == self._identity

    async def keep(self) -> NoReturn:
        """See to it, until cancelled, that the socket is there."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.is_in_place and not self._may_return():
                continue
            before, server = self._place, self._server
            try:
                await self.open()
            except OSError as error:
                if not self._is_lost:
                    self._is_lost = True
                    why = error.strerror or error
                    log.error("the socket %s is gone and can't be made again: %s", before, why)
            else:
                self._is_lost = False
                if self._server is not server:
                    log.warning("the socket %s was gone and is made again: %s", before, self._place)

    def _may_return(self) -> bool:
        """Whether it listens elsewhere and its own folder can be used again."""
        if self._place == self._path:
            return False
        folder = Path(self._path).parent
        try:
            make_private(folder)
        except OSError:
            return False
        return os.access(folder, os.W_OK)

    def close(self) -> None:
        """Listen no more, and remove the socket."""
        if self._server is None:
            return
        self._remove()
        self._server.close()
        remove_spare_folder(Path(self._path).parent)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # it hurts nobody, and the next start removes it
            if self.is_in_place:
                os.unlink(self._place)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Which socket it is, and who may connect."""
    return status.st_dev, status.st_ino, status.st_uid, status.st_mode


def remove_spare_folder(run: Path) -> None:
    """Remove the folder that stood in for the run directory, if it is there and empty."""
    with contextlib.suppress(OSError):
        folders(run)[-1].rmdir()


def _free(place: str, ours: tuple[int, ...] | None) -> None:
    """Remove what nobody else listens at; `ours` is our own socket. Raises OSError, also where
    somebody does."""
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        return
    own = ours is not None and _identity(status)[:2] == ours[:2]  # somebody changed its mode
    if stat.S_ISSOCK(status.st_mode) and not own:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(place) in (0, errno.EAGAIN, errno.EINPROGRESS):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), place)
    if stat.S_ISDIR(status.st_mode):
        os.rmdir(place)
    else:
        os.unlink(place)
