"""A model's tokenizer and chat template as a worker has them, without MLX and without weights.

mlx-lm's own loader makes them. Only what it asks the model's module for, which would import MLX, is
read from the sources of mlx-lm instead: they are literals.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.engine import mlx_lm_compat as compat
from worker.engine.load_faults import told_of
from worker.engine.mlx_lm_expected import (
    MODEL_TABLES,
    NAMES,
    TOKENIZER_CALLS,
    TOKENIZER_DEFAULTS,
)
from worker.prompt.tokenizer import ModelTokenizer

_UTILS = "mlx_lm.tokenizer_utils"


def import_tokenizers() -> str:
    """Import what tokenizers need of mlx-lm: most of a second. Returns what made it fail, "" if
    nothing did, as `import_mlx_lm`."""
    return compat.import_failure(_import_tokenizers)


def _import_tokenizers() -> None:
    if "mlx_lm" not in sys.modules:
        # Not run: it imports all of mlx-lm, and MLX.
        sys.modules["mlx_lm"] = importlib.util.module_from_spec(_spec("mlx_lm"))
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # as mlx-lm does there
    compat.leave_out_the_index()
    import mlx_lm.tokenizer_utils  # noqa: F401


class TokenizerLoader:
    """Loads tokenizers. `failure` is what `import_tokenizers` returned. One thread at a time: what
    transformers imports on the way is not safe for more."""

    def __init__(self, failure: str) -> None:
        self._failure = failure
        self._tables: Mapping[str, Any] | None = None
        """Of `MODEL_TABLES`, once they were read."""

    def load(self, folder: Path) -> ModelTokenizer:
        """The tokenizer of the model in `folder`; seconds for a large one. Raises Unloadable when
        no retry can help; out of memory and I/O errors pass through."""
        if self._failure:
            raise compat.unfit(f"its import failed with {self._failure}")
        for name in NAMES[_UTILS]:
            compat.find(_UTILS, name)
        compat.check_calls(TOKENIZER_CALLS)
        with told_of(folder):
            load = compat.find(_UTILS, "load")
            return compat.model_tokenizer(load(folder, defaults=self._defaults(folder)))

    def _defaults(self, folder: Path) -> Any:
        """What mlx-lm's module for the model says of its tokenizer; None = nothing, or there is no
        such module."""
        try:
            config = json.loads((folder / "config.json").read_bytes())
            name = self.module(config)
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return None  # as mlx-lm does; what is wrong with it is the load's business
        if not isinstance(name, str) or not name.isidentifier():
            return None
        source = _folder("mlx_lm") / "models" / f"{name}.py"
        if not source.is_file():
            return None
        return literals(source.read_text("utf-8"), TOKENIZER_DEFAULTS).get(TOKENIZER_DEFAULTS)

    def module(self, config: Mapping[str, Any]) -> Any:
        """The name of the module in `mlx_lm.models` that a model with this configuration is of.
        Raises KeyError, TypeError for odd ones."""
        if self._tables is None:
            source = (_folder("mlx_lm") / "utils.py").read_text("utf-8")
            self._tables = literals(source, *MODEL_TABLES)
        names, by_architecture = (self._tables.get(table) for table in MODEL_TABLES)
        if not isinstance(names, dict) or not isinstance(by_architecture, dict):
            raise compat.unfit("mlx_lm.utils tells the modules of models in another way")
        kind, architectures = config["model_type"], config.get("architectures") or ()
        if isinstance(architectures, str):
            architectures = (architectures,)
        for architecture in architectures:
            if (remapped := by_architecture.get((kind, architecture))) is not None:
                return remapped
        return names.get(kind, kind)


def literals(source: str, *names: str) -> dict[str, Any]:
    """The values of the top-level names that are there; of one that is no literal None."""
    found: dict[str, Any] = {}
    if not any(name in source for name in names):
        return found
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id in names:
                    found[target.id] = _value(node.value)
    return found


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _spec(package: str) -> Any:
    """Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return spec


def _folder(package: str) -> Path:
    return Path(sys.modules[package].__path__[0])
