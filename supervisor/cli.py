"""The `bulkhead` command."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from supervisor import catalog, client, commands, config, leftovers, logs, readers
from supervisor.config import ConfigError, Overrides
from supervisor.paths import InstanceLock, StateError, open_state
from supervisor.service import WORKER_MODULE, Supervisor
from supervisor.wire.stream import BACKLOG

FILES = 16384
"""Open files to allow ourselves: three for each stream in the gateway, shells start with 256."""

_LATER = {
    "pull": "download a model",
    "logs": "log tails",
    "doctor": "check the machine",
    "bench": "load test of a running endpoint",
    "selftest": "fault injection against a private instance",
    "install": "install the service",
    "uninstall": "remove the service",
}
"""Commands of the contract that this version does not have yet."""

app = typer.Typer(
    name="bulkhead",
    help="The LLM server for Apple silicon that one model cannot sink.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bulkhead {version('mlx-bulkhead')}")
        raise typer.Exit


@app.callback()
def bulkhead(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """The LLM server for Apple silicon that one model cannot sink."""


@app.command()
def serve(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Configuration file (TOML)."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=SOURCE",
            help="Serve SOURCE, a folder, a Hugging Face repo in the local cache, or `demo`, as "
            "NAME. Repeatable.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="H", help="Address to listen on [127.0.0.1].")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="P", help="Port to listen on, 0 = any free one [11435].")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where logs and state live [~/.bulkhead].")
    ] = None,
    ram_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="RAM for all models: auto (the default), 96GB or 75%."),
    ] = None,
    preload: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Load this model at once. Repeatable."),
    ] = None,
) -> None:
    """Run supervisor, gateway and workers in the foreground until SIGTERM or Ctrl-C."""
    try:
        flags = Overrides(
            host=host,
            port=port,
            ram_budget=ram_budget,
            models=tuple(config.parse_model_flag(text) for text in model or ()),
            preload=tuple(preload or ()),
        )
        root = config.resolve_state_dir(state_dir, os.environ)
        path = config.resolve_config_path(config_file, os.environ, root)
        settings = config.load(path, environ=os.environ, overrides=flags)
        if settings.server.api_keys_file:
            config.read_api_keys(settings.server.api_keys_file)
        settings, served = catalog.build(settings, os.environ)
    except ConfigError as error:
        _complain(str(error), 2)
    sys.exit(run(settings, served, root))


def run(
    settings: config.Config,
    served: catalog.Catalog,
    root: Path,
    *,
    worker_module: str = WORKER_MODULE,
    reader: readers.Reader | None = None,
) -> int:
    """Serve in this process until told to stop. Returns the exit status. The last two are for
    tests: what workers run, and what reads the machine's memory."""
    try:
        state = open_state(root)
        lock = InstanceLock(state)
        lock.acquire()
    except StateError as error:
        _complain(str(error), 1)
    logs.set_up(state.logs / "supervisor.log")
    _raise_file_limit()
    leftovers.clean(state)  # before the port is asked for: a leftover gateway may hold it
    server = settings.server
    try:
        listener = _listen(server.host, server.port)
    except OSError as error:
        _complain(
            f"cannot listen on {server.host}:{server.port}: {error.strerror or error}. "
            "Choose another with --host and --port.",
            1,
        )
    port = listener.getsockname()[1]
    shown = f"[{server.host}]" if ":" in server.host else server.host
    supervisor = Supervisor(
        settings,
        served,
        state,
        listener,
        version=version("mlx-bulkhead"),
        worker_module=worker_module,
        # A child that imports MLX: seconds, for a figure that "auto" alone asks for.
        working_set=readers.working_set() if settings.memory.budget == "auto" else None,
        reader=reader,
    )
    url = f"http://{shown}:{port}"
    try:
        client.announce(state, client.Address(_reachable(url), server.api_keys_file))
        return asyncio.run(supervisor.run(f"Bulkhead ready on {url}"))
    except OSError as error:
        _complain(f"cannot write to {state.root}: {error.strerror}", 1)
    finally:
        state.address.unlink(missing_ok=True)
        lock.release()


def _reachable(url: str) -> str:
    """Every address includes the loopback one, at which commands of this machine ask."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _listen(host: str, port: int) -> socket.socket:
    """The one listening socket. It outlives every gateway, so no connection is ever refused."""
    if host == "localhost":
        host = "127.0.0.1"  # the name may stand for ::1 alone, where few clients look
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
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


def _complain(message: str, status: int) -> typing.NoReturn:
    print(f"bulkhead: {message}", file=sys.stderr)
    sys.exit(status)


def _refuse(name: str) -> None:
    @app.command(name, help=f"{_LATER[name]} (not supported yet)", hidden=True)
    def later(_arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        _complain(f"`bulkhead {name}` is not supported yet by this version", 1)


commands.add_to(app)
for _name in _LATER:
    _refuse(_name)


if __name__ == "__main__":
    app()
