"""The import rule: the rooms of the three wings, and what each may import.

A room is a package, or a module that stands at the top of a wing. Every module belongs to one, the
one with the longest matching name. `test_layers` walks the syntax trees and holds the rule;
`diagrams` draws it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("supervisor", "gateway", "worker")


@dataclass(frozen=True, slots=True)
class Room:
    """What the modules of a room may import beside each other."""

    sees: tuple[str, ...] = ()
    """Rooms, or single modules of a room, with all that is in them."""
    libraries: tuple[str, ...] = ()
    """Packages that are not Python's own."""
    without: tuple[str, ...] = ()
    """Packages of Python's own that it must not import."""


def _scheduler(*modules: str) -> tuple[str, ...]:
    """What a room around the scheduler sees of it: plain values, and never who decides. Only `api`
    knows the pool, whose events it names to the dispatcher."""
    return tuple(f"supervisor.scheduler.{module}" for module in modules)


_NO_WORLD = ("asyncio", "os", "pathlib", "signal", "socket", "subprocess", "threading", "time")
"""What pure code has no use for."""

ROOMS: Mapping[str, Room] = {
    # What everybody may know.
    "supervisor.errors": Room(without=_NO_WORLD),
    "supervisor.units": Room(without=_NO_WORLD),
    "supervisor.layout": Room((), ("rich",), without=_NO_WORLD),
    "supervisor.background": Room(),
    "supervisor.log_handlers": Room(),
    "supervisor.stopping": Room(),
    "supervisor.bootstrap": Room(),
    "supervisor.config": Room(("supervisor.wire.text",), ("msgspec",)),
    "supervisor.wire": Room((), ("msgspec",)),
    "supervisor.state": Room(
        ("supervisor.background", "supervisor.log_handlers", "supervisor.wire"), ("msgspec",)
    ),
    # The supervisor.
    "supervisor.scheduler": Room(
        ("supervisor.errors", "supervisor.units"), without=(*_NO_WORLD, "random")
    ),
    "supervisor.machine": Room(_scheduler("lifecycle", "model", "pressure"), ("psutil",)),
    "supervisor.models": Room(
        (
            *_scheduler("model"),
            "supervisor.background",
            "supervisor.config",
            "supervisor.state",
            "supervisor.wire",
        ),
        ("msgspec",),
    ),
    "supervisor.processes": Room(
        (
            *_scheduler("lifecycle", "model", "pressure"),
            "supervisor.background",
            "supervisor.bootstrap",
            "supervisor.config",
            "supervisor.models",
            "supervisor.state",
            "supervisor.wire",
        ),
        ("msgspec", "psutil"),
    ),
    "supervisor.crashes": Room(
        (
            *_scheduler("death", "effects", "lease", "lifecycle", "model", "state"),
            "supervisor.background",
            "supervisor.errors",
            "supervisor.layout",
            "supervisor.machine",
            "supervisor.processes",
            "supervisor.state",
            "supervisor.units",
            "supervisor.wire",
        ),
        ("msgspec", "rich"),
    ),
    "supervisor.api": Room(
        (
            *_scheduler("effects", "lifecycle", "model", "pool", "refusals", "state"),
            "supervisor.errors",
            "supervisor.machine",
            "supervisor.processes.activity",
            "supervisor.processes.counter",
            "supervisor.state",
            "supervisor.wire",
        ),
    ),
    "supervisor.cli": Room(
        (
            "supervisor.bootstrap",
            "supervisor.conditions",
            "supervisor.config",
            "supervisor.crashes.store",
            "supervisor.crashes.view",
            "supervisor.layout",
            "supervisor.machine.readers",
            "supervisor.models",
            "supervisor.startup",
            "supervisor.state",
            "supervisor.units",
            "supervisor.wire",
        ),
        ("msgspec", "rich", "typer"),
    ),
    "supervisor.build": Room(
        (
            "supervisor.config",
            "supervisor.machine",
            "supervisor.models",
            "supervisor.processes",
            "supervisor.scheduler",
            "supervisor.units",
        )
    ),
    "supervisor.dispatcher": Room(
        (
            "supervisor.api",
            "supervisor.background",
            "supervisor.crashes",
            "supervisor.machine",
            "supervisor.models",
            "supervisor.processes",
            "supervisor.scheduler",
            "supervisor.state",
            "supervisor.wire",
        ),
    ),
    "supervisor.app": Room(
        (
            "supervisor.api",
            "supervisor.background",
            "supervisor.build",
            "supervisor.config",
            "supervisor.crashes",
            "supervisor.dispatcher",
            "supervisor.machine",
            "supervisor.models",
            "supervisor.processes",
            "supervisor.scheduler",
            "supervisor.state",
            "supervisor.stopping",
            "supervisor.wire",
        ),
        ("msgspec",),
    ),
    "supervisor.startup": Room(
        ("supervisor.units", "supervisor.wire.text"),
        without=("asyncio", "os", "socket", "subprocess", "time"),
    ),
    "supervisor.conditions": Room(
        (
            "supervisor.bootstrap",
            "supervisor.machine.listeners",
            "supervisor.processes",
            "supervisor.startup",
            "supervisor.state.paths",
            "supervisor.wire",
        )
    ),
    "supervisor.serve": Room(
        (
            "supervisor.app",
            "supervisor.background",
            "supervisor.build",
            "supervisor.conditions",
            "supervisor.config",
            "supervisor.crashes.no_shutdown",
            "supervisor.machine",
            "supervisor.models",
            "supervisor.processes",
            "supervisor.startup",
            "supervisor.state",
        ),
        ("msgspec",),
    ),
    # The gateway.
    "gateway.relay": Room(("supervisor.errors", "supervisor.wire"), ("msgspec",)),
    "gateway.grammars": Room(without=_NO_WORLD),
    "gateway.dialect": Room(
        ("supervisor.errors", "supervisor.wire"), ("msgspec",), without=_NO_WORLD
    ),
    "gateway.openai": Room(
        ("gateway.dialect", "gateway.grammars", "supervisor.errors", "supervisor.wire"),
        ("msgspec",),
        without=_NO_WORLD,
    ),
    "gateway.responses": Room(
        ("gateway.dialect", "gateway.openai", "supervisor.errors", "supervisor.wire"),
        ("msgspec",),
        without=_NO_WORLD,
    ),
    "gateway.anthropic": Room(
        ("gateway.dialect", "gateway.openai", "supervisor.errors", "supervisor.wire"),
        ("msgspec",),
        without=_NO_WORLD,
    ),
    "gateway.document": Room(
        (
            "gateway.anthropic",
            "gateway.openai",
            "gateway.responses",
            "supervisor.errors",
            "supervisor.wire",
        ),
        ("msgspec",),
        without=_NO_WORLD,
    ),
    "gateway.ollama": Room(
        ("gateway.dialect", "gateway.openai", "supervisor.errors", "supervisor.wire"),
        ("msgspec",),
        without=_NO_WORLD,
    ),
    "gateway.http": Room(
        ("gateway.dialect", "supervisor.config", "supervisor.errors"), ("aiohttp",)
    ),
    "gateway.handlers": Room(
        (
            "gateway.anthropic",
            "gateway.dialect",
            "gateway.document",
            "gateway.http",
            "gateway.ollama",
            "gateway.openai",
            "gateway.relay",
            "gateway.responses",
            "supervisor.errors",
            "supervisor.wire",
        ),
        ("aiohttp", "msgspec"),
    ),
    "gateway.app": Room(
        (
            "gateway.anthropic",
            "gateway.dialect",
            "gateway.handlers",
            "gateway.http",
            "gateway.ollama",
            "gateway.relay",
            "supervisor.config",
            "supervisor.errors",
            "supervisor.wire",
        ),
        ("aiohttp",),
    ),
    "gateway.heap": Room(),
    "gateway.logs": Room(("supervisor.log_handlers",)),
    "gateway.main": Room(
        (
            "gateway.app",
            "gateway.heap",
            "gateway.http",
            "gateway.logs",
            "supervisor.config",
            "supervisor.wire",
        ),
        ("msgspec", "uvloop"),
    ),
    # The worker.
    "worker.prompt": Room(("supervisor.errors", "supervisor.wire"), ("jinja2",)),
    "worker.output": Room(("worker.prompt.tokenizer", "supervisor.wire")),
    "worker.grammar": Room(
        ("worker.output", "worker.prompt.tokenizer", "supervisor.errors", "supervisor.wire"),
        ("llguidance", "numpy"),
    ),
    "worker.engine": Room(
        (
            "worker.grammar",
            "worker.output",
            "worker.prompt",
            "supervisor.errors",
            "supervisor.wire",
        ),
        ("mlx", "mlx_lm", "numpy", "transformers"),
    ),
    "worker.counting": Room(
        (
            "worker.engine.load_faults",
            "worker.engine.mlx_lm_tokenizers",
            "worker.engine.thread",
            "worker.prompt",
            "supervisor.errors",
            "supervisor.wire",
        ),
        ("msgspec", "uvloop"),
    ),
    "worker.priority": Room(),
    "worker.sink": Room(("worker.engine.thread", "supervisor.errors", "supervisor.wire")),
    "worker.server": Room(
        ("worker.engine.thread", "worker.sink", "supervisor.errors", "supervisor.wire")
    ),
    "worker.main": Room(
        ("worker.engine", "worker.priority", "worker.server", "supervisor.wire"), ("uvloop",)
    ),
    "worker.demo": Room((), ("numpy", "safetensors", "tokenizers")),
}


