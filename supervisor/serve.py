"""The process behind `bulkhead serve`, under `supervisor.bootstrap`: DESCRIPTOR STATE.

DESCRIPTOR is that of an open file with the settings as JSON, STATE is the state directory. The
command replaces itself with this process, which has imported neither the command line's libraries
nor anything else that a supervisor does not need while it runs for weeks: a quarter of its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib.util
import logging
import os
import platform
import resource
import socket
import sys
import time
import typing
from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path

import msgspec

from supervisor import bootstrap, build, startup
from supervisor.app import WORKER_MODULE, Supervisor
from supervisor.config.rules import ConfigError
from supervisor.config.schema import Config
from supervisor.crashes.no_shutdown import report_run
from supervisor.machine import readers
from supervisor.machine.boot import boot_id
from supervisor.machine.listeners import who_listens
from supervisor.models import catalog, discovery
from supervisor.models.size_cache import SizeCache
from supervisor.models.sizing import Sizing
from supervisor.processes import orphans, own_code
from supervisor.processes.launcher import installed
from supervisor.processes.own_code import OwnCode
from supervisor.state import address, last_run, logs
from supervisor.state.last_run import Run
from supervisor.state.paths import InstanceLock, StateError, open_state
from supervisor.wire.stream import BACKLOG
from supervisor.wire.text import reason

log = logging.getLogger("bulkhead.supervisor")

FILES = 16384
"""Open files to allow ourselves: three for each stream in the gateway, shells start with 256."""
_STDERR = 2
_FILES_NEEDED = 64
_FILES_ENOUGH = 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=int)
    parser.add_argument("state", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    with open(arguments.settings, "rb") as file:
        file.seek(0)
        settings = msgspec.json.decode(file.read(), type=Config)
    logs.hold_standard_streams()  # after that file, which may stand in the place of one
    status = run(settings, arguments.state, config=arguments.config, quiet=arguments.quiet)
    sys.exit(status)


def run(
    settings: Config,
    root: Path,
    *,
    config: Path | None = None,
    quiet: bool = False,
    worker_module: str = WORKER_MODULE,
    reader: readers.MemoryReader | None = None,
) -> int:
    """Serve in this process until told to stop. Returns the exit status, or ends the process with
    one line on stderr when it cannot serve. `config` is the file that settings came from; if
    `quiet` a terminal does not show each request. The last two are for tests: what workers run, and
    what reads the machine's memory."""
    try:
        _check_python()
        terminal = _STDERR if sys.stderr.isatty() and not quiet else None
        reader = reader or readers.for_platform()
        return _run(settings, root, config, worker_module, reader, terminal)
    except ConfigError as error:
        _give_up(str(error), 2)
    except StateError as error:
        _give_up(str(error), 1)
    except OSError as error:
        _give_up(startup.cannot_use(error, root), 1)
    except MemoryError:
        _give_up(startup.NO_MEMORY, 1)


def _run(
    settings: Config,
    root: Path,
    config: Path | None,
    worker_module: str,
    reader: readers.MemoryReader,
    terminal: int | None,
) -> int:
    settings, served = catalog.build(settings, os.environ)
    state = open_state(root)
    lock = InstanceLock(state)
    lock.acquire()
    logs.set_up(state.logs / "supervisor.log")  # which is not written to before the first line
    left = last_run.find(state)
    discovery.log_passed_over(served.passed_over)
    files = _own_files()
    # A child that imports MLX: seconds, for a figure that "auto" alone asks for.
    working_set = readers.working_set() if settings.memory.budget == "auto" else None
    physical = reader.machine()
    budget = build.budget(settings.memory, physical, working_set)
    sizing = Sizing(served, SizeCache.load(state.sizes), budget)
    pool = build.pool(settings, served, sizing)
    _raise_file_limit()
    orphans.clean(state)  # before the port is asked for: a leftover gateway may hold it
    server = settings.server
    listener = _listen(server.host, server.port)
    port = listener.getsockname()[1]
    shown = f"[{server.host}]" if ":" in server.host else server.host
    url = f"http://{shown}:{port}"
    here = address.Address(_reachable(url), server.api_keys_file)
    boot = boot_id()
    if left is not None:
        report_run(left, state, boot)
    own_code.discard_copies(state.run)
    supervisor = Supervisor(
        settings,
        served,
        state,
        listener,
        pool=pool,
        sizing=sizing,
        reader=reader,
        version=version(own_code.DISTRIBUTION),
        worker_module=worker_module,
        code=OwnCode(files, state.run),
        terminal=terminal,
        keepers=(lock.keep, lambda: address.keep(state.root, here)),
    )
    names = list(served.models)
    lines = startup.greeting(
        names,
        url=_reachable(url),
        budget=budget,
        physical=physical.physical,
        config=config,
        logs=state.logs,
        first=server.default_model or next(iter(names), "demo"),
        keys=bool(server.api_keys_file),
    )
    run = Run(os.getpid(), time.time(), version(own_code.DISTRIBUTION), boot)
    address.announce(state.root, here)
    try:
        last_run.begin(state, run)
        status = _run_loop(supervisor.run(f"Bulkhead ready on {url}", lines))
    except OSError:
        last_run.end(state)  # it is told now: nothing for the next start
        raise
    except Exception:
        log.critical("a bug ends the supervisor", exc_info=True)
        raise
    finally:
        address.withdraw(state.root)
        own_code.discard_copies(state.run)
        state.discard_run()
        lock.release()
    last_run.end(state)
    return status


def _run_loop(work: Coroutine[None, None, int]) -> int:
    """What `work` returns. That the event loop's own end fails afterwards, for want of a thread to
    wait for its threads, changes nothing."""
    status: int | None = None
    try:
        with asyncio.Runner() as runner:
            status = runner.run(work)
    except (OSError, RuntimeError) as error:
        if status is None:
            raise
        log.warning("the event loop has not ended in order: %s", error)
    assert status is not None
    return status


def _check_python() -> None:
    """Raises StateError where no model can run."""
    missing = [name for name in ("mlx", "mlx_lm") if importlib.util.find_spec(name) is None]
    cure = bootstrap.cure(str(installed()))
    problem = startup.unsuitable(missing, cure, machine=platform.machine())
    if problem is not None:
        raise StateError(problem)


def _own_files() -> own_code.Files:
    """The installation. Raises StateError where it is not what was installed."""
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


def _reachable(url: str) -> str:
    """Every address includes the loopback one, at which commands of this machine ask."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _listen(host: str, port: int) -> socket.socket:
    """The one listening socket. It outlives every gateway, so no connection is ever refused.
    Raises StateError."""
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


def _raise_file_limit() -> None:
    """Before any spawn, so that every child inherits it. As far as the system allows. Raises
    StateError where that is too little to serve anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((FILES, max(FILES, hard)), (min(FILES, hard), hard)):
        if soft >= FILES:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
        except (ValueError, OSError):
            continue  # only root may raise the hard limit
        soft = wanted[0]
    if soft < _FILES_NEEDED:
        raise StateError(
            f"only {soft} open files are allowed, and Bulkhead needs {_FILES_NEEDED} at least. "
            "Allow more with `ulimit -n 4096`, or in the service's settings."
        )
    if soft < _FILES_ENOUGH:
        log.warning(
            "only %d open files are allowed: enough for some %d streams at once. `ulimit -n 4096`, "
            "or the service's settings, allow more",
            soft,
            soft // 3,
        )


def _give_up(message: str, status: int) -> typing.NoReturn:
    """One line and an exit status."""
    print(f"bulkhead: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
