"""The process behind `bulkhead serve`, under `supervisor.bootstrap`: DESCRIPTOR STATE.

DESCRIPTOR is that of an open file with the settings as JSON, STATE is the state directory. The
command replaces itself with this process, which has imported neither the command line's libraries
nor anything else that a supervisor does not need while it runs for weeks: a quarter of its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
import typing
from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path

import msgspec

from supervisor import build, conditions, startup
from supervisor.app import WORKER_MODULE, Supervisor
from supervisor.background import Latest
from supervisor.config.rules import ConfigError
from supervisor.config.schema import Config
from supervisor.crashes.no_shutdown import report_run
from supervisor.machine import readers
from supervisor.machine.boot import boot_id
from supervisor.models import catalog, discovery
from supervisor.models.catalog import Catalog
from supervisor.models.size_cache import SizeCache
from supervisor.models.sizing import Sizing
from supervisor.processes import orphans, own_code
from supervisor.processes.own_code import OwnCode
from supervisor.state import address, last_run, logs
from supervisor.state.last_run import Run
from supervisor.state.paths import InstanceLock, StateDir, StateError, open_state

log = logging.getLogger("bulkhead.supervisor")

_STDERR = 2


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
        conditions.check_python()
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
    try:
        return _serve(settings, served, state, config, worker_module, reader, terminal)
    finally:
        state.discard_run()


def _serve(
    settings: Config,
    served: Catalog,
    state: StateDir,
    config: Path | None,
    worker_module: str,
    reader: readers.MemoryReader,
    terminal: int | None,
) -> int:
    lock = InstanceLock(state)
    lock.acquire()
    logs.set_up(state.logs / "supervisor.log")  # which is not written to before the first line
    left = last_run.find(state)
    discovery.log_passed_over(served.passed_over)
    files = conditions.own_files()
    # A child that imports MLX: seconds, for a figure that "auto" alone asks for.
    working_set = readers.working_set() if settings.memory.budget == "auto" else None
    physical = reader.machine()
    budget = build.budget(settings.memory, physical, working_set)
    sizing = Sizing(served, SizeCache.load(state.sizes, Latest("sizes")), budget)
    pool = build.pool(settings, served, sizing)
    if (scarce := startup.few_files(conditions.raise_file_limit())) is not None:
        log.warning("%s", scarce)
    orphans.clean(state)  # before the port is asked for: a leftover gateway may hold it
    server = settings.server
    listener = conditions.listen(server.host, server.port)
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
    whole = filter(sizing.seems_whole, names)
    lines = startup.greeting(
        names,
        url=_reachable(url),
        budget=budget,
        physical=physical.usable,
        limit=None if physical.limit is None else physical.limit.file,
        config=config,
        logs=state.logs,
        first=server.default_model or next(whole, next(iter(names), "demo")),
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


def _reachable(url: str) -> str:
    """Every address includes the loopback one, at which commands of this machine ask."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _give_up(message: str, status: int) -> typing.NoReturn:
    """One line and an exit status."""
    print(f"bulkhead: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
