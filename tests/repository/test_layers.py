"""The import rule, walked over the syntax trees: gateway → supervisor ← worker, room by room."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.repository.rooms import (
    ROOMS,
    ROOT,
    WINGS,
    floors,
    imports,
    module_name,
    room_of,
    sees,
    source_files,
    within,
)

LONGEST_FILE = 500
PUBLIC = ("supervisor.config", "supervisor.errors", "supervisor.log_handlers", "supervisor.wire")
"""What the gateway and the worker may know of the supervisor."""


def trespasses(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `module` imports although its room must not."""
    room = ROOMS[room_of(module) or ""]
    found = []
    for name in imports(ast.parse(source), module, is_package=is_package):
        package = name.partition(".")[0]
        if package in WINGS:
            allowed = room_of(name) == room_of(module) or any(within(name, s) for s in room.sees)
        elif package in sys.stdlib_module_names:
            allowed = not any(within(name, forbidden) for forbidden in room.without)
        else:
            allowed = package in room.libraries
        if not allowed:
            found.append(name)
    return found


def is_swallowed(handler: ast.ExceptHandler) -> bool:
    """Whether the handler takes any exception and does nothing at all about it."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(
        kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds
    )
    return broad and all(
        isinstance(statement, ast.Pass | ast.Continue)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in handler.body
    )


def bad_habits(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Global):
            found.append(f"line {node.lineno}: global {', '.join(node.names)}")
        if isinstance(node, ast.ExceptHandler) and is_swallowed(node):
            found.append(f"line {node.lineno}: swallowed exception")
    return found


def homeless(modules: Iterable[str]) -> list[str]:
    """Modules that belong to no room. A wing itself is none, and holds nothing."""
    return [module for module in modules if room_of(module) is None and module not in WINGS]


def faults(find: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """What `find` finds in any of our modules, by module."""
    found = {module_name(path): find(path) for path in source_files()}
    assert len(found) > 200
    return {module: faults for module, faults in found.items() if faults}


def test_modules_keep_the_import_rule() -> None:
    def find(path: Path) -> list[str]:
        module, source = module_name(path), path.read_text()
        if module in WINGS:
            _docstring, *more = ast.parse(source).body
            return [ast.unparse(statement) for statement in more]
        return trespasses(source, module, is_package=path.name == "__init__.py")

    assert faults(find) == {}


def test_modules_have_no_global_and_swallow_nothing() -> None:
    assert faults(lambda path: bad_habits(path.read_text())) == {}


def test_modules_have_one_door() -> None:
    assert faults(lambda path: path.read_text().splitlines()[LONGEST_FILE:]) == {}


def test_a_room_says_what_it_is_for() -> None:
    rooms = [path for path in source_files() if path.name == "__init__.py"]
    silent = [path for path in rooms if not ast.get_docstring(ast.parse(path.read_text()))]
    assert rooms
    assert silent == []


def borrowed(source: str) -> list[str]:
    """Names that the source imports from a module which has only imported them itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            file = ROOT.joinpath(*node.module.split(".")).with_suffix(".py")
            if node.module.partition(".")[0] in WINGS and file.is_file():
                own = definitions(file)
                found += [f"{node.module}.{a.name}" for a in node.names if a.name not in own]
    return found


