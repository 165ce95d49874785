"""mlx-lm as it is, and as one that is refused."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest

from worker.engine import mlx_lm_compat as compat
from worker.engine.thread import Unloadable

VERSION = importlib.metadata.version("mlx-lm")


def own_classes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """mlx-lm's module, its own classes in place, and again after the test."""
    module: Any = importlib.import_module("mlx_lm.generate")
    for name in ("GenerationBatch", "PromptProcessingBatch"):
        monkeypatch.setattr(module, name, compat.theirs(getattr(module, name)))
    return module


def refused(act: Callable[[], object]) -> str:
    """Why `act` is refused, which names the version."""
    with pytest.raises(Unloadable) as caught:
        act()
    told = str(caught.value)
    assert told.startswith(f"mlx-lm {VERSION} can't be used")
    assert compat.TESTED in told
    return told