def source_files() -> list[Path]:
    """Every module of the product."""
    return sorted(path for wing in WINGS for path in (ROOT / wing).rglob("*.py"))


def module_name(path: Path) -> str:
    """`supervisor.wire` for `supervisor/wire/__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def room_of(module: str) -> str | None:
    """The room that a module, or a name in one, belongs to; None = it belongs to none."""
    return max((room for room in ROOMS if within(module, room)), key=len, default=None)


def imports(tree: ast.AST, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Dotted names of what the tree imports, wherever in it; `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                home = parts[: len(parts) - node.level + is_package]
                base = ".".join([*home, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "import_module",
            "importlib.import_module",
        ):
            argument = node.args[0] if node.args else None
            yield str(argument.value) if isinstance(argument, ast.Constant) else "<computed>"


def sees(room: str) -> set[str]:
    """The other rooms of which a room may import anything."""
    return {home for allowed in ROOMS[room].sees if (home := room_of(allowed)) is not None}


def floors(graph: Mapping[str, set[str]] | None = None) -> list[list[str]]:
    """The rooms by floors: each sees only floors below its own, and the lowest sees none. Raises
    ValueError when there is a circle."""
    graph = {room: sees(room) for room in ROOMS} if graph is None else graph
    below: set[str] = set()
    found: list[list[str]] = []
    while len(below) < len(graph):
        floor = sorted(room for room in graph if room not in below and graph[room] <= below)
        if not floor:
            raise ValueError(f"a circle in {sorted(set(graph) - below)}")
        found.append(floor)
        below |= set(floor)
    return found
