"""The commands that ask a running server: what it has loaded and crashed, and loading by hand."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from supervisor.cli.client import Client, Refusal, Unreachable, fail
from supervisor.cli.doctor import passed_over_lines
from supervisor.config.files import resolve_state_dir
from supervisor.config.rules import ConfigError
from supervisor.crashes import view
from supervisor.crashes.store import Store, Unreadable
from supervisor.state.paths import StateDir
from supervisor.units import gigabytes
from supervisor.wire.crash import CrashList, CrashReport

_URL = typer.Option(
    metavar="URL", help="The server; else the one that runs with the state directory."
)
_STATE = typer.Option(metavar="DIR", readable=False, help="Its state directory [~/.bulkhead].")
Url = Annotated[str | None, _URL]
StateDirectory = Annotated[Path | None, _STATE]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the server says as JSON.")]
AsAnyJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CrashId = Annotated[str, typer.Argument(metavar="ID", help="A report's id; without, all of them.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name or alias.")]
_PIPE_COLUMNS = 1000
_NUMBERS = ("memory", "in flight", "queued", "uses", "deaths", "estimate", "measured")
"""Columns that are."""
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


def status(url: Url = None, state_dir: StateDirectory = None, as_json: AsJson = False) -> None:
    health = _ask(lambda: _client(url, state_dir).health())
    if as_json:
        print(json.dumps(health, indent=2))
        return
    console = _console()
    console.print(_memory_line(health))
    table = _table("model", "state", "memory", "in flight", "queued", "uses", "deaths", "")
    by_name = {entry["name"]: entry for entry in health["models"]}
    for entry in health["cached_models"]:
        table.add_row(
            f"{entry['name']}#{entry['generation']}",
            entry["state"],
            _size(entry["memory_bytes"]),
            str(entry["in_flight"]),
            str(entry["queued"]),
            str(entry["use_count"]),
            str(entry["deaths"]),
            "pinned" if entry["pinned"] else "",
        )
        by_name.pop(entry["name"], None)
    for entry in by_name.values():
        if entry["deaths"] or entry["reason"]:
            row = (entry["name"], entry["state"], "", "", "", "", str(entry["deaths"]))
            table.add_row(*row, entry["reason"] or "")
    if table.row_count:
        console.print(table)
    else:
        console.print("no model is loaded")


def models(url: Url = None, state_dir: StateDirectory = None, as_json: AsJson = False) -> None:
    health = _ask(lambda: _client(url, state_dir).health())
    if as_json:
        print(json.dumps(health["models"], indent=2))
        return
    table = _table("model", "aliases", "state", "estimate", "measured", "source", "")
    for entry in health["models"]:
        table.add_row(
            entry["name"],
            ", ".join(entry["aliases"]),
            entry["state"],
            _size(entry["estimate"]),
            _size(entry["measured"]),
            entry["source"],
            entry["reason"] or _limit(entry),
        )
    _console().print(table)
    print("".join(f"{line}\n" for line in passed_over_lines(health)), end="")


def load(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    client = _client(url, state_dir)
    with _load_progress(client):
        done = _ask(lambda: client.manage(name, "load"))
    print(f"{done['id']} is {done['state']}")


def unload(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    done = _ask(lambda: _client(url, state_dir).manage(name, "unload"))
    print(f"{done['id']} is {done['state']}")


def pin(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    done = _ask(lambda: _client(url, state_dir).manage(name, "pin"))
    print(f"{done['id']} is pinned")


def unpin(name: Name, url: Url = None, state_dir: StateDirectory = None) -> None:
    done = _ask(lambda: _client(url, state_dir).manage(name, "unpin"))
    print(f"{done['id']} is no longer pinned")


def crashes(
    crash_id: CrashId = "",
    url: Url = None,
    state_dir: StateDirectory = None,
    as_json: AsAnyJson = False,
) -> None:
    if url is not None:
        client = _client(url, None)
        told = json.dumps(_ask(lambda: client.crashes(crash_id))).encode()
    else:
        root = _ask(lambda: resolve_state_dir(state_dir, os.environ))
        told = _ask(lambda: _crashes_in(root, crash_id))
    if as_json:
        print(msgspec.json.format(told, indent=2).decode())
    elif crash_id:
        report = msgspec.json.decode(told, type=CrashReport)
        _console().print(view.crash_text(report), end="", soft_wrap=True)
    elif found := msgspec.json.decode(told, type=CrashList).crashes:
        _console().print(view.crash_table(found))
    else:
        print("nothing has crashed")


# ── their parts ──────────────────────────────────────────────────────────────────────────────────


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
        for event in client.events():
            if event is not None and event.get("event") == "loading":
                done, total = event["done_bytes"], event["total_bytes"]
                text = f"{event['model']}: {_size(done)} of {_size(total)}"
                print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _client(url: str | None, state_dir: Path | None) -> Client:
    def found() -> Client:
        if url is not None:
            return Client.of_url(url, os.environ)
        root = resolve_state_dir(state_dir, os.environ)
        return Client.of_state(root, os.environ)

    return _ask(found)


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


def _ask(question: Callable[[], T]) -> T:
    """The answer; where there is none, the reason on stderr and exit status 1."""
    try:
        return question()
    except (Unreachable, Refusal, ConfigError) as error:
        fail(str(error))


def _memory_line(health: dict[str, Any]) -> str:
    memory = health["memory"]
    budget = memory["budget_bytes"]
    used = memory["used_percent"]
    parts = [
        f"{health['status']}, Bulkhead {health['version']}",
        f"models are charged {_size(memory['charged_bytes'])}"
        + (f" of {_size(budget)}" if budget is not None else ""),
    ]
    if memory["physical_bytes"] is not None and used is not None:
        parts.append(f"{used:.0f} % of {_size(memory['physical_bytes'])} RAM in use")
    if memory["level"] not in (None, "normal"):
        parts.append(f"memory pressure is {memory['level']}")
    if memory.get("spare", "off") != "off":
        parts.append(f"spare worker {memory['spare']}")
    if memory.get("stranded_bytes"):
        lost = _size(memory["stranded_bytes"])
        parts.append(f"{memory['advice']}, {lost}")
    return "; ".join(parts)


def _limit(model: dict[str, Any]) -> str:
    if not model.get("learned_limit"):
        return ""
    return f"at most {model['max_concurrency']} at once: it ran out of memory"


def _size(value: int | None) -> str:
    return "" if value is None else gigabytes(value)


def _console() -> Console:
    """Prints names and reasons as they are, brackets and colons too. Into a pipe nothing is cut."""
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    return Console(highlight=False, markup=False, emoji=False, width=width)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, no_wrap=True)
    return table