@functools.cache
def definitions(file: Path) -> frozenset[str]:
    """What a module defines at its top, without what it imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)


def test_names_are_imported_from_where_they_are_defined() -> None:
    """Effects from `effects`, values from their rooms: nothing is passed on."""
    assert faults(lambda path: borrowed(path.read_text())) == {}


def test_a_borrowed_name_is_noticed() -> None:
    source = "from supervisor.scheduler.pool import Grant, Pool"
    assert borrowed(source) == ["supervisor.scheduler.pool.Grant"]


def test_every_module_belongs_to_a_room() -> None:
    assert homeless(map(module_name, source_files())) == []
    assert homeless(["supervisor.attic", "gateway.cellar.wine", "supervisor.wire.frames"]) == [
        "supervisor.attic",
        "gateway.cellar.wine",
    ]


def test_every_room_is_there_and_every_arrow_is_used() -> None:
    """Or the rule would allow what nobody needs, which is how halls begin."""
    modules = {module_name(path): path for path in source_files()}
    for room, rule in ROOMS.items():
        inside = {name: path for name, path in modules.items() if room_of(name) == room}
        assert inside, room
        used = {
            name
            for module, path in inside.items()
            for name in imports(
                ast.parse(path.read_text()), module, is_package=path.name == "__init__.py"
            )
        }
        unused = [
            seen
            for seen in (*rule.sees, *rule.libraries)
            if not any(within(name, seen) for name in used)
        ]
        assert unused == [], room


def test_arrows_run_one_way() -> None:
    """Raises for a circle."""
    assert floors()
    with pytest.raises(ValueError, match="circle"):
        floors({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_the_wings_know_each_other_by_the_contract_alone() -> None:
    for room in ROOMS:
        wing = room.partition(".")[0]
        for other in sees(room):
            assert within(other, wing) or other in PUBLIC, room


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.relay.client", "import worker.engine"),
        ("gateway.relay.client", "from worker import engine"),
        ("gateway.relay.client", "def f():\n    import mlx.core as mx"),
        ("gateway.relay.client", "import aiohttp"),
        ("gateway.relay.client", "from gateway.openai import render"),
        ("gateway.relay.client", "from supervisor.scheduler import pool"),
        ("gateway.relay.client", "from supervisor.scheduler.pool import Pool"),
        ("gateway.relay.client", "from supervisor.state import paths"),
        ("gateway.relay.client", "import supervisor"),
        ("gateway.relay.client", "from ...supervisor import wire_secrets"),
        ("gateway.openai.chat", "from aiohttp import web"),
        ("gateway.openai.chat", "from ..relay import client"),
        ("worker.server", "from gateway.openai import render"),
        ("worker.server", "from supervisor.processes.child import run"),
        ("worker.server", "from worker.engine import batch"),
        ("worker.output.text", "import mlx.core"),
        ("worker.prompt.template", "from worker.engine import loading"),
        ("worker.demo", "from supervisor.models import sources"),
        ("supervisor.scheduler.pool", "import aiohttp"),
        ("supervisor.scheduler.pool", "import time"),
        ("supervisor.scheduler.pool", "from asyncio import Event"),
        ("supervisor.scheduler.pool", "from supervisor.machine import readers"),
        ("supervisor.scheduler.pool", "from mlx_lm import utils"),
        ("supervisor.scheduler.pool", "import gateway.main"),
        ("supervisor.scheduler.pool", "import importlib\nimportlib.import_module('mlx.core')"),
        ("supervisor.scheduler.pool", "import importlib\nimportlib.import_module(name)"),
        ("supervisor.processes.fleet", "from supervisor.scheduler.pool import Pool"),
        ("supervisor.wire.frames", "from supervisor.state import paths"),
        ("supervisor.api.control", "from supervisor import app"),
    ],
)
def test_a_trespass_is_found(module: str, source: str) -> None:
    assert trespasses(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.relay.client", "from supervisor.wire.frames import End"),
        ("gateway.relay.client", "from supervisor import wire"),
        ("gateway.handlers.models", "from gateway.http import exchange"),
        ("worker.engine.batch", "import mlx.core as mx"),
        ("worker.engine.batch", "from supervisor.errors import BulkheadError"),
        ("supervisor.app", "from supervisor.scheduler.pool import Pool"),
        ("supervisor.scheduler.pool", "from .model import Model"),
        ("supervisor.scheduler.pool", "from collections import deque"),
    ],
)
def test_what_is_allowed_is_no_trespass(module: str, source: str) -> None:
    assert trespasses(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    global x\n    x = 1",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    ...",
        "try:\n    f()\nexcept (OSError, BaseException):\n    'why'",
        "for x in y:\n    try:\n        f()\n    except Exception:\n        continue",
    ],
)
def test_a_bad_habit_is_found(source: str) -> None:
    assert bad_habits(source)


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            ("supervisor.cli.main", "supervisor.serve", "supervisor.processes.child"),
            ("aiohttp", "uvloop", "mlx", "mlx_lm", "gateway", "worker"),
        ),
        (("gateway.main",), ("mlx", "mlx_lm", "worker")),
        (("worker.server",), ("aiohttp", "mlx", "mlx_lm", "gateway")),
        (("worker.counting.main",), ("aiohttp", "mlx", "mlx_lm", "gateway")),
    ],
)
def test_importing_brings_no_stranger(modules: tuple[str, ...], absent: tuple[str, ...]) -> None:
    code = (
        f"import sys, {', '.join(modules)}; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = done.stdout.split()
    assert "supervisor" in loaded
    assert [name for name in absent if name in loaded] == []
