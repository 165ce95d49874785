"""Every file and module that the documentation, the Makefile or a docstring names is there."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository.rooms import ROOT, WINGS

TREES = (*WINGS, "tests", "deploy", "docs")
PAGES = [
    *(ROOT / name for name in ("README.md", "Makefile", "pyproject.toml", ".ci/run")),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "deploy").iterdir(),
    *(ROOT / "worker").rglob("*.md"),
]
SOURCES = [path for tree in (*WINGS, "tests") for path in (ROOT / tree).rglob("*.py")]
FILES = frozenset(
    path.name
    for tree in TREES
    for path in (ROOT / tree).rglob("*")
    if "__pycache__" not in path.parts
)
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(TREES)})(?:/[\w.-]+)+/?")
_MODULE = re.compile(
    rf"(?<![\w./-])(?:{'|'.join((*WINGS, 'tests'))})(?:\.[A-Za-z_]\w*+)++(?![.-]?[\w<{{*])"
)
_FILE = re.compile(r"(?<![\w./-])[a-z_]\w*\.py\b")
_NOT_MODULES = re.compile(r"\.(log|stderr|stdout|toml|sock|service|plist)$")
"""What a name with a dot is the end of, where it is a file in the state directory."""


def names(text: str) -> Iterator[str]:
    """Paths, modules and Python files that a text names."""
    for match in _PATH.findall(text):
        yield match.rstrip("/.")
    for match in _MODULE.findall(text):
        if not _NOT_MODULES.search(match):
            yield match
    yield from _FILE.findall(text)


def exists(name: str) -> bool:
    if "/" in name:
        return (ROOT / name).exists()
    if name.endswith(".py"):
        return name in FILES
    parts = name.split(".")
    return any(holds(parts[:cut], parts[cut:]) for cut in range(len(parts), 0, -1))


def holds(module: list[str], attributes: list[str]) -> bool:
    """Whether there is this module or package, and the attributes are defined in it."""
    path = ROOT.joinpath(*module)
    if not attributes:
        return path.is_dir() or path.with_suffix(".py").is_file()
    file = path.with_suffix(".py")
    return file.is_file() and attributes[0] in defined(file)


@functools.cache
def defined(file: Path) -> set[str]:
    """Names that a module defines or imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def prose(source: str) -> str:
    """The docstrings and comments of a module."""
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    comments = re.findall(r"#.*", source)
    return "\n".join([*strings, *comments])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_is_there(page: Path) -> None:
    assert [name for name in names(page.read_text()) if not exists(name)] == []


def test_a_module_s_prose_names_what_is_there() -> None:
    assert len(SOURCES) > 500
    named = {path: names(prose(path.read_text())) for path in SOURCES}
    missing = {path: [name for name in told if not exists(name)] for path, told in named.items()}
    assert {path: told for path, told in missing.items() if told} == {}


@pytest.mark.parametrize(
    "text",
    [
        "see `supervisor/pool.py`",
        "`python -m tests.fuzz --requests 1`",
        "decided in `roster.py`",
        "`supervisor.scheduler.pool.Nobody` has it",
        "the frames of `supervisor.wire_frames`",
        "[figures](docs/nowhere.md)",
    ],
)
def test_an_old_place_is_noticed(text: str) -> None:
    found = list(names(text))
    assert found
    assert not all(exists(name) for name in found)


@pytest.mark.parametrize(
    "text",
    [
        "see `supervisor/scheduler/pool.py` and worker/engine/",
        "`python -m tests.chaos --faults 1`",
        "`supervisor.scheduler.pool.Pool` decides, in `pool.py`",
        "`logs/supervisor.log` and worker.coder.20260101T000000.stderr",
    ],
)
def test_what_is_there_is_found(text: str) -> None:
    assert [name for name in names(text) if not exists(name)] == []
