"""The commands that ask a running server: what it has loaded and crashed, and loading by hand."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.text import Text

from supervisor.cli import output
from supervisor.cli.client import Client, Refusal, Unreachable, fail
from supervisor.cli.health import Health, LoadEvent, Managed
from supervisor.cli.views import models_lines, status_lines
from supervisor.config.files import resolve_state_dir
from supervisor.config.rules import ConfigError
from supervisor.crashes import view
from supervisor.crashes.store import Store, Unreadable
from supervisor.layout import fold, one_line, visible
from supervisor.state.paths import StateDir
from supervisor.units import gigabytes
from supervisor.wire.crash import CrashList, CrashReport

_URL = typer.Option(
    metavar="URL", help="The server; else the one that runs with the state directory."
)
_STATE = typer.Option(metavar="DIR", help="Its state directory [~/.bulkhead].")
Url = Annotated[str | None, _URL]
StateDirectory = Annotated[str | None, _STATE]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the server says as JSON.")]
AsAnyJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CrashId = Annotated[str, typer.Argument(metavar="ID", help="A report's id; without, all of them.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name or alias.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show it anew until Ctrl-C.")]
Seconds = Annotated[
    float | None, typer.Argument(metavar="SECONDS", help="With --watch: between two looks [2].")
]
_WATCH_SECONDS, _WATCH_MIN, _WATCH_MAX = 2.0, 0.1, 86_400.0
_LOOK_SECONDS = 5.0
"""For an answer, while there will be another look."""
T = TypeVar("T")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("status", help="Show models, states, charges, requests, queues and deaths.")(status)
    app.command("ps", help="The same as `status`.")(status)
    app.command("models", help="Show what can be served, and what it needs.")(models)
    app.command("load", help="Load a model and wait until it is ready.")(load)
    app.command("unload", help="Unload a model once its running requests have ended.")(unload)
    app.command("pin", help="Keep a model loaded, whoever else wants the memory.")(pin)
    app.command("unpin", help="Let a model be unloaded again.")(unpin)
    app.command("crashes", help="Show what crashed and why; with an ID, the whole report.")(crashes)


def status(
    seconds: Seconds = None,
    url: Url = None,
    state_dir: StateDirectory = None,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    if not watch:
        if seconds is not None:
            raise typer.BadParameter("SECONDS needs --watch")
        _show(connect(url, state_dir), status_lines, lambda said: said, as_json=as_json)
        return
    pause = _WATCH_SECONDS if seconds is None else seconds
    if not _WATCH_MIN <= pause <= _WATCH_MAX:
        raise typer.BadParameter(f"SECONDS must be from {_WATCH_MIN:g} to {_WATCH_MAX:g}")
    # A server that is started anew may have another address; a URL that is none never gets right.
    fixed = None if url is None else connect(url, None)
    if as_json:
        output.repeat(partial(_look_as_json, fixed, state_dir), pause)
    else:
        output.watch(partial(_look, fixed, state_dir), pause)


def models(url: Url = None, state_dir: StateDirectory = None, as_json: AsJson = False) -> None:
    client = connect(url, state_dir)
    _show(client, models_lines, lambda said: said.get("models", []), as_json=as_json)


def load(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    client = connect(url, state_dir)
    with _load_progress(client):
        done = _manage(client, name, "load")
    print(f"{visible(done.id)} is {visible(done.state)}")


def unload(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    done = _manage(connect(url, state_dir), name, "unload")
    print(f"{visible(done.id)} is {visible(done.state)}")


def pin(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    done = _manage(connect(url, state_dir), name, "pin")
    print(f"{visible(done.id)} is pinned")


def unpin(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    done = _manage(connect(url, state_dir), name, "unpin")
    print(f"{visible(done.id)} is no longer pinned")


def crashes(
    crash_id: CrashId = "",
    url: Url = None,
    state_dir: StateDirectory = None,
    as_json: AsAnyJson = False,
) -> None:
    if url is not None:
        client = connect(url, None)
        told = json.dumps(ask(lambda: client.crashes(crash_id))).encode()
    else:
        root = ask(lambda: resolve_state_dir(state_dir, os.environ))
        told = ask(lambda: _crashes_in(root, crash_id))
    if as_json:
        output.write(msgspec.json.format(told, indent=2).decode() + "\n")
    elif crash_id:
        report = ask(lambda: parsed(msgspec.json.decode(told), CrashReport))
        output.show(lambda width: view.crash_lines(report, width))
    elif found := ask(lambda: parsed(msgspec.json.decode(told), CrashList)).crashes:
        output.show(lambda width: view.crash_table(found, width))
    else:
        print("nothing has crashed")


# ── their parts ──────────────────────────────────────────────────────────────────────────────────


def _show(
    client: Client,
    lines: Callable[[Health, int | None], list[Text]],
    part: Callable[[dict[str, Any]], Any],
    *,
    as_json: bool,
) -> None:
    """What the server says, as `lines` or, that `part` of it, as JSON."""
    said = ask(client.health)
    if as_json:
        output.write(json.dumps(part(said), indent=2) + "\n")
        return
    health = ask(lambda: parsed(said, Health))
    output.show(partial(lines, health))


def _look(fixed: Client | None, state_dir: str | None, width: int | None) -> list[Text]:
    """The status, or why there is none: the server may be on its way back."""
    try:
        said = (fixed or _of_state(state_dir)).health(_LOOK_SECONDS)
        return status_lines(parsed(said, Health), width)
    except (Unreachable, Refusal, ConfigError) as error:
        told = f"bulkhead: {error}; trying again"
        return [Text(line, "red") for line in fold(one_line(told), width)]


def _look_as_json(fixed: Client | None, state_dir: str | None) -> str:
    """The status as an object in one line, or one with `error`."""
    try:
        return json.dumps((fixed or _of_state(state_dir)).health(_LOOK_SECONDS))
    except (Unreachable, Refusal, ConfigError) as error:
        return json.dumps({"error": str(error)})


def _manage(client: Client, name: str, action: str) -> Managed:
    """What has become of the model."""
    return ask(lambda: parsed(client.manage(name, action), Managed))


def parsed(said: Any, kind: type[T]) -> T:
    """What the server said. Raises Unreachable for what is no such thing."""
    try:
        return msgspec.convert(said, kind)
    except msgspec.ValidationError as error:
        raise Unreachable(f"the server gave an answer that is not Bulkhead's: {error}") from None


@contextlib.contextmanager
def _load_progress(client: Client) -> Iterator[None]:
    """Meanwhile a terminal's stderr shows how far loads are, from the server's events."""
    if not sys.stderr.isatty():
        yield
        return
    threading.Thread(target=_show_loads, args=(client,), daemon=True).start()
    try:
        yield
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _show_loads(client: Client) -> None:
    with contextlib.suppress(Unreachable, Refusal):  # the load itself says what is wrong
        for told in client.events():
            event = None if told is None else parsed(told, LoadEvent)
            if event is not None and event.event == "loading":
                done, total = gigabytes(event.done_bytes), gigabytes(event.total_bytes)
                text = f"{visible(event.model)}: {done} of {total}"
                print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def connect(url: str | None, state_dir: str | None) -> Client:
    """The server that a command is about."""
    if url is not None:
        return ask(lambda: Client.of_url(url, os.environ))
    return ask(lambda: _of_state(state_dir))


def _of_state(state_dir: str | None) -> Client:
    """Raises Unreachable."""
    return Client.of_state(resolve_state_dir(state_dir, os.environ), os.environ)


def _crashes_in(root: Path, crash_id: str) -> bytes:
    """JSON: what a state directory has, whether its server runs or not. Raises Refusal."""
    if not root.is_dir():
        raise Refusal(f"there is no state directory {root}")
    store = Store(StateDir(root, root).crashes)
    if not crash_id:
        return msgspec.json.encode(CrashList(crashes=store.listing()))
    try:
        report = store.read(crash_id)
    except Unreadable as error:
        raise Refusal(str(error)) from None
    if report is None:
        raise Refusal(f"there is no such crash report in {root}; `bulkhead crashes` lists them")
    return msgspec.json.encode(report)


def ask(question: Callable[[], T]) -> T:
    """The answer; where there is none, the reason on stderr and exit status 1."""
    try:
        return question()
    except (Unreachable, Refusal, ConfigError) as error:
        fail(str(error))
