"""The process behind `bulkhead serve`: `python -m supervisor.serve DESCRIPTOR STATE`.

DESCRIPTOR is that of an open file with the settings as JSON, STATE is the state directory. The
command replaces itself with this process, which has imported neither the command line's libraries
nor anything else that a supervisor does not need while it runs for weeks: a quarter of its memory.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import typing
from importlib.metadata import version
from pathlib import Path

import msgspec

from supervisor import build
from supervisor.app import WORKER_MODULE, Supervisor
from supervisor.config.rules import ConfigError
from supervisor.config.schema import Config
from supervisor.machine import readers
from supervisor.models import catalog
from supervisor.models.size_cache import SizeCache
from supervisor.models.sizing import Sizing
from supervisor.processes import orphans
from supervisor.state import address, logs
from supervisor.state.paths import InstanceLock, StateError, open_state
from supervisor.wire.stream import BACKLOG

FILES = 16384
"""Open files to allow ourselves: three for each stream in the gateway, shells start with 256."""


def main() -> None:
    with open(int(sys.argv[1]), "rb") as file:
        file.seek(0)
        settings = msgspec.json.decode(file.read(), type=Config)
    logs.hold_standard_streams()  # after that file, which may stand in the place of one
    sys.exit(run(settings, Path(sys.argv[2])))


def run(
    settings: Config,
    root: Path,
    *,
    worker_module: str = WORKER_MODULE,
    reader: readers.MemoryReader | None = None,
) -> int:
    """Serve in this process until told to stop. Returns the exit status, or ends the process with
    one line on stderr when it cannot serve. The last two are for tests: what workers run, and what
    reads the machine's memory."""
    try:
        settings, served = catalog.build(settings, os.environ)
        state = open_state(root)
        lock = InstanceLock(state)
        lock.acquire()
    except ConfigError as error:
        _give_up(str(error), 2)
    except StateError as error:
        _give_up(str(error), 1)
    logs.set_up(state.logs / "supervisor.log")
    reader = reader or readers.for_platform()
    # A child that imports MLX: seconds, for a figure that "auto" alone asks for.
    working_set = readers.working_set() if settings.memory.budget == "auto" else None
    budget = build.budget(settings.memory, reader.machine(), working_set)
    sizing = Sizing(served, SizeCache.load(state.sizes), budget)
    try:
        pool = build.pool(settings, served, sizing)
    except ConfigError as error:
        _give_up(str(error), 2)
    _raise_file_limit()
    try:
        orphans.clean(state)  # before the port is asked for: a leftover gateway may hold it
    except StateError as error:
        _give_up(str(error), 1)
    server = settings.server
    try:
        listener = _listen(server.host, server.port)
    except OSError as error:
        _give_up(
            f"cannot listen on {server.host}:{server.port}: {error.strerror or error}. "
            "Choose another with --host and --port.",
            1,
        )
    port = listener.getsockname()[1]
    shown = f"[{server.host}]" if ":" in server.host else server.host
    url = f"http://{shown}:{port}"
    here = address.Address(_reachable(url), server.api_keys_file)
    supervisor = Supervisor(
        settings,
        served,
        state,
        listener,
        pool=pool,
        sizing=sizing,
        reader=reader,
        version=version("mlx-bulkhead"),
        worker_module=worker_module,
        keepers=(lock.keep, lambda: address.keep(state.root, here)),
    )
    try:
        address.announce(state.root, here)
        return asyncio.run(supervisor.run(f"Bulkhead ready on {url}"))
    except OSError as error:
        _give_up(f"cannot write to {state.root}: {error.strerror}", 1)
    finally:
        address.withdraw(state.root)
        lock.release()


def _reachable(url: str) -> str:
    """Every address includes the loopback one, at which commands of this machine ask."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _listen(host: str, port: int) -> socket.socket:
    """The one listening socket. It outlives every gateway, so no connection is ever refused."""
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


def _raise_file_limit() -> None:
    """Before any spawn, so that every child inherits it. As far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((FILES, max(FILES, hard)), (min(FILES, hard), hard)):
        if soft >= FILES:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
            return
        except (ValueError, OSError):
            continue  # only root may raise the hard limit


def _give_up(message: str, status: int) -> typing.NoReturn:
    """One line and an exit status."""
    print(f"bulkhead: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
