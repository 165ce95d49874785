"""mlx-lm as it is, and as one that is refused."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable

import pytest

from worker.engine import mlx_lm_compat as compat
from worker.engine.thread import Unloadable

VERSION = importlib.metadata.version("mlx-lm")


def refused(act: Callable[[], object]) -> str:
    """Why `act` is refused, which names the version."""
    with pytest.raises(Unloadable) as caught:
        act()
    told = str(caught.value)
    assert told.startswith(f"mlx-lm {VERSION} can't be used")
    assert compat.TESTED in told
    return told
