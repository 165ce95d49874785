"""`bulkhead launch`: a program pointed at the running server, for one run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import Annotated, Literal

import typer

from supervisor.cli import output
from supervisor.cli.client import fail
from supervisor.cli.commands import StateDirectory, Url, ask, connect, parsed
from supervisor.cli.health import Configured, Health
from supervisor.cli.programs import PROGRAMS, Program, Start, Target
from supervisor.layout import visible
from supervisor.wire.text import reason

ProgramName = Literal["codex", "claude", "opencode", "aider", "openwebui"]
Named = Annotated[ProgramName, typer.Argument(metavar="PROGRAM", help=", ".join(PROGRAMS) + ".")]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The model that it uses; else the server's default, the one that is loaded, or the "
        "only one there is.",
    ),
]
Only = Annotated[
    bool, typer.Option("--print", help="Print what would be set and run, and run nothing.")
]
Own = Annotated[
    list[str] | None,
    typer.Argument(metavar="ARGS", help="The program's own arguments, behind `--`."),
]


def launch(
    program: Named,
    arguments: Own = None,
    model: Model = None,
    only_print: Only = False,
    url: Url = None,
    state_dir: StateDirectory = None,
) -> None:
    client = connect(url, state_dir)
    health = ask(lambda: parsed(client.health(), Health))
    chosen = choose(health, model or ask(client.default_model))
    if isinstance(chosen, str):
        fail(chosen)
    target = Target(client.url, chosen.name, context_of(health, chosen), client.key)
    recipe = PROGRAMS[program]
    start = recipe.start(target, arguments or ())
    if only_print:
        output.write("".join(f"{line}\n" for line in start.shell_lines(target)))
        return
    if shutil.which(recipe.executable) is None:
        fail(f"`{recipe.executable}` is not installed; `{recipe.install}` installs it")
    _tell(recipe, start, target)
    sys.exit(_run(start))


def choose(health: Health, wanted: str | None) -> Configured | str:
    """The model to use, or why there is none. `wanted` may be an alias; without it the choice must
    be plain: the only model that is loaded, or the only one that can be."""
    if wanted is not None:
        for each in health.models:
            if wanted == each.name or wanted in each.aliases:
                return each
        return f"there is no model {wanted}; `bulkhead models` lists them"
    usable = [each for each in health.models if each.state != "failed"]
    loaded = {each.name for each in health.cached_models}
    for among in ([each for each in usable if each.name in loaded], usable):
        if len(among) == 1:
            return among[0]
    if not usable:
        return "no model can be served; `bulkhead models` says why"
    names = ", ".join(each.name for each in usable)
    return f"there are several models; choose one with `--model`: {names}"


def context_of(health: Health, model: Configured) -> int | None:
    """In tokens. A loaded worker knows better than the files."""
    loaded = (each.context for each in health.cached_models if each.name == model.name)
    return next((each for each in loaded if each), model.context) or None


def _tell(recipe: Program, start: Start, target: Target) -> None:
    """To stderr: stdout is the program's."""
    for line in start.told_lines(target):
        print(f"bulkhead: {visible(line)}", file=sys.stderr)
    if target.context is not None and target.context < recipe.needs:
        print(
            f"bulkhead: {visible(target.model)} has a context of {target.context} tokens, and the "
            f"first request of {recipe.executable} takes about {recipe.needs}; expect it to be "
            "refused",
            file=sys.stderr,
        )
    sys.stderr.flush()


def _run(start: Start) -> int:
    """Run the program and return its exit status; 128 and its number for a signal that ended it.

    Signals from the terminal reach it by themselves, and what it makes of them counts. What only
    this process gets is handed on. Handlers are no more when the program begins, unlike a signal
    that is ignored.
    """
    came: list[int] = []
    for each in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(each, lambda _number, _frame: None)
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, _frame: came.append(number))
    try:
        child = subprocess.Popen(start.command, env=start.environment(os.environ))
    except OSError as error:
        fail(f"cannot start {start.command[0]}: {reason(error)}")
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, _frame: child.send_signal(number))
    for number in came:
        child.send_signal(number)
    status = child.wait()
    return 128 - status if status < 0 else status
