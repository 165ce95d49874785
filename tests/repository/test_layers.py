"""The import rule, walked over the syntax trees: gateway → supervisor ← worker."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "supervisor", "worker")
LONGEST_FILE = 500
PUBLIC = ("supervisor.config", "supervisor.errors", "supervisor.wire")
FORBIDDEN = {
    "gateway": ("worker", "mlx", "mlx_lm"),
    "supervisor": ("gateway", "worker", "mlx", "mlx_lm", "aiohttp", "uvloop"),
    "worker": ("gateway", "aiohttp"),
}


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def trespasses(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `module` imports although it must not."""
    home = module.partition(".")[0]
    found = []
    for name in imports(ast.parse(source), module, is_package=is_package):
        inner = home != "supervisor" and within(name, "supervisor")
        if (
            name == "<computed>"
            or any(within(name, package) for package in FORBIDDEN[home])
            or (inner and not any(within(name, public) for public in PUBLIC))
        ):
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


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_module_keeps_the_import_rule(path: Path) -> None:
    is_package = path.name == "__init__.py"
    assert trespasses(path.read_text(), module_name(path), is_package=is_package) == []


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_module_has_no_global_and_swallows_nothing(path: Path) -> None:
    assert bad_habits(path.read_text()) == []


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_module_is_one_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_every_package_is_looked_at() -> None:
    assert {module_name(path).partition(".")[0] for path in source_files()} == set(PACKAGES)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.relay", "import worker.engine"),
        ("gateway.relay", "from worker import engine"),
        ("gateway.relay", "def f():\n    import mlx.core as mx"),
        ("gateway.relay", "from supervisor import pool"),
        ("gateway.relay", "from supervisor.pool import Pool"),
        ("gateway.relay", "from supervisor.config_rules import Text"),
        ("gateway.relay", "import supervisor"),
        ("gateway.relay", "from ..supervisor import wire_secrets"),
        ("worker.server", "from gateway.openai import Renderer"),
        ("worker.server", "from supervisor.process import Child"),
        ("worker.demo", "from supervisor import sources"),
        ("supervisor.pool", "import aiohttp"),
        ("supervisor.pool", "from uvloop import run"),
        ("supervisor.pool", "from mlx_lm import utils"),
        ("supervisor.pool", "import mlx.core"),
        ("supervisor.pool", "import gateway.main"),
        ("supervisor.pool", "from worker import main"),
        ("supervisor.pool", "import importlib\nimportlib.import_module('mlx.core')"),
        ("supervisor.pool", "import importlib\nimportlib.import_module(name)"),
    ],
)
def test_a_trespass_is_found(module: str, source: str) -> None:
    assert trespasses(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.relay", "from supervisor.wire.frames import End"),
        ("gateway.relay", "from supervisor import wire"),
        ("gateway.relay", "from gateway import openai"),
        ("worker.batch", "import mlx.core as mx"),
        ("worker.batch", "from supervisor.errors import BulkheadError"),
        ("supervisor.fleet", "from supervisor.pool import Pool"),
        ("supervisor.fleet", "import mlx_metrics"),
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
