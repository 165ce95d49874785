"""transformers' table of its own modules, handed on from one fake worker to the next.

To make it, each process reads some 3,300 source files, a third of the CPU time of its imports.
"""

from __future__ import annotations

import importlib.machinery
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULE = "transformers.utils.import_utils"


class _Table(MetaPathFinder, Loader):
    """Finds that one module, and has it ask here first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str | None], Any] = {}
        if path.exists():
            self._known = pickle.loads(path.read_bytes())
        self._real: Loader | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            self._real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        assert self._real is not None
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self._real is not None
        self._real.exec_module(module)
        define: Callable[[Any, str | None], Any] = module.define_import_structure

        def ask(module_path: Any, prefix: str | None = None) -> Any:
            key = (str(module_path), prefix)
            if key not in self._known:
                self._known[key] = define(module_path, prefix)
                self._keep()
            return self._known[key]

        setattr(module, "define_import_structure", ask)  # noqa: B010

    def _keep(self) -> None:
        """Whole or not at all: the process may be killed at any moment."""
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        fresh.write_bytes(pickle.dumps(self._known))
        fresh.replace(self._path)


def hand_on(path: Path) -> None:
    """From now on that module has its table from `path`, or leaves it there. Before its import."""
    sys.meta_path.insert(0, _Table(path))
