"""The `bulkhead` command."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from supervisor import bootstrap
from supervisor.cli import commands
from supervisor.cli.client import fail
from supervisor.cli.doctor import doctor
from supervisor.cli.launch import launch
from supervisor.cli.selftest.command import selftest
from supervisor.config.files import read_api_keys, resolve_config_path, resolve_state_dir
from supervisor.config.flags import Overrides, parse_model_flag
from supervisor.config.rules import ConfigError
from supervisor.config.schema import Config
from supervisor.config.settings import load
from supervisor.wire.text import reason

_LATER = {
    "pull": "download a model",
    "logs": "log tails",
    "bench": "load test of a running endpoint",
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
        typer.Option("--config", metavar="FILE", readable=False, help="Configuration file (TOML)."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=SOURCE",
            help="Serve SOURCE, a folder, a Hugging Face repo in the local cache, or `demo`, as "
            "NAME; without NAME= under its own. Repeatable.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="H", help="Address to listen on [127.0.0.1].")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="P", help="Port to listen on, 0 = any free one [11435].")
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where logs and state live [~/.bulkhead]."),
    ] = None,
    ram_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="RAM for all models: auto (the default), 96GB or 75%."),
    ] = None,
    preload: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Load this model at once. Repeatable."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Do not show each request on the terminal.")
    ] = False,
) -> None:
    """Run supervisor, gateway and workers in the foreground until SIGTERM or Ctrl-C."""
    try:
        flags = Overrides(
            host=host,
            port=port,
            ram_budget=ram_budget,
            models=tuple(parse_model_flag(text) for text in model or ()),
            preload=tuple(preload or ()),
        )
        root = resolve_state_dir(state_dir, os.environ)
        path = resolve_config_path(config_file, os.environ, root)
        settings = load(path, environ=os.environ, overrides=flags)
        if settings.server.api_keys_file:
            read_api_keys(settings.server.api_keys_file)
    except ConfigError as error:
        fail(str(error), 2)
    _become_server(settings, root, path, quiet=quiet)


def _become_server(settings: Config, root: Path, config: Path | None, *, quiet: bool) -> NoReturn:
    """Replace this process by the serving one. Settings may hold secrets, so they go through a file
    without a name instead of the command line."""
    try:
        encoded = msgspec.json.encode(settings)
    except UnicodeEncodeError:
        fail("a flag or a variable is not text in UTF-8", 2)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(encoded)
            file.flush()
            os.set_inheritable(file.fileno(), True)
            arguments = ["supervisor.serve", str(file.fileno()), str(root)]
            if config is not None:
                arguments += ["--config", str(config.absolute())]
            if quiet:
                arguments.append("--quiet")
            os.execv(sys.executable, [sys.executable, "-P", bootstrap.__file__, *arguments])
    except OSError as error:
        fail(
            f"cannot start: {reason(error)}. See that there is a temporary directory "
            "with some space (TMPDIR chooses another), and that this Python is still installed."
        )


def _refuse(name: str) -> None:
    @app.command(name, help=f"{_LATER[name]} (not supported yet)", hidden=True)
    def later(_arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        fail(f"`bulkhead {name}` is not supported yet by this version", 1)


commands.add_to(app)
app.command("doctor", help="Check models, files and settings; say what to do.")(doctor)
app.command("launch", help="Start a program pointed at the running server.")(launch)
app.command(
    "selftest",
    help="Kill, wedge and starve a private instance under load; print what became of it.",
)(selftest)
for _name in _LATER:
    _refuse(_name)


if __name__ == "__main__":
    app()
