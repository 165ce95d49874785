"""Where the commands' lines go: a terminal, with its width and colours, or a pipe, with neither."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

Lines = Sequence[Text]
View = Callable[[int | None], Lines]
"""Lines for a terminal of that width, or for a pipe."""


def console() -> Console:
    """Prints names and reasons as they are, brackets and colons too; plain if $NO_COLOR is set."""
    return Console(
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


def width() -> int | None:
    """Of the terminal that stdout is; None = it is none."""
    return console().width if sys.stdout.isatty() else None


def show(view: View) -> None:
    """Print it once."""
    if sys.stdout.isatty():
        console().print(_group(view(width())), soft_wrap=True)
    else:
        write("".join(f"{line.plain}\n" for line in view(None)))


def watch(view: View, seconds: float) -> None:
    """Show it anew every so many seconds until Ctrl-C: in place on a terminal, else block after
    block."""
    try:
        if sys.stdout.isatty():
            _refresh(view, seconds)
        while True:
            block = [_now(), *(line.plain for line in view(None)), ""]
            write("".join(f"{line}\n" for line in block))
            time.sleep(seconds)
    except KeyboardInterrupt:
        return


def repeat(line: Callable[[], str], seconds: float) -> None:
    """Print a line anew every so many seconds until Ctrl-C, and nothing else."""
    try:
        while True:
            write(f"{line()}\n")
            time.sleep(seconds)
    except KeyboardInterrupt:
        return


def _refresh(view: View, seconds: float) -> None:
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            head = Text(f"{_now()}, every {seconds:g} s, Ctrl-C ends", "dim")
            live.update(_group([head, *view(live.console.width)]), refresh=True)
            time.sleep(seconds)


def _group(lines: Lines) -> Group:
    for line in lines:
        line.no_wrap, line.overflow = True, "ignore"  # they are as long as they are to be
    return Group(*lines)


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")


def write(text: str) -> None:
    """Print it to stdout at once. Where nobody reads any more the command ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an old locale is no reason to fail
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        sys.exit(0)
