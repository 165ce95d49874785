"""What must hold of Python, the installation, the open files and the port before there can be a
server: looked at by the start, and by `bulkhead doctor` in the same words.

`supervisor.state.paths` has the same of the state directory.
"""

from __future__ import annotations

import errno
import importlib.util
import platform
import resource
import socket

from supervisor import bootstrap, startup
from supervisor.machine.listeners import who_listens
from supervisor.processes import own_code
from supervisor.processes.launcher import installed
from supervisor.state.paths import StateError
from supervisor.wire.stream import BACKLOG
from supervisor.wire.text import reason

FILES = 16384
"""Open files to allow ourselves: three for each stream in the gateway, shells start with 256."""


def check_python() -> None:
    """Raises StateError where no model can run."""
    missing = [name for name in ("mlx", "mlx_lm") if importlib.util.find_spec(name) is None]
    cure = bootstrap.cure(str(installed()))
    problem = startup.unsuitable(missing, cure, machine=platform.machine())
    if problem is not None:
        raise StateError(problem)


def own_files() -> own_code.Files:
    """The installation. Blocks on some 200 files: 50 ms. Raises StateError where it is not what was
    installed."""
    root = installed()
    try:
        files = own_code.read(root)
    except OSError as error:
        problem = f"{error.filename or root} cannot be read ({reason(error)})"
    else:
        if not files.damaged:
            return files
        first, *others = files.damaged
        more = f" ({len(others)} more like it)" if others else ""
        problem = f"{root / first} is missing, or is not the file that was installed{more}"
    raise StateError(f"{bootstrap.DAMAGED}: {problem}. {bootstrap.cure(str(root))}")


def listen(host: str, port: int) -> socket.socket:
    """The one listening socket. It outlives every gateway, so no connection is ever refused.
    Blocks on the host's name, and on all processes where the port is taken. Raises StateError."""
    try:
        return _bound(host, port)
    except (OSError, UnicodeError) as error:
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        holder = who_listens(port) if in_use else None
        raise StateError(startup.cannot_listen(error, host, port, holder)) from None


def _bound(host: str, port: int) -> socket.socket:
    if host == "localhost":
        host = "127.0.0.1"  # the name may stand for ::1 alone, where few clients look
    family, kind, protocol, _, endpoint = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(endpoint)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def raise_file_limit() -> int:
    """How many open files this process is allowed from now on, FILES or as many as the system
    gives; every child inherits it. Raises StateError where that is too little to serve anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((FILES, max(FILES, hard)), (min(FILES, hard), hard)):
        if soft >= FILES:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
        except (ValueError, OSError):
            continue  # only root may raise the hard limit
        soft = wanted[0]
    if (problem := startup.too_few_files(soft)) is not None:
        raise StateError(problem)
    return soft
